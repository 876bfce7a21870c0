"""How long a step will take, said before the first one: a forward pass that is timed, and what was measured of writing.

An estimate: going backward is counted, not run. Not here: the time left of a run that goes on (progress.py), memory
(memory.py).
"""

from __future__ import annotations

import time

import torch

from trainer.config import TrainingConfig
from trainer.model import Screener
from trainer.optimization import Budget, computing
from trainer.progress import clock
from trainer.shared_prefix import PrefixGroups, completion_logprobs


@torch.no_grad()
def forward_seconds(screener: Screener, config: TrainingConfig, groups: PrefixGroups) -> float:
    """Seconds of one forward pass of these groups, the second of two: a first one warms up. Draws nothing."""
    screener.model.eval()
    seconds = 0.0
    for _ in range(2):
        began = time.monotonic()
        with computing(screener, config):
            float(completion_logprobs(screener, groups).logprobs.sum())  # waits until it is computed
        seconds = time.monotonic() - began
    return seconds


def learning_seconds(forward: float, config: TrainingConfig) -> float:
    """Of a forward and a backward pass: backward takes two forwards, and checkpointed layers are computed once more."""
    return forward * (4 if config.gradient_checkpointing else 3)


def told_estimate(learning: float, writing: float | None, budget: Budget) -> str:
    """One line: what a step will take, and what that makes of the run. `writing` None: not known before the first."""
    if writing is None:
        said, more, fewer = (
            f"learning will take about {learning:.2g} s of a step, writing comes on top",
            "more than",
            "fewer than",
        )
    else:
        parts = f" ({writing:.2g} s of writing, {learning:.2g} s of learning)" if writing else ""
        said, more, fewer = f"a step will take about {learning + writing:.2g} s{parts}", "about", "about"
    seconds = learning + (writing or 0.0)
    if budget.minutes:
        return f"time: {said}: {fewer} {60 * budget.minutes * (1 - budget.fraction) / seconds:.0f} steps"
    return f"time: {said}: {more} {clock(seconds * (budget.steps - budget.done_steps))} for the run"
