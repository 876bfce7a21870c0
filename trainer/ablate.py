"""What each stage of training is worth: base, SFT, GRPO by exact match, by DPA, with hard cases; over several seeds.

For every seed one SFT run, and from its model three GRPO runs with the same number of rollouts (a mining pass counts).
All are evaluated on the same held-out records; differences are paired, their intervals resample seeds and, within
each, samples. The same records are then shown with image sets dealt out anew: who looks at them falls to chance.
Going on where it was stopped costs nothing twice. Reads export directories only; it draws nothing.
Not here: training (sft.py, grpo.py), scoring (evaluate.py), drawing scenes (benchmarks/ablation.py).
"""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trainer import grpo, sft
from trainer.checkpoint import METRICS, MODEL, environment
from trainer.config import Refused, load_config, require, settings_json
from trainer.confusion import hard_records
from trainer.contract.dimensions import DIMENSIONS, Split
from trainer.contract.records import Record
from trainer.contract.scores import ScoreVariant
from trainer.data import open_export, read_split
from trainer.evaluate import (
    EVALUATION,
    OVERALL,
    ComparedModel,
    EvaluateConfig,
    answers_of_model,
    evaluate,
    evaluated_records,
)
from trainer.grpo import GRPOConfig
from trainer.predictions import PREDICTIONS, Prediction, chance_of, predict, read_predictions
from trainer.progress import Progress, clock
from trainer.report import COLOURS
from trainer.sft import SFTConfig
from trainer.statistics import nested_interval

RESULT, TABLE, PLOT = "ablation.json", "ablation.md", "ablation.png"
SETTINGS, TIMES = "settings.json", "times.jsonl"
EXCHANGED = "exchanged"
EASY, HARD = "easy", "hard"
MISSED, GOT = "missed by SFT", "got by SFT"


@dataclass(frozen=True, slots=True)
class Arm:
    """A row of the table: a GRPO run by the overrides that make it what it is."""

    name: str
    title: str
    overrides: tuple[str, ...] = ()


BASE, SFT = Arm("base", "base"), Arm("sft", "SFT")
GRPO_ARMS = (
    Arm("grpo", "GRPO, exact-match reward", ("hard_cases=false", "reward.variant=exact")),
    Arm("dpa", "GRPO, DPA reward", ("hard_cases=false",)),
    Arm("hcm", "HCM-GRPO: DPA reward and hard cases", ("hard_cases=true",)),
)
ARMS = (BASE, SFT, *GRPO_ARMS)
DIFFERENCES = (
    ("sft", "base"), ("grpo", "sft"), ("dpa", "sft"), ("hcm", "sft"), ("dpa", "grpo"), ("hcm", "dpa"), ("hcm", "grpo")
)  # fmt: skip
"""Pairs (later, earlier) whose difference is told."""


_PARTS = 2 * len(ARMS)
"""Of a seed: every arm but the base is trained, every one is evaluated, and the last one with images exchanged."""
_NOT_OF_FIGURES = ("seeds", "publish_dir", "command")
"""Settings that change no run: a directory may be gone on with under others."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Which data, which settings, which seeds. Those of SFT and GRPO stand in their own files."""

    export_dir: Path
    """The dataset version. ``{seed}`` in it stands for the seed: then every seed has scenes of its own."""
    model_dir: Path
    """The base model."""
    run_dir: Path
    """Where everything goes; a directory of the same settings is gone on with."""
    sft_config: Path
    """Settings of SFT in TOML, without directories and seed."""
    grpo_config: Path
    """Settings of GRPO in TOML, without directories, seed, reward.variant and hard_cases. `steps` is the budget of
    rollouts: a run with a mining pass makes as many steps less."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One whole ladder of runs each."""
    split: Split = Split.TEST
    """What is evaluated on."""
    limit: int = 0
    """Evaluate the first so many samples only; 0 takes all."""
    publish_dir: Path | None = None
    """Where table, figures and plot are copied when all is done."""
    command: str = ""
    """The command to name under the table; empty names this one with its settings."""
    resamples: int = 2000
    """Bootstrap resamples behind every interval."""

    def __post_init__(self) -> None:
        require(bool(self.seeds), "seeds: expected at least one")
        require(len(set(self.seeds)) == len(self.seeds), "seeds: expected different ones")
        require(self.limit >= 0, f"limit: expected 0 or more, got {self.limit}")
        require(self.resamples >= 1, f"resamples: expected 1 or more, got {self.resamples}")

    def export_of(self, seed: int) -> Path:
        """The version one seed learns from and is evaluated on."""
        return Path(str(self.export_dir).replace("{seed}", str(seed)))


