"""The fixed words of a judgement: dimensions, candidate letters, polarity, approaches, answer sources, splits.

Not here: what the dimensions ask of a judge in full sentences (prompts.py).
"""

from __future__ import annotations

from enum import StrEnum

LETTERS = "ABCDEFGH"
"""Candidate letters in order. A sample carries 1 to 8 candidates; four is the default."""

MAX_CANDIDATES = len(LETTERS)


class Dimension(StrEnum):
    """What a task judges."""

    APPEARANCE_DEFORMATION = "appearance_deformation"
    PHYSICAL_SHADOW = "physical_shadow"
    PLACEMENT_LAYOUT = "placement_layout"
    EXTENSION_RATIONALITY = "extension_rationality"


DIMENSIONS: tuple[Dimension, ...] = tuple(Dimension)


class Polarity(StrEnum):
    """What the letters of an answer list."""

    ACCEPTABLE = "acceptable"
    FLAWED = "flawed"


class Approach(StrEnum):
    """Where a rationale comes from."""

    MANUAL = "manual"
    AUTOMATED = "automated"
    ANSWER_DRIVEN = "answer_driven"


class AnswerSource(StrEnum):
    """Where the answer that stands for a task comes from."""

    GOLD = "gold"
    AGREEMENT = "agreement"
    ADJUDICATION = "adjudication"
    REVIEW = "review"
    MODEL = "model"


class Split(StrEnum):
    """The side of a dataset version a record is on. One original stays on one side."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def letters(count: int) -> str:
    """The letters of a sample with `count` candidates, "ABCD" for four. ValueError outside 1 to 8."""
    if not 1 <= count <= MAX_CANDIDATES:
        raise ValueError(f"a sample has 1 to {MAX_CANDIDATES} candidates, got {count}")
    return LETTERS[:count]
