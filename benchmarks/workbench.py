"""The workbench under load: `make bench ONLY=workbench`. What is measured stands in workbench_load.py."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.databases import on_both
from benchmarks.measurement import Measurement


def measure(*, scale: bool) -> Iterator[Measurement]:
    """All lines of both databases; large is 100,000 tasks, with `scale` 512,000."""
    yield from on_both("benchmarks.workbench_load", scale=scale)