def main(config: AblateConfig) -> None:
    """Run what is missing, then write and print the table. A stop loses at most the run in progress since its last
    checkpoint."""
    progress = Progress("ablate")
    check(config)
    began, todo = time.monotonic(), _Todo(len(config.seeds) * _PARTS)
    for seed in config.seeds:
        for name, unit in units(config, seed):
            started, fresh = time.monotonic(), True
            try:
                fresh = unit()
            finally:
                if fresh:
                    _note_time(config, seed, name, time.monotonic() - started)
            todo.done(fresh)
            if fresh:
                progress.say(f"ablate: seed {seed}, {name}; {clock(time.monotonic() - began)} so far{todo.left()}")
    result = compare(config)
    (config.run_dir / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (config.run_dir / TABLE).write_text(table(result), encoding="utf-8")
    draw(result, config.run_dir / PLOT)
    if config.publish_dir:
        config.publish_dir.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, TABLE, PLOT):
            shutil.copyfile(config.run_dir / name, config.publish_dir / name)
    print(table(result))


def _note_time(config: AblateConfig, seed: int, part: str, seconds: float) -> None:
    """A row of times.jsonl; a part that is broken off and gone on with has several."""
    with (config.run_dir / TIMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seed": seed, "part": part, "seconds": round(seconds, 2)}) + "\n")


class _Todo:
    """How long what is left may take, by the mean of what was done this time."""

    def __init__(self, units: int) -> None:
        self._units, self._seen, self._fresh, self._began = units, 0, 0, time.monotonic()

    def done(self, fresh: bool) -> None:
        self._seen += 1
        self._fresh += fresh

    def left(self) -> str:
        each = (time.monotonic() - self._began) / max(1, self._fresh)
        return f", about {clock(each * (self._units - self._seen))} left"


def check(config: AblateConfig) -> None:
    """Every setting and export, before anything is computed; and that the directory was begun with these settings."""
    given = {name: value for name, value in settings_json(config).items() if name not in _NOT_OF_FIGURES}
    for name, file in (("sft", config.sft_config), ("grpo", config.grpo_config)):
        try:
            given[f"{name} settings"] = file.read_text(encoding="utf-8")
        except OSError as error:
            raise Refused(f"{name}_config: {file}: {error.strerror}") from None
    for seed in config.seeds:
        open_export(config.export_of(seed))
        sft_settings(config, seed)
        for arm in GRPO_ARMS:
            grpo_settings(config, seed, arm)
    begun = config.run_dir / SETTINGS
    config.run_dir.mkdir(parents=True, exist_ok=True)
    if not begun.exists():
        # Several may begin at the same time, each with seeds of its own: whoever looks finds nothing or the whole file.
        partial = begun.with_name(f"{SETTINGS}.{os.getpid()}")
        partial.write_text(json.dumps(given, indent=1) + "\n", encoding="utf-8")
        partial.replace(begun)
    before = json.loads(begun.read_text(encoding="utf-8"))
    if differing := sorted(name for name in given if before.get(name) != given[name] and name != "run_dir"):
        raise Refused(f"run_dir: {config.run_dir} was begun with other settings ({', '.join(differing)})")


def units(config: AblateConfig, seed: int) -> list[tuple[str, Callable[[], bool]]]:
    """What one seed takes, in order; each does nothing and says False when it was done before."""
    home = config.run_dir / f"seed-{seed}"

    def judge(arm: Arm, model: Path) -> tuple[str, Callable[[], bool]]:
        return f"{arm.name} evaluated", lambda: _evaluate(config, seed, model, home / f"evaluate-{arm.name}")

    def improve(arm: Arm) -> tuple[str, Callable[[], bool]]:
        return arm.title, lambda: _train(grpo.main, grpo_settings(config, seed, arm))

    found = [judge(BASE, config.model_dir), ("SFT", lambda: _train(sft.main, sft_settings(config, seed)))]
    found.append(judge(SFT, home / SFT.name / MODEL))
    for arm in GRPO_ARMS:
        found += [improve(arm), judge(arm, home / arm.name / MODEL)]
    last = home / GRPO_ARMS[-1].name / MODEL
    found.append(("images exchanged", lambda: _evaluate_exchanged(config, seed, last, home / f"evaluate-{EXCHANGED}")))
    return found


def sft_settings(config: AblateConfig, seed: int) -> SFTConfig:
    """SFT of one seed."""
    home = config.run_dir / f"seed-{seed}"
    return load_config(SFTConfig, config.sft_config, _paths(config, seed, config.model_dir, home / SFT.name))


def grpo_settings(config: AblateConfig, seed: int, arm: Arm) -> GRPOConfig:
    """GRPO of one seed in one arm; a mining pass is paid for with steps: no arm makes more rollouts than another."""
    home = config.run_dir / f"seed-{seed}"
    paths = _paths(config, seed, home / SFT.name / MODEL, home / arm.name)
    settings = load_config(GRPOConfig, config.grpo_config, [*paths, *arm.overrides])
    require(settings.steps > 0, f"{config.grpo_config}: set steps: arms are compared at equal rollouts, not minutes")
    if not settings.hard_cases or not settings.mining.pass_generations:
        return settings
    records = read_split(settings.export_dir, Split.TRAIN, settings.dimensions, settings.polarity)
    mined = min(settings.mining.pass_records or len(records), len(records)) * settings.mining.pass_generations
    less = math.ceil(mined / (settings.prompts_per_step * settings.num_generations))
    require(less < settings.steps, f"mining.pass_generations: the pass costs {less} of {settings.steps} steps")
    return replace(settings, steps=settings.steps - less)


def _paths(config: AblateConfig, seed: int, model: Path, run_dir: Path) -> list[str]:
    return [
        f"export_dir={config.export_of(seed)}",
        f"model_dir={model}",
        f"run_dir={run_dir}",
        f"seed={seed}",
        "resume=true",
    ]


def _train(method: Callable[[Any], None], settings: SFTConfig | GRPOConfig) -> bool:
    if (settings.run_dir / MODEL).exists():
        return False
    method(settings)
    return True


def _evaluation(config: AblateConfig, seed: int, model: Path, where: Path) -> EvaluateConfig:
    settings = grpo_settings(config, seed, GRPO_ARMS[0])
    return EvaluateConfig(
        export_dir=config.export_of(seed),
        run_dir=where,
        model_dir=model,
        split=config.split,
        dimensions=settings.dimensions,
        polarity=settings.polarity,
        limit=config.limit,
        max_completion_length=settings.max_completion_length,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        image_max_side=settings.image_max_side,
        resamples=config.resamples,
    )


def _evaluate(config: AblateConfig, seed: int, model: Path, where: Path) -> bool:
    if (where / EVALUATION).exists():
        return False
    evaluate(_evaluation(config, seed, model, where))
    return True


def _evaluate_exchanged(config: AblateConfig, seed: int, model: Path, where: Path) -> bool:
    """Every record judged by the images that fell to it among those of its dimension, graded by its own answer."""
    if (where / PREDICTIONS).exists():
        return False
    settings = _evaluation(config, seed, model, where)
    records = exchange_images(evaluated_records(settings), seed)
    answered = answers_of_model(settings, ComparedModel(model_dir=model), records)
    found = [predict(record, one.text) for record, one in answered]
    where.mkdir(parents=True, exist_ok=True)
    partial = where / f"{PREDICTIONS}.partial"
    partial.write_text("".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found), encoding="utf-8")
    partial.replace(where / PREDICTIONS)
    return True


