"""Bootstrap intervals of evaluation figures: samples are resampled, so records of one sample stay together.

The four dimensions of a sample share five images, so their errors are not independent; resampling records alone would
give intervals that are too narrow. Not here: the scores themselves (trainer/contract/scores.py).

Shapes: K samples (clusters), B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums_K.sum() / sizes_K.sum()), float(low), float(high))
