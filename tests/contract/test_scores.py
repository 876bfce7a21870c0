"""Scores: bounded, invariant where the design says so, and beside every score the chance levels it has to beat."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract.answers import Answer, complement, format_completion
from trainer.contract.dimensions import letters
from trainer.contract.scores import (
    POLARITY_BOUND,
    RewardWeights,
    ScoreVariant,
    all_answers,
    chance_levels,
    grade,
    score,
)

VARIANTS = st.sampled_from(list(ScoreVariant))


@st.composite
def pairs(draw: st.DrawFn, most: int = 8) -> tuple[Answer, Answer, int]:
    """(predicted, gold, count)."""
    count = draw(st.integers(1, most))
    answers = st.frozensets(st.sampled_from(letters(count)))
    return draw(answers), draw(answers), count


@given(VARIANTS, pairs())
def test_every_score_is_between_0_and_1_and_1_for_the_right_answer(
    variant: ScoreVariant, case: tuple[Answer, Answer, int]
) -> None:
    predicted, gold, count = case

    assert 0 <= score(variant, predicted, gold, count) <= 1
    assert score(variant, gold, gold, count) == 1
    assert score(variant, None, gold, count) == 0


@given(st.sampled_from(["exact", "balanced", "hamming"]), pairs())
def test_flipping_the_polarity_changes_nothing(name: str, case: tuple[Answer, Answer, int]) -> None:
    predicted, gold, count = case
    variant = ScoreVariant(name)

    flipped = score(variant, complement(predicted, count), complement(gold, count), count)

    assert flipped == pytest.approx(score(variant, predicted, gold, count))


def test_polarity_bound_is_exactly_what_flipping_changes() -> None:
    changed = {
        variant
        for variant in ScoreVariant
        for predicted in all_answers(4)
        for gold in all_answers(4)
        if abs(score(variant, predicted, gold, 4) - score(variant, complement(predicted, 4), complement(gold, 4), 4))
        > 1e-9
    }
    assert changed == POLARITY_BOUND


@given(pairs())
def test_balanced_rises_with_every_corrected_letter_and_is_1_only_when_exact(
    case: tuple[Answer, Answer, int],
) -> None:
    predicted, gold, count = case
    before = score(ScoreVariant.BALANCED, predicted, gold, count)

    for wrong in predicted ^ gold:
        assert score(ScoreVariant.BALANCED, predicted ^ {wrong}, gold, count) > before
    assert (before == 1) == (predicted == gold)


def naive(variant: ScoreVariant, predicted: Answer, gold: Answer, count: int) -> float:
    """The formulas of docs/design.md, word for word."""
    not_predicted, not_gold = complement(predicted, count), complement(gold, count)
    match variant:
        case ScoreVariant.EXACT:
            return 1.0 if predicted == gold else 0.0
        case ScoreVariant.BALANCED:
            sides = [(predicted & gold, gold), (not_predicted & not_gold, not_gold)]
            shares = [len(hit) / len(side) for hit, side in sides if side]
            return sum(shares) / len(shares)
        case ScoreVariant.HAMMING:
            return 1 - len((predicted - gold) | (gold - predicted)) / count
        case ScoreVariant.JACCARD:
            return 1.0 if not predicted and not gold else len(predicted & gold) / len(predicted | gold)
        case ScoreVariant.STRICT if gold:
            return len(predicted) / len(gold) if predicted.issubset(gold) else 0.0
        case ScoreVariant.NET if gold:
            return max(0.0, (len(predicted & gold) - len(predicted - gold)) / len(gold))
        case _:
            return 1.0 if not predicted else 0.0


@given(VARIANTS, pairs())
def test_it_is_the_formula_of_the_design(variant: ScoreVariant, case: tuple[Answer, Answer, int]) -> None:
    assert score(variant, *case) == pytest.approx(naive(variant, *case))


@pytest.mark.parametrize(
    ("variant", "by_size"),
    [
        ("balanced", [0.5, 0.5, 0.5, 0.5, 0.5]),
        ("hamming", [0.5, 0.5, 0.5, 0.5, 0.5]),
        ("jaccard", [0.062, 0.234, 0.354, 0.438, 0.5]),
        ("strict", [0.062, 0.062, 0.125, 0.25, 0.5]),
        ("net", [0.062, 0.062, 0.188, 0.354, 0.5]),
    ],
)
def test_the_chance_table_of_the_design(variant: str, by_size: list[float]) -> None:
    # The table cuts 1/16 to .062.
    golds = [frozenset("ABCD"[:size]) for size in range(5)]
    found = [chance_levels(ScoreVariant(variant), [None], [gold], [4], ["physical_shadow"]).uniform for gold in golds]

    assert found == pytest.approx(by_size, abs=0.00051)


@given(VARIANTS, st.lists(pairs(most=3), min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
@settings(deadline=None)
def test_chance_levels_are_those_of_brute_force(
    variant: ScoreVariant, cases: list[tuple[Answer, Answer, int]], parsed: list[bool]
) -> None:
    count = cases[0][2]
    same = [case for case in cases if case[2] == count]
    gold = [case[1] for case in same]
    predicted = [case[0] if kept else None for case, kept in zip(same, parsed, strict=False)]

    found = chance_levels(variant, predicted, gold, [count] * len(gold), ["physical_shadow"] * len(gold))

    def mean(guesses: list[Answer | None]) -> float:
        return sum(score(variant, guess, right, count) for guess, right in zip(guesses, gold, strict=True)) / len(gold)

    constants = [mean([guess] * len(gold)) for guess in all_answers(count)]
    dealt = [mean(list(order)) for order in permutations(predicted)]
    assert found.uniform == pytest.approx(sum(constants) / len(constants))
    assert found.best_constant == pytest.approx(max(constants))
    assert found.permuted == pytest.approx(sum(dealt) / len(dealt))


def test_chance_levels_are_weighted_over_candidate_counts() -> None:
    gold = [frozenset("A"), frozenset("A"), frozenset("B")]

    found = chance_levels(ScoreVariant.EXACT, gold, gold, [2, 2, 1 + 2], ["physical_shadow"] * 3)

    assert found.uniform == pytest.approx((2 / 4 + 1 / 8) / 3)
    assert (found.best_constant, found.permuted) == (1, 1)


def test_who_answers_each_dimension_its_own_way_without_a_look_is_at_chance() -> None:
    dimensions = ["physical_shadow"] * 4 + ["placement_layout"] * 4
    gold: list[Answer] = [frozenset("A"), *[frozenset("AB")] * 3, frozenset(), *[frozenset("C")] * 3]
    blind: list[Answer] = [frozenset("AB")] * 4 + [frozenset("C")] * 4

    found = chance_levels(ScoreVariant.EXACT, blind, gold, [4] * 8, dimensions)

    right = sum(map(frozenset.__eq__, blind, gold)) / 8
    assert (found.permuted, found.best_constant, found.uniform) == (right, right, 1 / 16)


@pytest.mark.parametrize(("predicted", "gold", "counts"), [([], [], []), ([None], [frozenset()], [])])
def test_chance_levels_want_one_of_each_per_record(
    predicted: list[None], gold: list[Answer], counts: list[int]
) -> None:
    with pytest.raises(ValueError, match="chance levels need"):
        chance_levels(ScoreVariant.EXACT, predicted, gold, counts, ["physical_shadow"] * len(counts))


@given(pairs(), VARIANTS)
def test_grade_and_reward_are_one_function(case: tuple[Answer, Answer, int], variant: ScoreVariant) -> None:
    predicted, gold, count = case
    weights = RewardWeights(variant=variant, dpa=0.7, parsable=0.2, exact=0.1)

    earned = grade(format_completion("because", predicted), gold, count, weights)

    dpa, exact = score(variant, predicted, gold, count), float(predicted == gold)
    assert (earned.answer, earned.refusal, earned.exact, earned.dpa) == (predicted, None, exact, dpa)
    assert earned.reward == pytest.approx(0.7 * dpa + 0.2 + 0.1 * exact)


@given(st.text(max_size=40), st.integers(1, 8))
def test_what_cannot_be_parsed_earns_nothing(text: str, count: int) -> None:
    earned = grade(text.replace("<", ""), frozenset(), count, RewardWeights())

    assert (earned.answer, earned.exact, earned.dpa, earned.reward) == (None, 0, 0, 0)
    assert earned.refusal


@pytest.mark.parametrize("weights", [{"dpa": -1}, {"dpa": 0, "parsable": 0, "exact": 0}])
def test_reward_weights_that_reward_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="reward weights"):
        RewardWeights(**weights)  # type: ignore[arg-type]