def exchange_images(records: Sequence[Record], seed: int) -> list[Record]:
    """The records with image sets dealt out anew among those of one dimension and number of candidates; answers stay.

    Every order is as likely as every other, so that a record may be dealt its own: then the mean score of who answers
    by the images alone is exactly that of their answers dealt out at random (`ChanceLevels.permuted`).
    """
    rng = random.Random(f"exchange {seed}")  # noqa: S311 - an order, not a secret
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        alike[record.dimension, len(record.candidates)].append(place)
    exchanged = list(records)
    for places in alike.values():
        for place, other in zip(places, rng.sample(places, len(places)), strict=True):
            exchanged[place] = replace(
                records[place], original=records[other].original, candidates=records[other].candidates
            )
    return exchanged


def compare(config: AblateConfig) -> dict[str, Any]:
    """Every figure of the table, from the predictions of all arms and seeds."""
    found = {
        name: [
            read_predictions(config.run_dir / f"seed-{seed}" / f"evaluate-{name}" / PREDICTIONS)
            for seed in config.seeds
        ]
        for name in (*(arm.name for arm in ARMS), EXCHANGED)
    }
    rule, hard = _hard(config)
    parts = _parts(found[SFT.name], hard)

    def interval(rows: Sequence[_Values]) -> dict[str, float] | None:
        kept = [row for row in rows if row[0]]
        return nested_interval(kept, resamples=config.resamples).to_json() if kept else None

    arms = {}
    for arm in ARMS:
        runs = found[arm.name]
        arms[arm.name] = {
            "title": arm.title,
            "exact": {
                part: interval([_scores(run, ids=of_run) for run, of_run in zip(runs, ids, strict=True)])
                for part, ids in parts.items()
            },
            "dpa": interval([_scores(run, ScoreVariant.BALANCED) for run in runs]),
            "parsable": sum(one.refusal is None for run in runs for one in run) / sum(map(len, runs)),
            "exact_per_seed": [_mean(_scores(run)[0]) for run in runs],
            **_costs(config, arm),
        }
    differences = []
    for later, earlier in DIFFERENCES:
        pairs = list(zip(found[earlier], found[later], strict=True))
        # What SFT gets wrong is chosen by SFT's own luck: only those that began where it ended may be compared there.
        fair = {part: ids for part, ids in parts.items() if part not in (MISSED, GOT) or earlier not in ("base", "sft")}
        differences.append(
            {
                "later": later,
                "earlier": earlier,
                "exact": {
                    part: interval([_gains(*pair, ids=of_run) for pair, of_run in zip(pairs, ids, strict=True)])
                    for part, ids in fair.items()
                },
                "dpa": interval([_gains(*pair, ScoreVariant.BALANCED) for pair in pairs]),
                "per_seed": [_mean(_gains(*pair)[0]) for pair in pairs],
            }
        )
    return {
        "seeds": list(config.seeds),
        "records_per_seed": [len(run) for run in found[SFT.name]],
        "hard": {"rule": rule, "records": sum(map(len, hard))} if rule else None,
        "export_versions": [open_export(config.export_of(seed)).version_id for seed in config.seeds],
        "arms": arms,
        "differences": differences,
        "images": looks_at_images(found[EXCHANGED], found[GRPO_ARMS[-1].name], config.resamples),
        "command": config.command or _command(config),
        "time": _time(config),
        "environment": environment(0, ""),
        # Paths from where it was run: whoever reads the table has no use for the rest.
        "settings": json.loads((config.run_dir / SETTINGS).read_text(encoding="utf-8").replace(f"{Path.cwd()}/", "")),
    }


