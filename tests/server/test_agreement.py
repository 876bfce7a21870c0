"""Agreement coefficients against published values, the naive form, and what must hold of any answers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation_server.annotations.agreement import (
    Unit,
    by_answer,
    by_candidate,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    masi_distance,
    nominal_distance,
    pairs_by_candidate,
    percent_agreement,
)


def singly(units: Sequence[Unit]) -> Counter[tuple[Unit, ...]]:
    """Each unit by itself."""
    return Counter((unit,) for unit in units)


# Fleiss (1971), 30 patients by 6 psychiatrists each, as the R package irr prints it (`diagnoses`); it gives 0.4302445.
# 1 depression, 2 personality disorder, 3 schizophrenia, 4 neurosis, 5 other.
FLEISS_1971 = (
    *("444444", "222555", "233335", "555555", "222444", "113333", "333355", "113334", "114444", "555555"),
    *("144444", "124444", "222333", "144444", "224445", "333335", "111455", "111112", "224444", "133555"),
    *("555555", "244444", "224555", "114444", "144445", "222224", "111155", "224444", "133333", "555555"),
)

# Wikipedia, "Krippendorff's alpha", "A computational example": three coders, 15 units, 0.691 for nominal values.
THREE_CODERS = ("*****34121133*3", "1*213343*******", "**21344*21133*4")


def test_fleiss_kappa_of_the_psychiatric_example() -> None:
    estimate = fleiss_kappa(singly([tuple(row) for row in FLEISS_1971]))
    assert estimate.value == pytest.approx(0.4302445, abs=1e-7)
    assert estimate.clusters == 30
    assert estimate.low is not None
    assert estimate.high is not None
    # Fleiss' own standard error, made for no agreement at all, is 0.024; ours is of this sample and wider.
    assert 0.25 < estimate.low < 0.43 < estimate.high < 0.6


def test_krippendorff_alpha_of_wikipedias_three_coders() -> None:
    units = [tuple(value for value in column if value != "*") for column in zip(*THREE_CODERS, strict=True)]
    assert len(units) == 15
    estimate = krippendorff_alpha(singly(units))
    assert estimate.value == pytest.approx(0.691, abs=5e-4)
    assert estimate.clusters == 12  # two units have no value, one has a single one
    interval = krippendorff_alpha(singly(units), lambda one, other: (int(str(one)) - int(str(other))) ** 2)
    assert interval.value == pytest.approx(0.811, abs=5e-4)


def test_krippendorff_alpha_of_four_observers_with_missing_values() -> None:
    """The data of the R package irr's `kripp.alpha` help (Krippendorff's example C), one string per unit; by hand:

    coincidences 1: 9, 2: 13, 3: 10, 4: 5, 5: 3; n = 40 after the unit with a single value is left out; disagreeing
    coincidences 8 (a unit of 3, 3, 3, 2 gives 2, and so on), so alpha = 1 - 39 * 8 / (1600 - 81 - 169 - 100 - 25 - 9).
    """
    units = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
    estimate = krippendorff_alpha(singly([tuple(unit) for unit in units]), draws=0)
    disagreeing = 2 + 4 + 2  # units 2, 6 and 8: ordered unequal pairs / (values - 1) = 6/3, 12/3, 6/3
    assert estimate.value == pytest.approx(1 - 39 * disagreeing / (1600 - 81 - 169 - 100 - 25 - 9))
    assert estimate.value == pytest.approx(0.743, abs=5e-4)


def test_cohen_kappa_of_a_table_by_hand() -> None:
    """[[0, 4, 1], [0, 8, 0], [0, 1, 5]]: 13 of 19 agree; by chance (5·0 + 8·13 + 6·6) / 361. SAS prints 0.4842."""
    cells = {(0, 1): 4, (0, 2): 1, (1, 1): 8, (2, 1): 1, (2, 2): 5}
    expected = (8 * 13 + 6 * 6) / 361
    estimate = cohen_kappa({(pair,): number for pair, number in cells.items()})
    assert estimate.value == pytest.approx((13 / 19 - expected) / (1 - expected))
    assert estimate.value == pytest.approx(0.4842, abs=5e-5)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("AC", "AC", 0.0),
        ("", "", 0.0),
        ("AB", "ABCD", 1 - 2 / 4 * 2 / 3),  # one holds the other
        ("AB", "BC", 1 - 1 / 3 * 1 / 3),  # they overlap
        ("A", "B", 1.0),
        ("", "A", 1.0),
    ],
)
def test_masi_is_jaccard_times_monotonicity(one: str, other: str, distance: float) -> None:
    assert masi_distance(frozenset(one), frozenset(other)) == pytest.approx(distance)
    assert masi_distance(frozenset(other), frozenset(one)) == pytest.approx(distance)


answers = st.frozensets(st.sampled_from("ABCD"))
unit_of_answers = st.lists(answers, min_size=0, max_size=4).map(tuple)
many_units = st.lists(unit_of_answers, min_size=0, max_size=12)


def naive_alpha(units: Sequence[Unit], distance: Callable[[Any, Any], float]) -> float | None:
    """Every pair of values, one by one."""
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if not values:
        return None
    observed = sum(
        distance(one, other) / (len(unit) - 1) for unit in paired for one, other in itertools.permutations(unit, 2)
    ) / len(values)
    pairs = list(itertools.permutations(values, 2))
    expected = sum(distance(one, other) for one, other in pairs) / len(pairs)
    return None if expected == 0 else 1 - observed / expected


def naive_fleiss(units: Sequence[Unit]) -> float | None:
    paired = [unit for unit in units if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    if len(set(values)) < 2:
        return None
    shares = [
        sum(one == other for one, other in itertools.permutations(unit, 2)) / (len(unit) * (len(unit) - 1))
        for unit in paired
    ]
    observed = sum(shares) / len(shares)
    expected = sum((values.count(value) / len(values)) ** 2 for value in set(values))
    return (observed - expected) / (1 - expected)


def same(found: float | None, wanted: float | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return math.isclose(found, wanted, abs_tol=1e-9)


@given(many_units)
def test_it_is_what_the_naive_form_says(units: list[Unit]) -> None:
    for distance in (nominal_distance, masi_distance):
        found = krippendorff_alpha(singly(units), distance, draws=0).value
        assert same(found, naive_alpha(units, distance))
    assert same(fleiss_kappa(singly(units), draws=0).value, naive_fleiss(units))


@given(many_units, st.randoms())
def test_neither_the_order_of_tasks_nor_of_people_nor_names_matter(units: list[Unit], random: Random) -> None:
    shuffled = [tuple(random.sample(unit, len(unit))) for unit in units]
    random.shuffle(shuffled)
    for measure in (percent_agreement, fleiss_kappa, krippendorff_alpha):
        assert same(measure(singly(units), draws=0).value, measure(singly(shuffled), draws=0).value)
    renamed: dict[Hashable, int] = {}
    others = [tuple(renamed.setdefault(value, len(renamed)) for value in unit) for unit in units]
    assert same(krippendorff_alpha(singly(units), draws=0).value, krippendorff_alpha(singly(others), draws=0).value)


@given(st.lists(answers, min_size=2, max_size=10).filter(lambda values: len(set(values)) > 1), st.integers(2, 5))
def test_perfect_agreement_is_one(values: list[frozenset[str]], raters: int) -> None:
    units = singly([(value,) * raters for value in values])
    for estimate in (percent_agreement(units), fleiss_kappa(units), krippendorff_alpha(units)):
        assert estimate.value == pytest.approx(1)
    assert krippendorff_alpha(units, masi_distance, draws=0).value == pytest.approx(1)
    assert cohen_kappa(singly([(value, value) for value in values])).value == pytest.approx(1)


@pytest.mark.parametrize("units", [[], [("A",)], [("A", "A")], [("A", "A"), ("A", "A", "A")]])
def test_it_is_undefined_where_chance_leaves_nothing_to_agree_on(units: list[Unit]) -> None:
    for measure in (fleiss_kappa, krippendorff_alpha):
        estimate = measure(singly(units))
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    pairs = [unit for unit in units if len(unit) == 2]
    assert cohen_kappa(singly(pairs)).value is None


def test_the_interval_covers_the_value_and_narrows_with_more_tasks() -> None:
    pattern = [("A", "A")] * 6 + [("B", "B")] * 3 + [("A", "B")] * 3
    few, many = fleiss_kappa(singly(pattern)), fleiss_kappa(singly(pattern * 100))
    assert few.value == pytest.approx(many.value)
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    assert few.value is not None
    assert few.low < many.low < few.value < many.high < few.high
    assert fleiss_kappa(singly(pattern)) == few  # the same answers show the same interval


def test_one_task_has_no_interval() -> None:
    estimate = percent_agreement(singly([("A", "A", "B")]))
    assert estimate.value == pytest.approx(1 / 3)
    assert (estimate.low, estimate.high) == (None, None)


def test_answers_are_compared_whole_by_candidate_and_by_pairs() -> None:
    a, ab, none = frozenset("A"), frozenset("AB"), frozenset[str]()
    said = {(2, ((1, a), (2, ab))): 3, (2, ((2, a), (3, a))): 1, (3, ((1, none),)): 2}

    assert by_answer(said) == {((a, ab),): 3, ((a, a),): 1, ((none,),): 2}
    candidates = by_candidate(said)
    assert candidates[(False, True), (True, True)] == 3
    assert candidates[(False, False), (True, True)] == 1
    pairs = pairs_by_candidate(said)
    assert set(pairs) == {(1, 2), (2, 3)}
    assert pairs[1, 2] == {((False, True), (True, True)): 3}
    # Three times the same task: they agree on A and not on B.
    assert percent_agreement(pairs[1, 2], draws=0).value == pytest.approx(0.5)
