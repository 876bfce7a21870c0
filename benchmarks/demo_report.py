"""The demo's figures from the evaluations, and its one table. Not here: running anything (demo.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.contract.dimensions import DIMENSIONS
from trainer.evaluate import beats_constant, paired_difference
from trainer.predictions import read_predictions

NAMES = {"base": "base", "sft": "SFT", "grpo": "HCM-GRPO"}


def learning_figures(evaluations: dict[str, Path]) -> dict[str, Any]:
    """Per model its scores with chance levels and its lead over the best constant answer; HCM-GRPO − SFT, paired."""
    found: dict[str, Any] = {}
    predictions = {name: read_predictions(where / "predictions.jsonl") for name, where in evaluations.items()}
    for name, where in evaluations.items():
        report = json.loads((where / "evaluation.json").read_text(encoding="utf-8"))
        found[name] = {
            "records": report["records"],
            "parsable": report["parsable"],
            "figures": report["figures"],
            "over_constant": {
                dimension.value: beats_constant([p for p in predictions[name] if p.dimension == dimension]).to_json()
                for dimension in DIMENSIONS
            },
        }
    found["grpo_minus_sft"] = paired_difference(predictions["sft"], predictions["grpo"]).to_json()
    return found


def table(figures: dict[str, Any]) -> str:
    """Everything the demo found, for people."""
    person, runs, learning = figures["person"], figures["runs"], figures["learning"]
    lines = [
        "",
        f"version   {figures['version']['id']}",
        "records   " + ", ".join(f"{count} {name}" for name, count in sorted(figures["records"].items()))
        + f"; splits {figures['version']['splits']}",
        f"person    simulated, errs in {person['error_rate']:.0%} of tasks: {person['mistakes']} candidates misjudged",
    ]  # fmt: skip
    lines += [
        f"model     {approach}: {run['accepted']} accepted, {run['rejected']} rejected, {run['failed']} failed, "
        f"{run['calls']} calls, {run['cost_usd']} USD" + (f", refused {run['refusals']}" if run["refusals"] else "")
        for approach, run in runs.items()
    ]
    lines += ["", f"{'held out':<24}{'records':>8}   exact match [95 %]     over best constant      DPA     chance*"]
    for name, title in NAMES.items():
        for dimension in DIMENSIONS:
            found = learning[name]["figures"][dimension.value]
            exact, lead, chance = (
                found["exact"],
                learning[name]["over_constant"][dimension.value],
                found["exact"]["chance"],
            )
            lines.append(
                f"{title + ' ' + dimension.value.split('_')[0]:<24}{found['records']:>8}   "
                f"{exact['value']:.3f} [{exact['low']:.3f} {exact['high']:.3f}]   "
                f"{lead['value']:+.3f} [{lead['low']:+.3f} {lead['high']:+.3f}]   {found['dpa']['value']:.3f}   "
                f"{chance['uniform']:.3f} {chance['best_constant']:.3f} {chance['permuted']:.3f}"
            )
    gain = learning["grpo_minus_sft"]
    work = figures["at_work"]
    lines += [
        "* of exact match: a uniform guess, the best constant answer, the same answers dealt out at random",
        f"HCM-GRPO − SFT, paired, exact match: {gain['value']:+.3f} [{gain['low']:+.3f} {gain['high']:+.3f}]",
        f"at work   {work['tasks']} fresh tasks annotated over HTTP by the trained model, exact {work['exact']:.3f}",
        f"time      {figures['seconds']} s",
    ]
    return "\n".join(lines)