_Values = tuple[list[float], list[str]]
"""Values of records, and the sample each belongs to."""


def _hard(config: AblateConfig) -> tuple[str, list[set[str]]]:
    """The rule by which evaluated records are hard, empty where nothing tells; per seed the ids of the hard ones."""
    rule, found = "", []
    for seed in config.seeds:
        records = evaluated_records(_evaluation(config, seed, config.model_dir, config.run_dir))
        rule_of_seed, hard = hard_records(records, [], None)
        rule = rule or rule_of_seed
        found.append(hard)
    return rule, found


def _parts(runs: Sequence[Sequence[Prediction]], hard: Sequence[set[str]]) -> dict[str, list[set[str]]]:
    """What figures are told of: all records, each dimension, easy and hard ones, what SFT gets wrong and right; per run
    their ids."""
    parts = {OVERALL: [{one.record_id for one in run} for run in runs]}
    for dimension in DIMENSIONS:
        ids = [{one.record_id for one in run if one.dimension == dimension} for run in runs]
        if any(ids):
            parts[dimension.value] = ids
    if any(hard):
        parts[EASY] = [every - some for every, some in zip(parts[OVERALL], hard, strict=True)]
        parts[HARD] = list(hard)
    right = [{one.record_id for one in run if one.score(ScoreVariant.EXACT)} for run in runs]
    parts[MISSED] = [every - got for every, got in zip(parts[OVERALL], right, strict=True)]
    parts[GOT] = right
    return parts


