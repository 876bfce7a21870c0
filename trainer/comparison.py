"""Evaluations as people read them: one table of several models in Markdown, its plot, and one model's mistakes.

Not here: what the numbers are (evaluate.py, confusion.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.confusion import mistakes
from trainer.predictions import FIGURES

_TITLES = {"exact": "exact match", "dpa": "DPA", "per_candidate": "per candidate"}
_CHANCE = {
    "uniform": "uniform guess",
    "best_constant": "best constant answer",
    "permuted": "answers dealt out at random",
}


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """comparison.md: overall scores, exact match per dimension, easy and hard records, and what to mind."""
    models = comparison["models"]
    first = models[0]["name"]
    head = ["model", *(f"{title} [95 %]" for title in _TITLES.values()), f"exact over {first}", "readable"]
    rows = [
        [
            model["name"],
            *(_interval(model["figures"]["overall"][figure]) for figure in FIGURES),
            _signed(model["over_first"]["exact"]) if "over_first" in model else "",
            f"{model['parsable']:.1%}",
        ]
        for model in models
    ]
    for level, title in _CHANCE.items():
        if level != "permuted":  # that one depends on the model
            chance = [models[0]["figures"]["overall"][figure]["chance"][level] for figure in FIGURES]
            rows.append([f"*{title}*", *(f"{value:.3f}" for value in chance), "", ""])
    dimensions = [name for name in models[0]["figures"] if name != "overall"]
    per_dimension = [
        [model["name"], *(_interval(model["figures"][name]["exact"]) for name in dimensions)] for model in models
    ]
    best = [f"{models[0]['figures'][name]['exact']['chance']['best_constant']:.3f}" for name in dimensions]
    dealt = [
        [model["name"], *(f"{model['figures'][name]['exact']['chance']['permuted']:.3f}" for name in dimensions)]
        for model in models
    ]
    parts = [
        f"{comparison['records']} records of {comparison['samples']} samples, {comparison['split']} split of version "
        f"`{comparison['export_version'][:12]}`, prompt {comparison['prompt_version']}. Intervals: whole samples "
        "resampled; differences record by record.",
        _table(head, rows),
        "Exact match per dimension:",
        _table(["model", *dimensions], [*per_dimension, ["*best constant answer*", *best]]),
        "The same answers dealt out at random would be exact this often (a model above it looks at the images):",
        _table(["model", *dimensions], dealt),
        *_difficulty(models),
        *_warnings(models),
    ]
    return "\n\n".join(parts) + "\n"


def evaluation_markdown(report: Mapping[str, Any]) -> str:
    """evaluation.md: one model's scores, which answers it takes for which, and each letter's false alarms."""
    overall = report["figures"]
    rows = [
        [name, str(found["records"]), *(f"{_interval(found[figure])} ({_levels(found[figure])})" for figure in FIGURES)]
        for name, found in overall.items()
    ]
    letters = [
        [letter, *(str(counts[kind]) for kind in counts), _share(counts, "false_positive", "true_negative"),
         _share(counts, "false_negative", "true_positive")]
        for letter, counts in report["letters"].items()
    ]  # fmt: skip
    kinds = [kind.replace("_", " ") for kind in next(iter(report["letters"].values()))]
    parts = [
        f"# {report['name']}",
        _table(["", "records", *(f"{title} [95 %] (chance)" for title in _TITLES.values())], rows),
        f"Chance: {', '.join(_CHANCE.values())}. Readable: {report['parsable']:.1%}.",
        *_difficulty([report]),
        "## Which answers are taken for which",
    ]
    for name, found in report["confusion"].items():
        wrong = mistakes(found)
        parts.append(f"{name}: {_sizes(found)}")
        if wrong:
            parts.append(
                _table(["stands", "was said", "times"], [[gold, said, str(times)] for gold, said, times in wrong])
            )
    parts += [
        "## Letters",
        _table(["letter", *kinds, "named of those that are not", "left out of those that are"], letters),
        *_warnings([report]),
    ]
    return "\n\n".join(parts) + "\n"


def draw_comparison(comparison: Mapping[str, Any], path: Path) -> bool:
    """comparison.png: exact match per dimension and overall, a bar per model with its interval, chance as lines.

    False, with a line on stderr, where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"trainer: {path.name} is left out: matplotlib is not installed", file=sys.stderr)
        return False
    models = comparison["models"]
    names = [name for name in models[0]["figures"] if name != "overall"] + ["overall"]
    figure = Figure(figsize=(2.2 + 1.9 * len(names), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        found = [model["figures"][name]["exact"] for name in names]
        at = [place - 0.4 + width * (number + 0.5) for place in range(len(names))]
        spread = [[one["value"] - one["low"] for one in found], [one["high"] - one["value"] for one in found]]
        axes.bar(at, [one["value"] for one in found], width * 0.92, label=model["name"])
        axes.errorbar(
            at, [one["value"] for one in found], spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2
        )
        dealt = [one["chance"]["permuted"] for one in found]
        axes.hlines(
            dealt, [x - width * 0.46 for x in at], [x + width * 0.46 for x in at], colors="black", linestyles="dotted",
            label="its answers dealt out at random" if number == len(models) - 1 else "_",
        )  # fmt: skip
    constant = [models[0]["figures"][name]["exact"]["chance"]["best_constant"] for name in names]
    places = range(len(names))
    axes.hlines(
        constant, [place - 0.45 for place in places], [place + 0.45 for place in places],
        colors="grey", linestyles="dashed", label="best constant answer",
    )  # fmt: skip
    axes.set_xticks(list(places), [name.replace("_", "\n") for name in names])
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("exact match, 95 % interval")
    axes.set_title(f"{comparison['records']} records, {comparison['split']} split", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: labels[place] not in [model["name"] for model in models])
    axes.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
    figure.savefig(path, dpi=130)
    return True


def _difficulty(models: Sequence[Mapping[str, Any]]) -> list[str]:
    if not models[0]["difficulty"]:
        return []
    sides = [side for side in ("easy", "hard") if side in models[0]["difficulty"]]
    rows = []
    for model in models:
        found = model["difficulty"]
        cells = [_interval(found[side][figure]) for side in sides for figure in ("exact", "dpa")]
        rows.append([model["name"], *cells])
    sizes = {side: models[0]["difficulty"][side]["records"] for side in sides}
    head = [f"{side} ({sizes[side]}): {title}" for side in sides for title in ("exact match", "DPA")]
    return [f"Hard records ({models[0]['difficulty']['rule']}):", _table(["model", *head], rows)]


def _warnings(models: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for model in models:
        trained_on = model["images_trained_on"]
        if trained_on["count"]:
            where = ", ".join(trained_on["exports"])
            said.append(
                f"- **{model['name']}**: {trained_on['count']} images, in {trained_on['records']} records, were "
                f"trained on ({where}): its scores are not those of new images."
            )
        if gone := trained_on["not_found"]:
            said.append(
                f"- **{model['name']}** was trained on {', '.join(gone)}, which is not here: whether images of this "
                "split stand there is not known (`train_export_dir` says where it is)."
            )
        if times := model["refusals"].get("not_answered"):
            said.append(f"- **{model['name']}** would not answer {times} records; they count as wrong.")
    return ["To mind:\n\n" + "\n".join(said)] if said else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f} {found['high']:.3f}]"


def _signed(found: Mapping[str, float]) -> str:
    return f"{found['value']:+.3f} [{found['low']:+.3f} {found['high']:+.3f}]"


def _levels(figure: Mapping[str, Any]) -> str:
    return "/".join(f"{level:.3f}" for level in figure["chance"].values())


def _share(counts: Mapping[str, int], part: str, rest: str) -> str:
    whole = counts[part] + counts[rest]
    return f"{counts[part] / whole:.1%}" if whole else ""


def _sizes(found: Mapping[str, Any]) -> str:
    sizes = {int(difference): times for difference, times in found["size"].items()}
    few = sum(times for difference, times in sizes.items() if difference < 0)
    many = sum(times for difference, times in sizes.items() if difference > 0)
    return f"too few letters {few} times, too many {many}, as many as stand {sizes.get(0, 0)}"
