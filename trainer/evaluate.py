"""How good screeners and endpoints are on one split: scores beside what chance would get, with intervals.

Greedy answers, graded by the function that is the reward. One model writes ``evaluation.json``, ``predictions.jsonl``
and ``evaluation.md``; several write those per model, and one table of all as ``comparison.json``, ``.md`` and ``.png``.
Broken off, the same command goes on where it was. `paired_difference` and `beats_constant` compare predictions.
Not here: scores (contract/scores.py), intervals (statistics.py), files of answers (predictions.py), tables and plots
(comparison.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoint import find_model, run_settings
from trainer.comparison import comparison_markdown, draw_comparison, evaluation_markdown
from trainer.config import Refused, require, settings_json
from trainer.confusion import confusion, hard_records, letter_counts
from trainer.contract.answers import Answer
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity, Split
from trainer.contract.exports import MANIFEST, ExportRefused, read_manifest, read_records
from trainer.contract.prompts import PROMPT_VERSIONS, PromptKind
from trainer.contract.records import Record
from trainer.contract.scores import ScoreVariant, all_answers
from trainer.data import make_example, open_export, read_split
from trainer.endpoint import EndpointConfig, EndpointFailed, RequestFailed, RequestRefused, ask_endpoint, data_uri
from trainer.images import ImageStore, read_image, stored_bytes
from trainer.model import load_screener, resolve_device, resolve_dtype
from trainer.predictions import (
    ANSWERS,
    FIGURES,
    PREDICTIONS,
    Answered,
    AnswerLog,
    Prediction,
    chance_of,
    predict,
)
from trainer.progress import Progress
from trainer.rollout import Sampling, choose_threads, generate
from trainer.statistics import Interval, mean_interval

EVALUATION, COMPARISON = "evaluation.json", "comparison.json"
OVERALL = "overall"
_REFUSED_AT_FIRST = 3
"""Requests refused before any is answered, after which the endpoint, not the request, is taken to be at fault."""
_FAILED_IN_A_ROW = 20
"""Requests that fail after all tries without an answer between them, after which the endpoint is taken to be down."""


class Contaminated(Refused):
    """The evaluated split shows images that were trained on."""


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """One model or endpoint of several."""

    name: str = ""
    """What its row is called; empty takes the directory's name, or the model's at the endpoint."""
    model_dir: Path | None = None
    """A model directory, or a run's."""
    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint."""
    image_max_side: int | None = None
    """Longest image side in pixels for this one, as it was in training; None takes what all have."""

    def __post_init__(self) -> None:
        require((self.model_dir is None) != (self.endpoint is None), "models: each has either model_dir or endpoint")

    @property
    def title(self) -> str:
        """The name of its row and of its directory."""
        if self.name or self.model_dir is None:
            return self.name or (self.endpoint.model if self.endpoint else "")
        path = self.model_dir.resolve()
        return path.parent.name if path.name == "model" else path.name


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated on what: one `model_dir` or `endpoint`, or several `runs` and `models`."""

    export_dir: Path
    """The dataset version to evaluate on."""
    run_dir: Path
    """Where answers, evaluations and the comparison go."""
    model_dir: Path | None = None
    """A model directory to evaluate, or a run's."""
    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint to evaluate."""
    runs: tuple[str, ...] = ()
    """Several to compare: directories of models or runs, or NAME=DIRECTORY. The others are held against the first."""
    models: tuple[ComparedModel, ...] = ()
    """Further ones to compare, endpoints among them: [[models]] in the file."""
    split: Split = Split.TEST
    """Which side of the version."""
    dimensions: tuple[Dimension, ...] = DIMENSIONS
    """Which dimensions."""
    polarity: Polarity | None = None
    """What answers list. None: whatever the export says."""
    limit: int = 0
    """Evaluate the first so many samples only; 0 takes all."""
    max_completion_length: int = 256
    """Longest completion in tokens."""
    batch_records: int = 64
    """Records answered together by a model directory."""
    hard_file: Path | None = None
    """Ids of the records that count as hard, one per line. None looks for what the records say themselves."""
    train_export_dir: Path | None = None
    """What was trained on, to look for shared images. None: what the run directories say, and `export_dir`."""
    contamination: Literal["report", "refuse"] = "report"
    """What to do when images were trained on: say so, or stop before anything is asked."""
    same_pixels: bool = False
    """Find trained images by their pixels too, whatever file they are in. Decodes every image of the train split."""
    resamples: int = 2000
    """Bootstrap resamples behind every interval."""
    seed: int = 0
    """Of the bootstrap; answers are greedy."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to compute in."""
    threads: int = 0
    """Computing threads of torch; 0 takes one for a small model on a CPU, else torch's choice."""
    image_max_side: int | None = None
    """Longest image side in pixels, as it was in training."""

    def __post_init__(self) -> None:
        alone = self.model_dir is not None or self.endpoint is not None
        require(
            (self.model_dir is None or self.endpoint is None) and alone != bool(self.runs or self.models),
            "set either model_dir or endpoint (endpoint.base_url and endpoint.model), or several in runs and models",
        )
        for name in ("max_completion_length", "batch_records", "resamples"):
            require(getattr(self, name) >= 1, f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("limit", "threads"):
            require(getattr(self, name) >= 0, f"{name}: expected 0 or more, got {getattr(self, name)}")

    def subjects(self) -> list[ComparedModel]:
        """What is evaluated, each under a name of its own. ConfigRefused when two have one."""
        if not self.runs and not self.models:
            return [ComparedModel(model_dir=self.model_dir, endpoint=self.endpoint)]
        named = [run.partition("=") if "=" in run else ("", "", run) for run in self.runs]
        found = [ComparedModel(name=name, model_dir=Path(path)) for name, _, path in named] + list(self.models)
        names: dict[str, str] = {}
        for count, one in enumerate(found, start=1):
            # Their directories have to differ, too, also on a disk to which capitals are nothing.
            before = names.setdefault(_file_name(one.title).casefold(), one.title)
            require(
                len(names) == count,
                f"two models are called {before!r}: name them, as in NAME=DIRECTORY"
                if before == one.title
                else f"the models {before!r} and {one.title!r} would share a directory: name them apart",
            )
        return found


def main(config: EvaluateConfig) -> None:
    """Evaluate, write the files and print the table."""
    report = evaluate(config)
    print(comparison_markdown(report) if "models" in report else table(report))


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answer, grade, and write everything; what evaluation.json, or comparison.json for several, holds is returned.

    Raises ExportRefused, ModelRefused, EndpointFailed, or Contaminated.
    """
    subjects = config.subjects()
    open_export(config.export_dir)
    records = evaluated_records(config)
    hard_records(records, [], config.hard_file)  # a file that cannot be read is said before anything is asked
    for subject in subjects:
        if subject.endpoint is not None:
            subject.endpoint.key()  # a key that is missing is said once, before any request
    shared = [contamination(config, subject, records) for subject in subjects]
    for subject, found in zip(subjects, shared, strict=True):
        if found["count"] and config.contamination == "refuse":
            raise Contaminated(
                f"{config.export_dir}: {found['count']} images of the {config.split} split were trained on"
                + (f" by {subject.title}" if len(subjects) > 1 else "")
            )
    several = bool(config.runs or config.models)
    places = [config.run_dir / _file_name(subject.title) if several else config.run_dir for subject in subjects]
    answered = [_answer(config, subject, records, place) for subject, place in zip(subjects, places, strict=True)]
    predictions = [
        [predict(record, known[record.id].text, known[record.id].refused) for record in records] for known in answered
    ]
    rule, hard = hard_records(records, predictions, config.hard_file)
    reports = []
    for subject, place, known, some, found in zip(subjects, places, answered, predictions, shared, strict=True):
        report = _report(config, subject, some, found, [known[record.id] for record in records], rule, hard)
        rows = "".join(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n" for prediction in some)
        (place / PREDICTIONS).write_text(rows, encoding="utf-8", errors="replace")
        _write_json(place / EVALUATION, report)
        (place / "evaluation.md").write_text(evaluation_markdown(report), encoding="utf-8")
        reports.append(report)
    if not several:
        return reports[0]
    comparison = _comparison(config, reports, predictions)
    _write_json(config.run_dir / COMPARISON, comparison)
    (config.run_dir / "comparison.md").write_text(comparison_markdown(comparison), encoding="utf-8")
    draw_comparison(comparison, config.run_dir / "comparison.png")
    return comparison


def evaluated_records(config: EvaluateConfig) -> list[Record]:
    """The records of the split in these dimensions, of as many samples as are wanted."""
    records = read_split(config.export_dir, config.split, config.dimensions, config.polarity)
    if config.limit:
        kept = set(list(dict.fromkeys(record.sample_id for record in records))[: config.limit])
        records = [record for record in records if record.sample_id in kept]
    return records


def _report(
    config: EvaluateConfig,
    subject: ComparedModel,
    predictions: Sequence[Prediction],
    contaminated: dict[str, Any],
    answered: Sequence[Answered],
    rule: str,
    hard: set[str],
) -> dict[str, Any]:
    """What evaluation.json holds."""
    settings = {"resamples": config.resamples, "seed": config.seed}
    sides = {
        "hard": [one for one in predictions if one.record_id in hard],
        "easy": [one for one in predictions if one.record_id not in hard],
    }
    trained_on = set(contaminated.pop("records"))
    clean = [one for one in predictions if one.record_id not in trained_on]
    return {
        "name": subject.title,
        "model": _identity(config, subject),
        "export_version": read_manifest(config.export_dir).version_id,
        "split": config.split.value,
        "prompt_version": PROMPT_VERSIONS[PromptKind.ASK],
        "records": len(predictions),
        "samples": len({prediction.sample_id for prediction in predictions}),
        "figures": figures(predictions, **settings),
        "difficulty": {"rule": rule, **{side: _scores(some, **settings) for side, some in sides.items() if some}}
        if rule
        else None,
        "beats_constant": beats_constant(predictions, **settings).to_json(),
        "confusion": {"overall": confusion(predictions)}
        | {str(name): confusion(some) for name, some in _by_dimension(predictions).items()},
        "letters": letter_counts(predictions),
        "parsable": sum(prediction.refusal is None for prediction in predictions) / len(predictions),
        "refusals": dict(Counter(prediction.refusal for prediction in predictions if prediction.refusal)),
        "not_answered": sorted({one.refused for one in answered if one.refused})[:5],
        "images_trained_on": contaminated | {"records": len(trained_on)},
        "figures_without_them": _scores(clean, **settings) if trained_on and clean else None,
        "tokens": {
            "prompt": sum(one.prompt_tokens for one in answered),
            "completion": sum(one.completion_tokens for one in answered),
        },
        "seconds": sum(one.seconds for one in answered),
        "settings": settings_json(config),
    }


def _comparison(
    config: EvaluateConfig, reports: list[dict[str, Any]], predictions: Sequence[Sequence[Prediction]]
) -> dict[str, Any]:
    """What comparison.json holds: a row per model, each held against the first, record by record."""
    kept = (
        *("name", "model", "figures", "difficulty", "beats_constant", "parsable", "refusals"),
        *("images_trained_on", "tokens", "seconds"),
    )
    rows = []
    for report, some in zip(reports, predictions, strict=True):
        row = {name: report[name] for name in kept}
        if report is not reports[0]:
            row["over_first"] = {
                figure: paired_difference(
                    predictions[0], some, variant, resamples=config.resamples, seed=config.seed
                ).to_json()
                for figure, variant in FIGURES.items()
            }
        rows.append(row)
    shared = ("export_version", "split", "prompt_version", "records", "samples")
    return {name: reports[0][name] for name in shared} | {"models": rows, "settings": settings_json(config)}


def _answer(
    config: EvaluateConfig, subject: ComparedModel, records: Sequence[Record], place: Path
) -> dict[str, Answered]:
    """What came of asking about every record, by its id; what was asked before is not asked again."""
    of = {
        "export_version": read_manifest(config.export_dir).version_id,
        "polarity": records[0].polarity.value,
        "prompt_version": PROMPT_VERSIONS[PromptKind.ASK],
        "max_completion_length": config.max_completion_length,
        "image_max_side": _image_side(config, subject),
        "model": _identity(config, subject),
    }
    log = AnswerLog(place / ANSWERS, of)
    progress = Progress(f"evaluate {subject.title}")
    if log.put_aside:
        progress.say(f"{place}: answers of another evaluation were there; they are now in {log.put_aside.name}")
    missing = [record for record in records if record.id not in log.known]
    if log.known and len(missing) < len(records):
        progress.say(f"{subject.title}: {len(records) - len(missing)} of {len(records)} were answered before")
    if not missing:
        return log.known
    began = time.monotonic()
    by_model = subject.model_dir is not None
    answers = answers_of_model(config, subject, missing) if by_model else _by_endpoint(config, subject, missing, log)
    try:
        # Closed here, whatever happens: an endpoint's requests under way are waited for, and kept.
        with contextlib.closing(answers):
            for done, (record, answered) in enumerate(answers, start=1):
                log.add(record.id, answered)
                progress.show(done / len(missing), (time.monotonic() - began) / done * (len(missing) - done))
    except EndpointFailed as failed:
        told = sum(record.id in log.known and not log.known[record.id].passing for record in records)
        raise EndpointFailed(f"{failed}; {told} of {len(records)} answers are kept: the same command goes on") from None
    return log.known


def answers_of_model(
    config: EvaluateConfig, subject: ComparedModel, records: Sequence[Record]
) -> Generator[tuple[Record, Answered]]:
    """A model directory's greedy completions, in order."""
    assert subject.model_dir is not None  # noqa: S101 - the settings saw to it
    screener = load_screener(find_model(subject.model_dir), config.device, config.dtype)
    choose_threads(screener, config.threads)
    store = ImageStore(screener, config.export_dir, _image_side(config, subject))
    sampling = Sampling(max_new_tokens=config.max_completion_length)
    for at in range(0, len(records), config.batch_records):
        began = time.monotonic()
        batch = records[at : at + config.batch_records]
        prompts = [make_example(record, PromptKind.ASK).prompt for record in batch]
        written = generate(screener, prompts, [store.of(record) for record in batch], sampling)
        seconds = (time.monotonic() - began) / len(batch)
        for record, (one,) in zip(batch, written, strict=True):
            yield record, Answered(text=one.text, completion_tokens=len(one.token_ids), seconds=seconds)


def _by_endpoint(
    config: EvaluateConfig, subject: ComparedModel, records: Sequence[Record], log: AnswerLog
) -> Generator[tuple[Record, Answered]]:
    """The endpoint's completions as they come; a request that it refuses counts as no answer.

    However it ends, what the requests under way still bring is logged: it is paid for.
    """
    endpoint = subject.endpoint
    assert endpoint is not None  # noqa: S101 - the settings saw to it

    def ask(record: Record) -> Answered:
        prompt = make_example(record, PromptKind.ASK).prompt
        images = [data_uri(image.path, stored_bytes(config.export_dir, image)) for image in record.images]
        try:
            return ask_endpoint(endpoint, prompt, images, max_tokens=config.max_completion_length, stopping=stopping)
        except RequestRefused as refused:
            return Answered(text="", refused=str(refused), passing=isinstance(refused, RequestFailed))

    some_answered = any(not one.refused for one in log.known.values())
    refused: list[tuple[Record, Answered]] = []
    failed, stopping = 0, threading.Event()
    asked: dict[Future[Answered], Record] = {}
    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        try:
            asked.update((pool.submit(ask, record), record) for record in records)
            for future in as_completed(asked):
                record, answered = asked[future], future.result()
                failed = failed + 1 if answered.passing else failed if answered.refused else 0
                if failed >= _FAILED_IN_A_ROW:
                    raise EndpointFailed(f"{answered.refused}; so did {failed} requests in a row")
                if answered.refused and not some_answered:
                    refused.append((record, answered))
                    if len(refused) >= min(_REFUSED_AT_FIRST, len(records)):
                        raise EndpointFailed(f"{refused[0][1].refused}: it has answered nothing yet")
                    continue
                some_answered = True
                yield from refused
                refused.clear()
                yield record, answered
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            for future, record in asked.items():
                if record.id in log.known or future.cancelled() or future.exception() is not None:
                    continue
                if not future.result().refused:
                    log.add(record.id, future.result())


def _image_side(config: EvaluateConfig, subject: ComparedModel) -> int | None:
    trained = run_settings(subject.model_dir).get("image_max_side") if subject.model_dir else None
    return subject.image_max_side or config.image_max_side or trained


def _identity(config: EvaluateConfig, subject: ComparedModel) -> dict[str, Any]:
    """What makes two models the same: where an endpoint is and what is asked of it, or a directory's weights and what
    is computed in."""
    if subject.endpoint is not None:
        endpoint = subject.endpoint
        return {"base_url": endpoint.base_url, "model": endpoint.model, "options": endpoint.options}
    assert subject.model_dir is not None  # noqa: S101 - the settings saw to it
    directory = find_model(subject.model_dir)
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        # Not the bytes, which may be many gigabytes.
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    dtype = str(resolve_dtype(config.dtype, resolve_device(config.device))).removeprefix("torch.")
    return {"model_dir": str(subject.model_dir), "weights": digest.hexdigest()[:16], "dtype": dtype}


def contamination(config: EvaluateConfig, subject: ComparedModel, records: Sequence[Record]) -> dict[str, Any]:
    """Which images of the evaluated records some train split shows: ``count``, the first ``sha256``, in ``exports``,
    all ids of ``records`` that show one, and which exports were trained on but are ``not_found``."""
    exports = [config.train_export_dir] if config.train_export_dir else [config.export_dir]
    gone: list[Path] = []
    if not config.train_export_dir and subject.model_dir:
        others = [path for path in _training_exports(subject.model_dir) if path.resolve() != exports[0].resolve()]
        gone = [path for path in others if not (path / MANIFEST).exists()]
        exports += [path for path in others if path not in gone]
    pixels_in = config.export_dir if config.same_pixels else None
    found = sorted({one for export in exports for one in shared_images(records, export, pixels_in=pixels_in)})
    seen = set(found)
    shown = [record.id for record in records if any(image.sha256 in seen for image in record.images)]
    return {
        "count": len(found),
        "sha256": found[:20],
        "exports": [str(path) for path in exports],
        "not_found": [str(path) for path in gone],
        "records": shown,
    }


def _training_exports(model_dir: Path) -> list[Path]:
    """The exports that a model was trained on, and those its start was, as far as their runs are still there. A path is
    as the run was given it: a relative one is looked for from here."""
    exports: list[Path] = []
    seen: set[Path] = set()
    while model_dir.resolve() not in seen and (settings := run_settings(model_dir)):
        seen.add(model_dir.resolve())
        export = Path(settings["export_dir"])
        if export not in exports:
            exports.append(export)
        model_dir = Path(settings["model_dir"])
    return exports


def _file_name(title: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", title).strip(".-") or "model"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


def _by_dimension(predictions: Sequence[Prediction]) -> dict[Dimension, list[Prediction]]:
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups[prediction.dimension].append(prediction)
    return {name: groups[name] for name in DIMENSIONS if name in groups}


def figures(predictions: Sequence[Prediction], *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Per dimension and overall: the number of records and every figure with its interval and its chance levels."""
    parts = _by_dimension(predictions) | {OVERALL: list(predictions)}
    return {str(name): _scores(some, resamples=resamples, seed=seed) for name, some in parts.items()}


def _scores(some: Sequence[Prediction], *, resamples: int, seed: int) -> dict[str, Any]:
    """The number of records, and every figure with its interval and its chance levels."""
    found: dict[str, Any] = {"records": len(some)}
    for figure, variant in FIGURES.items():
        interval = mean_interval(
            [one.score(variant) for one in some], [one.sample_id for one in some], resamples=resamples, seed=seed
        )
        found[figure] = {**interval.to_json(), "chance": asdict(chance_of(variant, some))}
    return found


def paired_difference(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    variant: ScoreVariant = ScoreVariant.EXACT,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """How much better `second` is than `first` on the same records, record by record, samples resampled together.

    ValueError when they are predictions about different records.
    """
    before = {one.record_id: one for one in first}
    if before.keys() != {one.record_id for one in second} or len(before) != len(second):
        raise ValueError("a paired difference needs predictions about the same records")
    differences = [one.score(variant) - before[one.record_id].score(variant) for one in second]
    return mean_interval(differences, [one.sample_id for one in second], resamples=resamples, seed=seed)


def beats_constant(predictions: Sequence[Prediction], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Exact match minus that of the best constant answer of each dimension and candidate count.

    The constant is chosen with the answers in view and held while resampling, one per dimension: harder to beat than
    one for all. An interval above 0 says that the images were looked at.
    """
    golds: dict[tuple[str, int], Counter[Answer]] = defaultdict(Counter)
    for one in predictions:
        golds[one.dimension, one.candidates][one.gold] += 1
    best = {key: max(all_answers(key[1]), key=lambda answer: counted[answer]) for key, counted in golds.items()}
    differences = [
        one.score(ScoreVariant.EXACT) - float(best[one.dimension, one.candidates] == one.gold) for one in predictions
    ]
    return mean_interval(differences, [one.sample_id for one in predictions], resamples=resamples, seed=seed)


def shared_images(records: Sequence[Record], train_export_dir: Path, *, pixels_in: Path | None = None) -> list[str]:
    """The sha256 of images of `records` that train records of an export also show, sorted.

    With `pixels_in`, the export that `records` are of, also those that stand there in another file: with other
    metadata, or losslessly encoded anew.
    """
    trained = {image.sha256: image for record in read_records(train_export_dir, Split.TRAIN) for image in record.images}
    judged = {image.sha256: image for record in records for image in record.images}
    shared = trained.keys() & judged.keys()
    if pixels_in is not None:
        # Pictures of one size only can be the same: most are ruled out without a look into them.
        sizes = {(image.width, image.height) for image in judged.values()}
        alike = [image for image in trained.values() if (image.width, image.height) in sizes]
        with ThreadPoolExecutor() as pool:
            known = set(pool.map(lambda image: _pixels_sha256(train_export_dir / image.path), alike))
            told = pool.map(lambda image: _pixels_sha256(pixels_in / image.path), judged.values())
            shared |= {sha256 for sha256, pixels in zip(judged, told, strict=True) if pixels in known}
    return sorted(shared)


def _pixels_sha256(path: Path) -> str:
    try:
        image = read_image(path.read_bytes())
    except OSError as error:
        raise ExportRefused(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ExportRefused(f"{path}: {error}") from None
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def table(report: dict[str, Any]) -> str:
    """The report for people: a line per dimension, every figure with its interval and its three chance levels."""
    width = max(map(len, report["figures"]))
    lines = [f"{'':<{width}}  records  " + "  ".join(f"{f'{name} [95 %] chance':<37}" for name in FIGURES).rstrip()]
    for name, found in report["figures"].items():
        cells = "  ".join(f"{_cell(found[figure]):<37}" for figure in FIGURES)
        lines.append(f"{name:<{width}}  {found['records']:>7}  {cells}".rstrip())
    lines.append("chance: uniform guess/best constant answer/the same answers dealt out at random")
    gain = report["beats_constant"]
    lines.append(f"exact over best constants {gain['value']:+.3f} [{gain['low']:+.3f} {gain['high']:+.3f}]")
    refused = ", ".join(f"{reason} {times}" for reason, times in sorted(report["refusals"].items()))
    lines.append(f"readable {report['parsable']:.1%}" + (f" (refused: {refused})" if refused else ""))
    if count := report["images_trained_on"]["count"]:
        told = f"warning: {count} images of this split were trained on"
        if clean := report["figures_without_them"]:
            told += f"; exact on the {clean['records']} records without them {clean['exact']['value']:.3f}"
        lines.append(told)
    lines += [
        f"warning: {export}, which it was trained on, is not here: train_export_dir says where it is"
        for export in report["images_trained_on"]["not_found"]
    ]
    return "\n".join(lines)


def _cell(figure: dict[str, Any]) -> str:
    levels = "/".join(f"{level:.3f}" for level in figure["chance"].values())
    return f"{figure['value']:.3f} [{figure['low']:.3f} {figure['high']:.3f}] {levels}"
