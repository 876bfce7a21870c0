"""A run for people: plots as PNG and one self-contained page, made from what the run directory holds.

``python -m trainer report --set run_dir=RUN`` makes them at any time, of a run that goes on as well. Nothing here is
computed that is not in the run's files. Not here: writing those (checkpoint.py), scoring (evaluate.py).
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.config import Refused

PLOTS, REPORT = "plots", "report.html"
COLOURS = ("#3465a4", "#c4511d", "#3f8f4f", "#8a4fa3", "#b08900", "#5b6770", "#c2386b")
"""Told apart by most eyes, in the order they are given out."""
_SHOWN_ROWS = 25

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run to report on."""

    run_dir: Path
    """A directory that sft or grpo wrote."""


def main(config: ReportConfig) -> None:
    """Write the report and say where."""
    if not (config.run_dir / "config.json").exists():
        raise Refused(f"run_dir: {config.run_dir} holds no run (config.json is missing)")
    print(write_report(config.run_dir))


def write_report(run_dir: Path) -> str:
    """``plots/*.png`` and ``report.html``; one line for people: where it is, or why there are no plots."""
    rows = _rows(run_dir / "metrics.jsonl")
    note = ""
    try:
        plots = draw_plots(rows, run_dir / PLOTS)
    except ModuleNotFoundError as error:
        plots, note = [], f" without plots: {error.name} is not installed"
    page = _page(run_dir, rows, plots)
    partial = run_dir / f"{REPORT}.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(run_dir / REPORT)
    return f"report: {run_dir / REPORT}{note}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot."""

    label: str
    points: list[tuple[float, float]]
    marks: bool = False
    """Few points that were measured on their own, such as evaluations: drawn as they are, never smoothed."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A named picture; `unit` stands at its vertical axis."""

    name: str
    title: str
    unit: str
    lines: list[Line]


def plots_of(rows: Sequence[Row]) -> list[Plot]:
    """The plots these metrics can fill, without lines that are always 0. SFT and GRPO log other figures."""

    def line(label: str, *path: str, marks: bool = False) -> Line:
        return Line(label, _points(rows, path), marks)

    def split(*path: str, label: Callable[[str], str] = lambda name: name, marks: bool = False) -> list[Line]:
        names = dict.fromkeys(name for row in rows for name in (_at(row, path) or {}))
        return [line(label(name), *path, name, marks=marks) for name in names]

    dimensions = split("validation", "exact_by_dimension", label=_words, marks=True)
    if max((len(one.points) for one in dimensions), default=0) < 2:
        dimensions = split("exact_by_dimension", label=_words) + dimensions
    reward = [line("training", "reward"), line("validation", "validation", "reward", marks=True)]
    # With one update per batch GRPO's loss is 0 whatever it does: advantages sum to nothing.
    loss = [] if reward[0].points else [line("training", "loss")]
    loss.append(line("validation", "validation_loss", marks=True))
    visited = [one for one in split("records") if one.label != "unseen"]
    unreadable = Line("unreadable", [(step, 1 - share) for step, share in _points(rows, ("parsable",))])
    written = [line("validation", "validation_written", marks=True)]
    wanted = [
        Plot("reward", "Reward", "mean", reward),
        Plot("exact", "Exact match per dimension", "share", dimensions),
        Plot("zero_advantage", "Groups that teach nothing", "share", [line("zero advantage", "zero_advantage")]),
        Plot(
            "hard_pool",
            "Hard pool: visited records per class",
            "records",
            [*visited, line("replays in a batch", "replays")],
        ),
        Plot("loss", "Loss", "nats per token", loss),
        Plot("written", "Targets that greedy decoding would write", "share", written),
        Plot("lengths", "Length of completions", "tokens", [line("mean", "completion_tokens")]),
        Plot("cut", "Cut and unreadable completions", "share", [line("cut off", "truncated"), unreadable]),
        Plot("kl", "KL to the start", "nats per token", [line("KL", "kl")]),
        Plot("entropy", "Entropy of completions", "nats per token", [line("entropy", "entropy")]),
        Plot("gradient", "Gradient norm before clipping", "", [line("norm", "grad_norm")]),
        Plot("throughput", "Throughput", "tokens per second", [Line("tokens", _throughput(rows))]),
    ]
    drawn = [replace(plot, lines=[one for one in plot.lines if any(y for _, y in one.points)]) for plot in wanted]
    # One point alone, an evaluation at the end say, stands among the closing figures.
    return [plot for plot in drawn if any(len(one.points) > 1 for one in plot.lines)]


