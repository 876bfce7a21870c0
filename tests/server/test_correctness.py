"""Shares with their intervals: against published values, and what must hold of any answers."""

from __future__ import annotations

from collections import Counter

import pytest

from annotation_server.runs.correctness import Checked, checked, correctness, wilson


@pytest.mark.parametrize(
    ("right", "wrong", "low", "high"),
    [
        # Of the tables with which "Compute the Wilson Score Interval" is posed on Code Golf (z = 1.96).
        (0, 1, 0.0, 0.7934567085261071),
        (1, 1, 0.09452865480086611, 0.905471345199134),
        (10, 1, 0.6226353745137962, 0.9837682477371741),
        (25, 75, 0.17545094003724265, 0.3430464637007583),
        (100, 0, 0.9630051925239981, 1.0),
    ],
)
def test_wilsons_interval(right: int, wrong: int, low: float, high: float) -> None:
    found = wilson(right / (right + wrong), right + wrong)
    assert found == pytest.approx((low, high), abs=2e-5)


def test_answers_to_a_task() -> None:
    """Gold AC of four: AC is exact; A has half of the right side and all of the other: 0.75; none at all 0.5."""
    said = [frozenset("AC"), frozenset("A"), frozenset[str]()]
    assert checked(said, frozenset("AC"), 4) == Checked(3, 1, 2.25)


def test_every_answer_weighs_the_same_and_a_task_is_one_trial() -> None:
    """Two tasks, four answers: 3 of 4 exact, as Wilson's interval of two trials says it; credit (1 + 2.5) / 4."""
    found = correctness(Counter({Checked(1, 1, 1.0): 1, Checked(3, 2, 2.5): 1}))
    assert (found.answers, found.tasks) == (4, 2)
    assert found.exact.value == 0.75
    assert (found.exact.low, found.exact.high) == wilson(0.75, 2)
    assert found.credit.value == pytest.approx(3.5 / 4)
    # Drawing two tasks gives both the one (1.0), both the other (2.5 / 3), or one of each.
    assert found.credit.low == pytest.approx(2.5 / 3)
    assert found.credit.high == 1


def test_equal_tasks_still_leave_a_doubt() -> None:
    found = correctness(Counter({Checked(1, 1, 1.0): 20}))
    assert found.credit.value == 1
    assert found.credit.low == found.exact.low == pytest.approx(wilson(1.0, 20)[0])
    assert found.credit.high == pytest.approx(1)


def test_the_interval_of_partial_credit_narrows_with_more_tasks() -> None:
    some = Counter({Checked(1, 1, 1.0): 6, Checked(1, 0, 0.5): 3, Checked(1, 0, 0.75): 3})
    few, many = correctness(some), correctness(Counter({task: 100 * times for task, times in some.items()}))
    assert few.credit.value == many.credit.value == pytest.approx((6 + 1.5 + 2.25) / 12)
    bounds = [few.credit.low, many.credit.low, few.credit.value, many.credit.high, few.credit.high]
    assert None not in bounds
    assert bounds == sorted(bounds, key=float)  # type: ignore[arg-type]  # none of them is None
    assert correctness(some) == few


def test_of_nothing_nothing_is_known() -> None:
    found = correctness(Counter())
    assert (found.answers, found.exact.value, found.credit.low) == (0, None, None)