def looks_at_images(
    permuted: Sequence[Sequence[Prediction]], plain: Sequence[Sequence[Prediction]], resamples: int
) -> dict[str, Any]:
    """Exact match with exchanged images beside the chance of the same predictions dealt out within each dimension.

    Who answers from the images falls to that chance: the interval does not lie above it. Below is no sign of not
    looking.
    """
    chance = _mean([chance_of(ScoreVariant.EXACT, run).permuted for run in permuted])
    found = nested_interval([_scores(run) for run in permuted], resamples=resamples)
    return {
        "exact": _mean([_mean(_scores(run)[0]) for run in plain]),
        "exchanged": found.to_json(),
        "chance": chance,
        "falls_to_chance": found.low <= chance,
    }


def _scores(
    predictions: Sequence[Prediction], variant: ScoreVariant = ScoreVariant.EXACT, ids: set[str] | None = None
) -> _Values:
    some = [one for one in predictions if ids is None or one.record_id in ids]
    return [one.score(variant) for one in some], [one.sample_id for one in some]


def _gains(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    variant: ScoreVariant = ScoreVariant.EXACT,
    ids: set[str] | None = None,
) -> _Values:
    """What each record gained, and its sample."""
    earlier = {one.record_id: one.score(variant) for one in before}
    some = [one for one in after if ids is None or one.record_id in ids]
    return [one.score(variant) - earlier[one.record_id] for one in some], [one.sample_id for one in some]


def _costs(config: AblateConfig, arm: Arm) -> dict[str, Any]:
    """Rollouts, steps and seconds of training, a mining pass included, means over the seeds; none for what was not
    trained here."""
    if arm is BASE:
        return {"rollouts": 0, "steps": 0, "seconds": 0.0}
    runs = []
    for seed in config.seeds:
        lines = (config.run_dir / f"seed-{seed}" / arm.name / METRICS).read_text(encoding="utf-8").split("\n")
        runs.append([json.loads(line) for line in lines if line])
    seconds = [
        max(row.get("seconds", 0.0) for row in run) if arm is SFT else sum(row.get("seconds", 0.0) for row in run)
        for run in runs
    ]
    return {
        "rollouts": round(_mean([max(row.get("rollouts", 0) for row in run) for run in runs])),
        "steps": round(_mean([max(row["step"] for row in run) for run in runs])),
        "seconds": round(_mean(seconds), 1),
    }


def _command(config: AblateConfig) -> str:
    """What has to be typed for this, from the directory it ran in."""

    def told(value: object) -> str:
        if isinstance(value, Path):
            here = value.resolve()
            return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else value)
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    given = [(field.name, getattr(config, field.name)) for field in fields(config) if field.name != "command"]
    wanted = [(name, value) for name, value in given if value != getattr(AblateConfig, name, None)]
    settings = [shlex.quote(f"{name}={told(value)}") for name, value in wanted]
    return " ".join(["python -m trainer ablate --set", *settings])


