"""What rationales are like, as texts: how long, how varied, how many nearly the same. Pure functions of a sample.

A word is a run of letters and digits, or one character where the script puts no spaces between words. *Variety* is the
share of different word pairs among a fixed number of word pairs: the same number for all that are compared, since more
text always repeats itself more. Two texts are *nearly the same* when they share at least four fifths of the different
word triples that either has (Jaccard). Definitions and thresholds are ours. Not here: drawing the sample
(comparison_samples.py); refusing copies while a run goes on, which is a check of the workers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

Words = tuple[str, ...]
Triples = frozenset[Words]

MOST_PAIRS = 5000
FEWEST_PAIRS = 100
"""Fewer word pairs say nothing about variety."""

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    r"|(?:(?![\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])[^\W_])+"
)


def words_of(text: str) -> Words:
    """The words of a text, without regard to case."""
    return tuple(_WORD.findall(text.casefold()))


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Of lengths in words: a quarter are at most `low`, half at most `middle`, three quarters at most `high`."""

    low: float
    middle: float
    high: float


def quartiles(numbers: Sequence[float]) -> Quartiles | None:
    """Interpolated between neighbours, as numpy does; None of nothing."""
    if not numbers:
        return None
    ordered = sorted(numbers)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return Quartiles(at(0.25), at(0.5), at(0.75))


def pairs_in(texts: Sequence[Words]) -> int:
    """How many word pairs the texts have; none reaches from one text into the next."""
    return sum(max(len(text) - 1, 0) for text in texts)


def size_to_compare(counts: Sequence[int]) -> int:
    """How many word pairs are looked at of each of those that are compared, by how many they have.

    As many as the shortest has, those left out that have too few to say anything; 0 where all have.
    """
    enough = [count for count in counts if count >= FEWEST_PAIRS]
    return min([*enough, MOST_PAIRS]) if enough else 0


def variety(texts: Sequence[Words], size: int) -> float | None:
    """Different word pairs among the first `size` of them; None where there are not so many."""
    if not size or pairs_in(texts) < size:
        return None
    seen: set[Words] = set()
    left = size
    for text in texts:
        pairs = [text[place : place + 2] for place in range(min(len(text) - 1, left))]
        seen.update(pairs)
        left -= len(pairs)
        if not left:
            break
    return len(seen) / size


def nearly_the_same(texts: Sequence[Words]) -> float | None:
    """The share of texts that have another one nearly the same. None where there is no other."""
    if len(texts) < 2:
        return None
    counted = Counter(_triples(text) for text in texts)
    found = {triples for triples, times in counted.items() if times > 1}
    found |= _with_a_neighbour(list(counted))
    return sum(counted[triples] for triples in found) / len(texts)


def _triples(text: Words) -> Triples:
    """Runs of three words; of a shorter text, all of it."""
    if len(text) < 3:
        return frozenset({text})
    return frozenset(text[place : place + 3] for place in range(len(text) - 2))


def _with_a_neighbour(texts: Sequence[Triples]) -> set[Triples]:
    """Those that are nearly the same as another, compared only where a rare triple is shared.

    Who shares four fifths with somebody shares one of their own rarest fifth (and one) with them: only those few are
    looked up. It leaves nobody out.
    """
    times = Counter(triple for text in texts for triple in text)
    seen: dict[Words, list[Triples]] = defaultdict(list)
    found: set[Triples] = set()
    for text in texts:
        rare = sorted(text, key=lambda triple: (times[triple], triple))[: len(text) - _four_fifths(len(text)) + 1]
        for other in {one for triple in rare for one in seen[triple]}:
            if not (text in found and other in found) and _near(text, other):
                found |= {text, other}
        for triple in rare:
            seen[triple].append(text)
    return found


def _four_fifths(number: int) -> int:
    """Rounded up, in whole numbers."""
    return -(-4 * number // 5)


def _near(one: Triples, other: Triples) -> bool:
    if 5 * min(len(one), len(other)) < 4 * max(len(one), len(other)):
        return False
    shared = len(one & other)
    return 5 * shared >= 4 * (len(one) + len(other) - shared)
