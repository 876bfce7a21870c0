"""A text as words: what counts as one, and how much of one text stands in another.

Words are runs of letters and digits in lower case; Chinese, Japanese and Korean are counted by the character.
Not here: which text is too like which (near_copies.py, annotation_workers/checks.py).
"""

from __future__ import annotations

import re

SHINGLE_WORDS = 3

Shingle = tuple[str, ...]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """The words in order."""
    return _WORD.findall(text.lower())


def shingles(said: list[str]) -> frozenset[Shingle]:
    """Every run of three words; a shorter text is one run of its own."""
    last = max(1, len(said) - SHINGLE_WORDS + 1)
    return frozenset(tuple(said[at : at + SHINGLE_WORDS]) for at in range(last)) if said else frozenset()


def likeness(one: frozenset[Shingle], other: frozenset[Shingle]) -> float:
    """Shared runs among all runs of both (Jaccard): 1 for the same words in the same order, 0 for nothing in common."""
    return len(one & other) / len(one | other) if one or other else 0.0


def contained(one: frozenset[Shingle], other: frozenset[Shingle]) -> float:
    """How much of `one` stands in `other`: 0 to 1."""
    return len(one & other) / len(one) if one else 0.0
