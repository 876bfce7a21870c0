"""Teach a model failings: SFT whose completions fail as models' do, each in the way of its prompt.

`python -m benchmarks.fallible_screener --config benchmarks/fallible_screener.toml --set export_dir=… run_dir=…` made
fixtures/fallible_screener, the model by which the soak test of the checks has every one of them fire. The export is of
drawn scenes with true reasonings (fixtures/scene_export.py); what goes wrong is drawn when a sample is shown.

Not here: what the failings are (fixtures/failings.py), settings and steps (trainer/sft.py).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fixtures import failings
from trainer import sft
from trainer.config import Refused, load_config
from trainer.contract import prompts
from trainer.contract.exports import ExportRefused
from trainer.contract.prompts import PromptKind
from trainer.contract.records import RecordRefused
from trainer.data import Example
from trainer.optimization import Budget, set_learning_rate

FLAWED = 0.4
"""Share of completions with a failing, where one is not at a loss anyway."""
STOCK_SHOWN = 0.1
"""Share of re-solves that are shown the sentence that says nothing of the images: one has to look oneself."""


def main() -> int:
    """One run, from settings to a model directory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fallible_screener", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings of SFT in TOML")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="wins over the file")
    given = parser.parse_args()
    try:
        teach(sft.build(load_config(sft.SFTConfig, given.config, given.set)))
    except (Refused, ExportRefused, RecordRefused) as error:
        print(f"fallible_screener: {error}", file=sys.stderr)
        return 1
    return 0


def teach(run: sft.Run) -> None:
    """All steps; then the model."""
    budget = Budget(run.config.steps, run.config.minutes)
    while not budget.over:
        rate = set_learning_rate(run.optimizer, budget.fraction, run.config)
        figures = sft.train_step(run, with_failings(sft.next_batch(run), f"{run.config.seed}/{run.state.step}"))
        run.state.step = budget.done_steps = run.state.step + 1
        run.state.seconds = budget.seconds
        run.directory.log(run.state.step, {**figures, "learning_rate": rate, "seconds": round(run.state.seconds, 3)})
        run.progress.show(budget.fraction, budget.seconds_left, step=run.state.step, **figures)
    sft.save(run)


def with_failings(batch: Sequence[sft.Shown], seed: str) -> list[sft.Shown]:
    """What a step shows, some of it gone wrong. The same seed, the same failings."""
    dice = random.Random(f"winnow failing {seed}")
    return [sft.Shown(shown.images, [_gone_wrong(dice, example) for example in shown.examples]) for shown in batch]


def _gone_wrong(dice: random.Random, example: Example) -> Example:
    record, kind = example.record, example.prompt.kind
    if kind is PromptKind.RESOLVE and dice.random() < STOCK_SHOWN:
        shown = prompts.resolve(record.dimension, record.polarity, len(record.candidates), failings.STOCK)
        example = replace(example, prompt=shown)
    failing = failings.chosen(dice, FLAWED, kind, record)
    return example if failing is None else replace(example, target=failings.completion(dice, failing, record))


if __name__ == "__main__":
    sys.exit(main())
