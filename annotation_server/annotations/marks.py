"""Marks: where on a candidate something is seen, as a point or a box, so that a rationale can be grounded.

A mark is ``{"letter": "B", "x": 0.31, "y": 0.62}``, with ``w`` and ``h`` for a box and an optional ``note``. Lengths
are fractions of the candidate's own width and height, `x` and `y` the point or the box's upper left corner. They travel
in a record's meta under ``marks``. Not here: drawing them (static/js/marks.js).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.contract.dimensions import letters

MAX_MARKS = 50
MAX_NOTE = 200

Mark = dict[str, str | float]


def clean_marks(given: Sequence[Mapping[str, Any]], candidate_count: int) -> list[Mark]:
    """The marks with rounded numbers and nothing unknown in them. ValueError names the mark and what was expected."""
    if len(given) > MAX_MARKS:
        raise ValueError(f"{len(given)} marks: expected at most {MAX_MARKS}")
    return [_clean(number, mark, letters(candidate_count)) for number, mark in enumerate(given, start=1)]


def _clean(number: int, mark: Mapping[str, Any], known: str) -> Mark:
    if mark.get("letter") not in tuple(known):
        raise ValueError(f"mark {number}: letter {mark.get('letter')!r}: expected one of {', '.join(known)}")
    box = "w" in mark or "h" in mark
    cleaned: Mark = {"letter": str(mark["letter"])}
    for name in ("x", "y", "w", "h") if box else ("x", "y"):
        value = mark.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"mark {number}: {name} is {value!r}: expected a number from 0 to 1")
        cleaned[name] = round(float(value), 4)
    if note := str(mark.get("note") or "").strip():
        cleaned["note"] = note[:MAX_NOTE]
    return cleaned
