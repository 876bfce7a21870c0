"""How far answers agree beyond chance: percent, Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals.

Pure functions of counted answer patterns. A unit is the tuple of values it was given, missing ones left out; units
that were judged together (the candidates of one task) stay together in a cluster, which is what the bootstrap draws.
Equal clusters are counted, not repeated, so that an interval costs the number of distinct patterns and not of tasks.
Where chance leaves nothing to agree on (all said the same one thing) a coefficient is undefined: None, never 1.

Not here: which answers count (quality.py), how people do on gold (accuracy.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.contract.answers import Answer
from trainer.contract.dimensions import letters

Unit = tuple[Hashable, ...]
Clusters = Mapping[tuple[Unit, ...], int]
"""How often each pattern of answers occurred."""

Floats = NDArray[np.float64]

DRAWS = 1000
LEVEL = 0.95
_SEED = 20110125
"""Fixed, so that a page shows the same interval for the same answers."""
_MOST_AT_ONCE = 4_000_000
"""Drawn counts held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A coefficient and its bootstrap interval; None where undefined. `clusters` were compared: tasks, as a rule."""

    value: float | None
    low: float | None
    high: float | None
    clusters: int


def percent_agreement(clusters: Clusters, *, draws: int = DRAWS) -> Estimate:
    """The share of pairs of values that are equal, each unit weighing the same."""

    def features(units: Sequence[Unit]) -> list[float]:
        return [sum(_agreeing(unit) for unit in units), len(units)]

    return _estimate(clusters, features, lambda totals: _ratio(totals[:, 0], totals[:, 1]), draws)


def fleiss_kappa(clusters: Clusters, *, draws: int = DRAWS) -> Estimate:
    """Fleiss' kappa for any number of raters who may differ from unit to unit.

    Fleiss asks for equally many values per unit; where they differ, the observed agreement is still the mean over units
    and the expected one that of all values pooled.
    """
    place = _places(clusters)

    def features(units: Sequence[Unit]) -> list[float]:
        return [sum(_agreeing(unit) for unit in units), len(units), *_tally(place, units)]

    def combine(totals: Floats) -> Floats:
        observed = _ratio(totals[:, 0], totals[:, 1])
        shares = _ratio(totals[:, 2:], totals[:, 2:].sum(axis=1, keepdims=True))
        return _beyond_chance(observed, (shares**2).sum(axis=1))

    return _estimate(clusters, features, combine, draws)


def cohen_kappa(clusters: Clusters, *, draws: int = DRAWS) -> Estimate:
    """Cohen's kappa of two raters: every unit is (what the first said, what the second said)."""
    place = _places(clusters)

    def features(units: Sequence[Unit]) -> list[float]:
        first = _tally(place, [(unit[0],) for unit in units])
        second = _tally(place, [(unit[1],) for unit in units])
        return [sum(unit[0] == unit[1] for unit in units), len(units), *first, *second]

    def combine(totals: Floats) -> Floats:
        number = totals[:, 1]
        first, second = totals[:, 2 : 2 + len(place)], totals[:, 2 + len(place) :]
        return _beyond_chance(_ratio(totals[:, 0], number), _ratio((first * second).sum(axis=1), number**2))

    return _estimate(clusters, features, combine, draws)


def krippendorff_alpha(
    clusters: Clusters, distance: Callable[[Any, Any], float] | None = None, *, draws: int = DRAWS
) -> Estimate:
    """Krippendorff's alpha, 1 - observed / expected disagreement, under a distance of two values (None: nominal).

    Observed: over ordered pairs within a unit, each divided by one less than the unit's values. Expected: over ordered
    pairs of all values.
    """
    measure = distance or nominal_distance
    place = _places(clusters)
    apart = np.array([[measure(one, other) for other in place] for one in place], dtype=float)

    def features(units: Sequence[Unit]) -> list[float]:
        observed = 0.0
        for unit in units:
            within = sum(
                number * other_number * apart[place[one], place[other]]
                for one, number in Counter(unit).items()
                for other, other_number in Counter(unit).items()
            )
            observed += within / (len(unit) - 1)
        return [observed, *_tally(place, units)]

    def combine(totals: Floats) -> Floats:
        values = totals[:, 1:]
        number = values.sum(axis=1)
        expected = np.einsum("bi,ij,bj->b", values, apart, values, optimize=True)
        # Among very few answers floating point leaves a trace of nothing; a real distance is never that small.
        expected[expected < 1e-9] = 0.0
        return 1.0 - _ratio((number - 1) * totals[:, 0], expected)

    return _estimate(clusters, features, combine, draws)


def nominal_distance(one: Hashable, other: Hashable) -> float:
    """0 for the same value, else 1."""
    return float(one != other)