def draw_plots(rows: Sequence[Row], directory: Path) -> list[Path]:
    """One PNG per plot, in order; those of an earlier report go."""
    plots = plots_of(rows)
    if not plots:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.png"):
        old.unlink()
    drawn = []
    for plot in plots:
        figure = Figure(figsize=(5.6, 3.3), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for colour, one in zip(_cycle(len(plot.lines)), plot.lines, strict=True):
            xs, ys = [x for x, _ in one.points], [y for _, y in one.points]
            if one.marks or len(ys) < 30:
                axes.plot(xs, ys, color=colour, marker="o" if len(ys) < 60 else None, markersize=3.5, label=one.label)
            else:
                axes.plot(xs, ys, color=colour, alpha=0.22, linewidth=0.8)
                axes.plot(xs, _smooth(ys), color=colour, linewidth=1.8, label=one.label)
        axes.set_title(plot.title, loc="left", fontsize=11)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel(plot.unit, fontsize=9)
        if plot.unit == "share":
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(plot.lines) > 1:
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        path = directory / f"{plot.name}.png"
        figure.savefig(path)
        drawn.append(path)
    return drawn


def _page(run_dir: Path, rows: Sequence[Row], plots: Sequence[Path]) -> str:
    config, about = _json(run_dir / "config.json"), _json(run_dir / "environment.json")
    samples = _rows(run_dir / "samples.jsonl")
    last = max((row["step"] for row in samples), default=0)
    samples = [row for row in samples if row["step"] == last]
    review = _rows(run_dir / "review.jsonl")
    done = max((row["step"] for row in rows), default=0)
    parts = [
        f"<h1>{_e(config.get('command', 'run'))}: {_e(run_dir.name)}</h1>",
        _facts(
            {
                "steps": done,
                "export version": about.get("export_version", ""),
                "start": config.get("model_dir", ""),
                "device": f"{about.get('device')}, {about.get('cores')} cores, {about.get('threads')} threads",
                "packages": ", ".join(f"{name} {found}" for name, found in about.get("packages", {}).items()),
                "commit": _git(about.get("git")),
                "sittings": ", ".join(f"from step {s['from_step']} at {s['at']}" for s in about.get("sittings", [])),
            }
        ),
        _closing_figures(rows),
        "<h2>Plots</h2>" if plots else "",
        '<div class="plots">',
        *(f'<img alt="{_e(path.stem)}" src="data:image/png;base64,{_data(path)}">' for path in plots),
        "</div>",
    ]
    if samples:
        parts += [
            f"<h2>What it writes (step {last})</h2>",
            _table(samples, ("dimension", "gold", "answer", "reward", "text", "record_id")),
        ]
    if review:
        suspects = sum(row["reason"] == "suspect_label" for row in review)
        review = sorted(review, key=lambda row: (row["reason"] != "suspect_label", -row["share"]))
        parts += [
            "<h2>Records to look at again</h2>",
            f"<p>{suspects} suspect labels, {len(review) - suspects} other parked records (review.jsonl).</p>",
            _table(
                review[:_SHOWN_ROWS], ("reason", "record_id", "standing_answer", "model_answer", "share", "rollouts")
            ),
        ]
    settings = json.dumps(config, indent=1, ensure_ascii=False)
    parts.append(f"<h2>Settings</h2><details><summary>config.json</summary><pre>{_e(settings)}</pre></details>")
    return _SHELL.format(title=_e(run_dir.name), body="\n".join(part for part in parts if part))


def _closing_figures(rows: Sequence[Row]) -> str:
    """The last value of every figure that people ask for first."""
    asked: dict[str, tuple[str, ...]] = {
        "reward (mean of the last 20 steps)": ("reward",),
        "exact match in training (mean of the last 20 steps)": ("exact",),
    }
    if not _points(rows, ("reward",)):
        asked["loss (mean of the last 20 steps)"] = ("loss",)
    found: dict[str, object] = {}
    for name, path in asked.items():
        if points := _points(rows, path)[-20:]:
            found[name] = f"{sum(y for _, y in points) / len(points):.4f}"
    last: dict[str, tuple[str, ...]] = {
        "validation exact match": ("validation", "exact"),
        "validation DPA": ("validation", "dpa"),
        "validation loss": ("validation_loss",),
        "targets that greedy decoding would write": ("validation_written",),
        "rollouts": ("rollouts",),
    }
    for name, path in last.items():
        if points := _points(rows, path):
            found[name] = f"{points[-1][1]:.4f}".rstrip("0").rstrip(".")
    return f"<h2>Where it ended</h2>{_facts(found)}" if found else ""


def _facts(found: Mapping[str, object]) -> str:
    cells = "".join(f"<tr><th>{_e(name)}</th><td>{_e(value)}</td></tr>" for name, value in found.items() if value != "")
    return f'<table class="facts">{cells}</table>'


def _table(rows: Iterable[Row], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{_e(_words(column))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f'<td class="{column}">{_e(_shown(row.get(column)))}</td>' for column in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(value: object) -> object:
    if value is None:
        return "unreadable"
    return f"{value:.2f}" if isinstance(value, float) else value


def _points(rows: Sequence[Row], path: Sequence[str]) -> list[tuple[float, float]]:
    found = [(row["step"], _at(row, path)) for row in rows]
    return [(step, float(value)) for step, value in found if isinstance(value, int | float)]


def _at(row: Row, path: Sequence[str]) -> Any:
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _throughput(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """GRPO logs it; SFT logs a step's tokens and the run's seconds."""
    if points := _points(rows, ("tokens_per_second",)):
        return points
    timed = [(row["step"], row["tokens"], row["seconds"]) for row in rows if "tokens" in row and "seconds" in row]
    return [
        (step, tokens / (seconds - before))
        for (_, _, before), (step, tokens, seconds) in pairwise(timed)
        if seconds > before
    ]


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over about a twentieth of the run, without the lag at its beginning."""
    keep = 1 - 1 / max(5, len(values) / 20)
    mean = weight = 0.0
    smoothed = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that may still be written to: a last one that is cut short does not count."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _git(found: Mapping[str, Any] | None) -> str:
    return "" if not found else found["commit"][:12] + (", with changes" if found["changed"] else "")


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _e(value: object) -> str:
    return html.escape(str(value))


_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --line: light-dark(#dcdfe3, #3a3f45); --quiet: light-dark(#5b6370, #a4abb5) }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#fff, #16181b); color: light-dark(#1c1f23, #e4e7ea) }}
h1 {{ font-size: 1.5rem; margin: 0 0 1rem }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .6rem }}
table {{ border-collapse: collapse; font-size: .88rem }} th, td {{ text-align: left; vertical-align: top;
  padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line) }}
th {{ font-weight: 500; color: var(--quiet) }} .facts td {{ overflow-wrap: anywhere }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1rem }}
.plots img {{ width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px }}
.wide {{ overflow-x: auto }} td.text {{ font: .82rem/1.45 ui-monospace, monospace; min-width: 24rem;
  white-space: pre-wrap; overflow-wrap: anywhere }} td.record_id {{ color: var(--quiet); font-size: .8rem }}
pre {{ overflow-x: auto; font-size: .82rem }}
</style></head><body>
{body}
</body></html>
"""
