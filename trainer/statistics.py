"""Bootstrap intervals of evaluation figures: samples are resampled, so records of one sample stay together.

The four dimensions of a sample share five images, so their errors are not independent; resampling records alone would
give intervals that are too narrow. Not here: the scores themselves (trainer/contract/scores.py).

Shapes: K samples (clusters), B resamples, G runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
_AT_ONCE = 100
"""Resamples drawn together: bounds memory to 100 × K counts."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % bootstrap interval (percentile method)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As it stands in evaluation.json."""
        return {"value": self.value, "low": self.low, "high": self.high}


def mean_interval(
    values: Sequence[float], samples: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of `values` and its interval; `samples` names the sample each value belongs to.

    Whole samples are drawn with replacement; a resample's figure is the mean over all records it holds.
    For a paired difference, give the differences. ValueError when the lists differ in length or are empty.
    """
    means_B = _resampled(values, samples, resamples, seed)
    low, high = np.quantile(means_B, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


def _resampled(
    values: Sequence[float], samples: Sequence[str], resamples: int, seed: int
) -> np.ndarray[Any, np.dtype[Any]]:
    """The means of `resamples` draws of whole samples, (B,)."""
    if not values or len(values) != len(samples):
        raise ValueError(f"an interval needs one sample name per value, got {len(values)} values, {len(samples)} names")
    place: dict[str, int] = {}
    cluster_of = np.array([place.setdefault(name, len(place)) for name in samples])
    sums_K = np.bincount(cluster_of, weights=np.asarray(values, dtype=float))
    sizes_K = np.bincount(cluster_of)
    clusters = len(place)
    rng = np.random.default_rng(seed)
    means: list[float] = []
    while len(means) < resamples:
        batch = min(_AT_ONCE, resamples - len(means))
        times_BK = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=batch)
        means += list((times_BK @ sums_K) / (times_BK @ sizes_K))
    return np.array(means)


def nested_interval(
    groups: Sequence[tuple[Sequence[float], Sequence[str]]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over several runs and its interval: runs are drawn with replacement, and samples within each.

    `groups`: per run (one seed of training, with its own records) what `mean_interval` takes. Every run weighs the
    same. With few runs the interval is rough, and too narrow rather than too wide. ValueError when there is no run.
    """
    if not groups:
        raise ValueError("an interval over runs needs at least one")
    names = [set(samples) for _, samples in groups]
    shared = all(found == names[0] for found in names)
    means_GB = np.stack(
        [
            _resampled(values, samples, resamples, seed if shared else seed + place)
            for place, (values, samples) in enumerate(groups)
        ]
    )
    rng = np.random.default_rng(seed)
    runs_GB = rng.integers(len(groups), size=(len(groups), resamples))
    # Runs that were judged on the same samples are judged on the same draw of them; others each on one of their own.
    draws_GB = np.arange(resamples) if shared else rng.integers(resamples, size=(len(groups), resamples))
    means_B = means_GB[runs_GB, draws_GB].mean(axis=0)
    low, high = np.quantile(means_B, [0.025, 0.975])
    value = float(np.mean([np.mean(values) for values, _ in groups]))
    return Interval(value, float(low), float(high))
