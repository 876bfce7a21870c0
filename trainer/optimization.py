"""What every training loop shares: the optimizer, the learning rate over a run, its budget, and how it computes.

Functions the loops call; no loop here. Not here: losses (sft.py, grpo.py), saving (checkpoint.py).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.config import Refused, TrainingConfig
from trainer.model import Screener, resolve_dtype


def make_optimizer(screener: Screener, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over language and vision parameters, with and without weight decay; frozen parameters are left out.

    A tower whose learning rate is 0 throughout is frozen here, so that nothing is computed for it.
    """
    tower = {id(parameter) for parameter in screener.vision_tower.parameters()}
    freeze_what_is_not_trained(screener, config)
    embeddings = {id(screener.model.get_input_embeddings().weight)}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in screener.model.parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1 and id(parameter) not in embeddings
            groups.setdefault((id(parameter) in tower, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "vision": vision, "weight_decay": config.weight_decay if decays else 0.0}
            for (vision, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=True,
    )


def freeze_what_is_not_trained(screener: Screener, config: TrainingConfig) -> None:
    """The vision tower, where its learning rate is 0 throughout."""
    if config.vision_lr == 0 and not (config.vision_lr_early and config.vision_early):
        screener.vision_tower.requires_grad_(False)


def learning_rate_at(fraction: float, config: TrainingConfig, *, vision: bool = False) -> float:
    """The rate when `fraction` of the run is done: a rise, then a straight fall to `final_lr` of the peak."""
    rise = 1.0 if config.warmup == 0 else min(1.0, (fraction + 1e-3) / config.warmup)
    rate = config.learning_rate * rise * (1 - (1 - config.final_lr) * min(1.0, fraction))
    if not vision:
        return rate
    early = config.vision_lr_early is not None and fraction < config.vision_early
    return rate * (config.vision_lr_early or 0.0 if early else config.vision_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float, config: TrainingConfig) -> float:
    """Set every group's rate; the language model's is returned, to be logged."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(fraction, config, vision=group["vision"])
    return learning_rate_at(fraction, config)


class Diverged(Refused):
    """The loss or a gradient is no number any more; weights are as they were before the step."""


def refuse_divergence(what: str, value: float, step: int, last_good: Path | None) -> None:
    """Diverged, with what to do about it, unless `value` is finite."""
    if not math.isfinite(value):
        back = f"go on from {last_good} with resume=true" if last_good else "there is no checkpoint to go back to"
        raise Diverged(f"the {what} is {value} at step {step}: lower learning_rate and {back}")


def clip_and_step(optimizer: torch.optim.Optimizer, clip: float) -> float:
    """Clip all gradients together, update, forget them; the norm before clipping.

    Where that norm is no finite number, nothing is updated: the caller refuses to go on.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm: Any = torch.nn.utils.clip_grad_norm_(parameters, clip)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of weights split among processes
    if not math.isfinite(norm):
        return float(norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def training_screener_dtype(config: TrainingConfig) -> str:
    """Weights are trained in float32 (updates of a small rate vanish in 16 bits); forwards may compute in less.

    Beside an adapter they are not trained: then `auto` stays what it is for computing.
    """
    return "float32" if config.dtype == "auto" and not config.lora.r else config.dtype


def computing(screener: Screener, config: TrainingConfig) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass: automatic 16 bits on CUDA when dtype is auto, plain elsewhere."""
    if config.dtype == "auto" and screener.device.type == "cuda":
        return torch.autocast("cuda", dtype=resolve_dtype("auto", screener.device))
    return contextlib.nullcontext()


@dataclass
class Budget:
    """How long a run is, in steps or in minutes, and how far it is. Time spent before a resume counts."""

    steps: int
    minutes: float
    done_steps: int = 0
    spent_before: float = 0.0
    """Seconds of earlier sittings."""
    _began: float = field(default_factory=time.monotonic)
    _paused: float = 0.0

    def begin(self) -> None:
        """Training time counts from now on, not from when the budget was made."""
        self._began, self._paused = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, without what was spent evaluating."""
        return self.spent_before + time.monotonic() - self._began - self._paused

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.seconds / (60 * self.minutes) if self.minutes else self.done_steps / self.steps)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.fraction >= 1.0

    @property
    def seconds_left(self) -> float:
        """An estimate from the pace so far; infinite before the first step."""
        if self.minutes:
            return max(0.0, 60 * self.minutes - self.seconds)
        return self.seconds / self.done_steps * (self.steps - self.done_steps) if self.done_steps else float("inf")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not training time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began
