"""How good a screener or an endpoint is on one split: scores beside what chance would get, with intervals.

Greedy answers, graded by the function that is the reward. Writes ``evaluation.json`` and ``predictions.jsonl`` and
prints one table. `paired_difference` and `beats_constant` compare predictions. Not here: scores (contract/scores.py),
intervals (statistics.py).
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import Refused, require, settings_json
from trainer.contract.answers import Answer
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity, Split
from trainer.contract.exports import read_manifest, read_records
from trainer.contract.prompts import PROMPT_VERSIONS, PromptKind
from trainer.contract.records import Record
from trainer.contract.scores import RewardWeights, ScoreVariant, all_answers, chance_levels, grade, score
from trainer.data import make_example, read_split
from trainer.endpoint import EndpointConfig, ask_endpoint
from trainer.images import ImageStore
from trainer.model import load_screener
from trainer.progress import Progress
from trainer.rollout import Sampling, choose_threads, generate
from trainer.statistics import Interval, mean_interval

EVALUATION, PREDICTIONS = "evaluation.json", "predictions.jsonl"
OVERALL = "overall"
FIGURES: dict[str, ScoreVariant] = {
    "exact": ScoreVariant.EXACT,
    "dpa": ScoreVariant.BALANCED,
    "per_candidate": ScoreVariant.HAMMING,
}
"""The figures of the table. Per candidate is the share of candidates judged right."""


class Contaminated(Refused):
    """The evaluated split shows images that were trained on."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated on what. Set either `model_dir` or `endpoint`."""

    export_dir: Path
    """The dataset version to evaluate on."""
    run_dir: Path
    """Where evaluation.json and predictions.jsonl go."""
    model_dir: Path | None = None
    """A model directory to evaluate."""
    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint to evaluate."""
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
    train_export_dir: Path | None = None
    """What the model was trained on, to look for shared images. None: the train split of `export_dir`."""
    contamination: Literal["report", "refuse"] = "report"
    """What to do when images were trained on."""
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
        require(
            (self.model_dir is None) != (self.endpoint is None),
            "set either model_dir or endpoint (endpoint.base_url and endpoint.model)",
        )
        for name in ("max_completion_length", "batch_records", "resamples"):
            require(getattr(self, name) >= 1, f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("limit", "threads"):
            require(getattr(self, name) >= 0, f"{name}: expected 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One graded answer: a row of predictions.jsonl."""

    record_id: str
    sample_id: str
    dimension: str
    candidates: int
    gold: Answer
    answer: Answer | None
    refusal: str | None
    text: str

    def score(self, variant: ScoreVariant) -> float:
        """What this answer scores."""
        return score(variant, self.answer, self.gold, self.candidates)

    def to_json(self) -> dict[str, Any]:
        """As it stands in predictions.jsonl."""
        return asdict(self) | {
            "gold": sorted(self.gold),
            "answer": None if self.answer is None else sorted(self.answer),
            **{name: self.score(variant) for name, variant in FIGURES.items()},
        }


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a predictions.jsonl. Refused names the file when it is not one."""
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                fields = {name: row[name] for name in Prediction.__slots__}
                answer = None if row["answer"] is None else frozenset(row["answer"])
                found.append(Prediction(**fields | {"gold": frozenset(row["gold"]), "answer": answer}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path}: cannot be read as predictions ({error})") from None
    return found


def main(config: EvaluateConfig) -> None:
    """Evaluate, write both files and print the table."""
    report = evaluate(config)
    print(table(report))


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answer, grade, and write evaluation.json and predictions.jsonl; what evaluation.json holds is returned.

    Raises ExportRefused, ModelRefused, EndpointFailed, or Contaminated.
    """
    began = time.monotonic()
    manifest = read_manifest(config.export_dir)
    records = read_split(config.export_dir, config.split, config.dimensions, config.polarity)
    if config.limit:
        kept = set(list(dict.fromkeys(record.sample_id for record in records))[: config.limit])
        records = [record for record in records if record.sample_id in kept]
    shared = shared_images(records, config.train_export_dir or config.export_dir)
    if shared and config.contamination == "refuse":
        raise Contaminated(f"{config.export_dir}: {len(shared)} images of the {config.split} split were trained on")
    predictions = [predict(record, text) for record, text in zip(records, answer_records(config, records), strict=True)]
    report = {
        "export_version": manifest.version_id,
        "split": config.split.value,
        "prompt_version": PROMPT_VERSIONS[PromptKind.ASK],
        "records": len(predictions),
        "samples": len({prediction.sample_id for prediction in predictions}),
        "figures": figures(predictions, resamples=config.resamples, seed=config.seed),
        "beats_constant": beats_constant(predictions, resamples=config.resamples, seed=config.seed).to_json(),
        "parsable": sum(prediction.refusal is None for prediction in predictions) / len(predictions),
        "refusals": dict(Counter(prediction.refusal for prediction in predictions if prediction.refusal)),
        "images_trained_on": {"count": len(shared), "sha256": shared[:20]},
        "seconds": time.monotonic() - began,
        "settings": settings_json(config),
    }
    config.run_dir.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n" for prediction in predictions)
    (config.run_dir / PREDICTIONS).write_text(rows, encoding="utf-8")
    (config.run_dir / EVALUATION).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def answer_records(config: EvaluateConfig, records: Sequence[Record]) -> Iterator[str]:
    """Each record's greedy completion, in order."""
    progress = Progress("evaluate")
    began = time.monotonic()
    if config.model_dir is not None:
        texts = _by_model(config, config.model_dir, records)
    elif config.endpoint is not None:
        texts = _by_endpoint(config, config.endpoint, records)
    else:
        raise AssertionError("the settings name one of the two")
    for done, text in enumerate(texts, start=1):
        progress.show(done / len(records), (time.monotonic() - began) / done * (len(records) - done))
        yield text