def _time(config: AblateConfig) -> dict[str, Any]:
    """Seconds that all parts of these seeds took, in however many sittings, and how many parts were timed."""
    told = config.run_dir / TIMES
    lines = told.read_text(encoding="utf-8").split("\n") if told.exists() else []
    rows = [row for row in map(json.loads, filter(None, lines)) if row["seed"] in config.seeds]
    parts = {(row["seed"], row["part"]) for row in rows}
    return {
        "seconds": round(sum(row["seconds"] for row in rows)),
        "parts": len(parts),
        "of": _PARTS * len(config.seeds),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    seeds = ", ".join(map(str, result["seeds"]))
    told_parts = [name for name in (*DIMENSIONS, EASY, HARD) if name in result["arms"]["sft"]["exact"]]
    hard = result["hard"]
    held_out = " + ".join(map(str, result["records_per_seed"]))
    lines = [
        f"Seeds {seeds}; {held_out} held-out records. Exact match and DPA are means over seeds; "
        "in brackets 95 % intervals that resample seeds and, within each, samples."
        + (f" Of all records {hard['records']} are hard ({hard['rule']})." if hard else ""),
        "",
        "| | exact match | "
        + " | ".join(_short(name) for name in told_parts)
        + " | DPA | per seed | rollouts | steps |",
        "| --- |" + " --- |" * (len(told_parts) + 5),
    ]
    for arm in result["arms"].values():
        cells = [arm["title"], _bracketed(arm["exact"]["overall"])]
        cells += [_value(arm["exact"][name]) for name in told_parts]
        cells += [_value(arm["dpa"]), " ".join(f"{value:.3f}" for value in arm["exact_per_seed"])]
        lines.append("| " + " | ".join([*cells, str(arm["rollouts"]), str(arm["steps"])]) + " |")
    lines += [
        "",
        "Paired differences of exact match, the same records under both models. What SFT missed and got is told only "
        "of models that all began there.",
        "",
        "| | overall | "
        + " | ".join(_short(name) for name in told_parts)
        + " | missed by SFT | got by SFT | DPA | per seed |",
        "| --- |" + " --- |" * (len(told_parts) + 5),
    ]
    for row in result["differences"]:
        cells = [f"{row['later']} − {row['earlier']}", _bracketed(row["exact"]["overall"], sign="+")]
        cells += [_bracketed(row["exact"].get(name), sign="+") for name in (*told_parts, MISSED, GOT)]
        cells += [_bracketed(row["dpa"], sign="+"), " ".join(f"{value:+.3f}" for value in row["per_seed"])]
        lines.append("| " + " | ".join(cells) + " |")
    images = result["images"]
    falls = images["falls_to_chance"]
    verdict = "does not lie above it: it looks at them" if falls else "lies ABOVE it: it does not go by them alone"
    lines += [
        "",
        f"Does it look at the images? The last model is exact on {images['exact']:.3f}; with image sets exchanged "
        f"between records of one dimension on {_bracketed(images['exchanged'])}. The chance of the same answers dealt "
        f"out within each dimension is {images['chance']:.3f}; the interval {verdict}.",
        "",
        f"`{result['command']}`: {_took(result['time'])} of computing.",
        "",
    ]
    return "\n".join(lines)


def _took(told: dict[str, Any]) -> str:
    timed = "" if told["parts"] == told["of"] else f" in the {told['parts']} of {told['of']} parts that were timed"
    hours = told["seconds"] / 3600
    return (f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes") + timed


def draw(result: dict[str, Any], path: Path) -> None:
    """The arms and the differences with their intervals; nothing where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    arms = list(result["arms"].values())
    places = range(len(arms))
    for values in zip(*(arm["exact_per_seed"] for arm in arms), strict=True):
        left.plot(places, values, color="#b9bec6", linewidth=0.9, zorder=1)
    for place, arm in enumerate(arms):
        _whisker(left, place, arm["exact"]["overall"], COLOURS[0], upright=True)
    left.set_xticks(list(places), list(result["arms"]), fontsize=9)
    left.set_title("Exact match on held-out records (grey: seeds)", loc="left", fontsize=11)
    for place, row in enumerate(reversed(result["differences"])):
        _whisker(right, place, row["exact"]["overall"], COLOURS[0], upright=False)
        right.scatter(row["per_seed"], [place] * len(row["per_seed"]), color="#b9bec6", s=12, zorder=1)
    right.axvline(0, color="#5b6770", linewidth=0.8)
    names = [f"{row['later']} − {row['earlier']}" for row in reversed(result["differences"])]
    right.set_yticks(list(range(len(names))), names, fontsize=9)
    right.set_title("Paired differences of exact match, 95 %", loc="left", fontsize=11)
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    figure.savefig(path)


def _whisker(axes: Any, place: float, found: dict[str, float], colour: str, *, upright: bool) -> None:
    ends, places = [found["low"], found["high"]], [place, place]
    axes.plot(*((places, ends) if upright else (ends, places)), color=colour, linewidth=2.2, zorder=2)
    at = (place, found["value"]) if upright else (found["value"], place)
    axes.scatter(*([value] for value in at), color=colour, s=34, zorder=3)


def _short(name: str) -> str:
    return name.split("_")[0]


def _value(found: dict[str, float]) -> str:
    return f"{found['value']:.3f}"


def _bracketed(found: dict[str, float] | None, sign: str = "") -> str:
    if found is None:
        return ""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"
