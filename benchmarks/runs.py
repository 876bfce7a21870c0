"""Runs of model annotation under load: `make bench ONLY=runs`. What is measured stands in runs_load.py."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.databases import on_both
from benchmarks.measurement import Measurement


def measure(*, scale: bool) -> Iterator[Measurement]:
    """All lines of both databases; the large run has 100,000 tasks, with `scale` 512,000."""
    yield from on_both("benchmarks.runs_load", scale=scale)