def masi_distance(one: Answer, other: Answer) -> float:
    """One minus MASI, Passonneau's measure of agreement on sets: Jaccard's share times monotonicity.

    Monotonicity is 1 for equal sets, 2/3 where one holds the other, 1/3 where they overlap, 0 where they are disjoint.
    The empty set, which Passonneau does not treat, equals itself and is disjoint from every other (ours).
    """
    if one == other:
        return 0.0
    shared = len(one & other)
    if not shared:
        return 1.0
    monotonicity = 2 / 3 if one < other or other < one else 1 / 3
    return 1.0 - monotonicity * shared / len(one | other)


Said = tuple[int, tuple[tuple[int, Answer], ...]]
"""One task: how many candidates it has, and who (by id, in order) answered what."""


def by_answer(said: Mapping[Said, int]) -> Clusters:
    """Each task one unit, its values the whole answers."""
    found: Counter[tuple[Unit, ...]] = Counter()
    for (_, votes), number in said.items():
        answers = sorted((answer for _, answer in votes), key=sorted)
        found[(tuple(answers),)] += number
    return found


def by_candidate(said: Mapping[Said, int]) -> Clusters:
    """Each candidate of a task one unit: in the answer or not. The candidates of a task stay together."""
    found: Counter[tuple[Unit, ...]] = Counter()
    for (count, votes), number in said.items():
        # In any order: neither who said it nor which letter it is matters to a coefficient.
        units = [tuple(sorted(letter in answer for _, answer in votes)) for letter in letters(count)]
        found[tuple(sorted(units))] += number
    return found


def pairs_by_candidate(said: Mapping[Said, int]) -> dict[tuple[int, int], Clusters]:
    """Per pair of annotators the candidates of the tasks that both answered, as (first, second)."""
    found: dict[tuple[int, int], Counter[tuple[Unit, ...]]] = {}
    for (count, votes), number in said.items():
        for place, (first, answer) in enumerate(votes):
            for second, other in votes[place + 1 :]:
                units = tuple(sorted((letter in answer, letter in other) for letter in letters(count)))
                found.setdefault((first, second), Counter())[units] += number
    return dict(found)


def _estimate(
    clusters: Clusters,
    features: Callable[[Sequence[Unit]], Sequence[float]],
    combine: Callable[[Floats], Floats],
    draws: int,
) -> Estimate:
    """A coefficient that depends on the sums of each cluster's features only, and its percentile interval."""
    pairable = _pairable(clusters)
    if not pairable:
        return Estimate(None, None, None, 0)
    table_PK = np.array([features(units) for units, _ in pairable], dtype=float)
    counts_P = np.array([number for _, number in pairable], dtype=float)
    total = int(counts_P.sum())
    value = float(combine((counts_P @ table_PK)[np.newaxis])[0])
    if np.isnan(value):
        return Estimate(None, None, None, total)
    drawn = _draw(table_PK, counts_P, total, combine, draws) if total > 1 else np.empty(0)
    if len(drawn) * 2 <= draws:
        return Estimate(value, None, None, total)  # mostly undefined: too few tasks to say how sure this is
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), total)


def _draw(table_PK: Floats, counts_P: Floats, total: int, combine: Callable[[Floats], Floats], draws: int) -> Floats:
    """The coefficient of `draws` samples of the clusters with replacement; undefined ones left out."""
    random = np.random.default_rng(_SEED)
    at_once = max(_MOST_AT_ONCE // len(counts_P), 1)
    found: list[Floats] = [np.empty(0)]
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        found.append(combine(random.multinomial(total, counts_P / total, size=size) @ table_PK))
    drawn: Floats = np.concatenate(found)
    defined: Floats = drawn[~np.isnan(drawn)]
    return defined


def _pairable(clusters: Clusters) -> list[tuple[list[Unit], int]]:
    """Clusters without the units that fewer than two said something about."""
    found = [([unit for unit in units if len(unit) > 1], number) for units, number in clusters.items() if number]
    return [(units, number) for units, number in found if units]


def _places(clusters: Clusters) -> dict[Hashable, int]:
    """A column per value that occurs among units that can be compared."""
    values = dict.fromkeys(value for units, _ in _pairable(clusters) for unit in units for value in unit)
    return {value: place for place, value in enumerate(values)}


def _tally(place: Mapping[Hashable, int], units: Sequence[Unit]) -> list[float]:
    found = [0.0] * len(place)
    for unit in units:
        for value in unit:
            found[place[value]] += 1
    return found


def _agreeing(unit: Unit) -> float:
    """The share of a unit's pairs that are equal."""
    return sum(number * (number - 1) for number in Counter(unit).values()) / (len(unit) * (len(unit) - 1))


def _beyond_chance(observed: Floats, expected: Floats) -> Floats:
    left = 1.0 - expected
    left[left < 1e-12] = 0.0
    return _ratio(observed - expected, left)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Undefined (nan) where there is no whole."""
    safe = np.where(whole == 0, np.nan, whole)
    return np.asarray(part / safe, dtype=float)