def _by_model(config: EvaluateConfig, model_dir: Path, records: Sequence[Record]) -> Iterator[str]:
    screener = load_screener(model_dir, config.device, config.dtype)
    choose_threads(screener, config.threads)
    store = ImageStore(screener, config.export_dir, config.image_max_side)
    sampling = Sampling(max_new_tokens=config.max_completion_length)
    for at in range(0, len(records), config.batch_records):
        batch = records[at : at + config.batch_records]
        prompts = [make_example(record, PromptKind.ASK).prompt for record in batch]
        for (written,) in generate(screener, prompts, [store.of(record) for record in batch], sampling):
            yield written.text


def _by_endpoint(config: EvaluateConfig, endpoint: EndpointConfig, records: Sequence[Record]) -> Iterator[str]:
    def answer(record: Record) -> str:
        prompt = make_example(record, PromptKind.ASK).prompt
        paths = [config.export_dir / image.path for image in record.images]
        return ask_endpoint(endpoint, prompt, paths, max_tokens=config.max_completion_length)

    endpoint.key()  # a key that is missing is said once, before any request
    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        try:
            yield from pool.map(answer, records)
        finally:
            pool.shutdown(cancel_futures=True)


def predict(record: Record, text: str) -> Prediction:
    """A completion about a record, graded."""
    found = grade(text, record.answer, len(record.candidates), RewardWeights())
    return Prediction(
        record_id=record.id,
        sample_id=record.sample_id,
        dimension=record.dimension.value,
        candidates=len(record.candidates),
        gold=record.answer,
        answer=found.answer,
        refusal=found.refusal.value if found.refusal else None,
        text=text,
    )


def figures(predictions: Sequence[Prediction], *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Per dimension and overall: the number of records and every figure with its interval and its chance levels."""
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups[prediction.dimension].append(prediction)
    parts = {name: groups[name] for name in DIMENSIONS if name in groups} | {OVERALL: list(predictions)}
    found: dict[str, Any] = {}
    for name, some in parts.items():
        found[str(name)] = {"records": len(some)}
        for figure, variant in FIGURES.items():
            interval = mean_interval(
                [one.score(variant) for one in some], [one.sample_id for one in some], resamples=resamples, seed=seed
            )
            chance = chance_levels(
                variant, [one.answer for one in some], [one.gold for one in some], [one.candidates for one in some]
            )
            found[str(name)][figure] = {**interval.to_json(), "chance": asdict(chance)}
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


def shared_images(records: Sequence[Record], train_export_dir: Path) -> list[str]:
    """The sha256 of images of `records` that train records of an export also show, sorted."""
    trained = {image.sha256 for record in read_records(train_export_dir, Split.TRAIN) for image in record.images}
    judged = {image.sha256 for record in records for image in record.images}
    return sorted(trained & judged)


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
        lines.append(f"warning: {count} images of this split were trained on")
    return "\n".join(lines)


def _cell(figure: dict[str, Any]) -> str:
    levels = "/".join(f"{level:.3f}" for level in figure["chance"].values())
    return f"{figure['value']:.3f} [{figure['low']:.3f} {figure['high']:.3f}] {levels}"
