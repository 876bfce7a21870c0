"""What a benchmark reports, and how two sides are timed against each other. What is measured: one file a part."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypedDict

PARTS = ("workbench", "runs", "trainer")
"""The modules of this folder that measure something."""


class Measurement(TypedDict):
    """One line of `make bench`."""

    name: str
    value: float
    unit: str
    peer: float | None
    """The other side, measured in the same run; None where there is none."""
    ratio: float | None
    """How many times better than the peer: above 1 is a gain."""
    setting: str | dict[str, Any]
    """What was measured: a sentence, or the sizes by name."""


def in_turns(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both, run A B A B … after an uncounted round: the machine's drift hits both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds + 1):
        for side, call in enumerate((ours, peer)):
            start = time.perf_counter()
            call()
            if round_number:
                seconds[side].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
