"""How often answers are right by some reference: the share that is exact and the mean partial credit, with intervals.

A task is what was drawn: several answers to one task are no independent evidence. Wilson's interval therefore takes
tasks for its n, which is on the safe side where a task has several answers; the bootstrap for partial credit draws
tasks. Equal tasks are counted, not repeated. Not here: which answers and which reference (comparison_queries.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from trainer.contract.answers import Answer
from trainer.contract.scores import ScoreVariant, score

LEVEL = 0.95
DRAWS = 1000
_SEED = 20251113
"""Fixed, so that the same answers show the same interval."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the answers to one task earned: how many there are, how many are exact, their partial credit in all."""

    answers: int
    exact: int
    credit: float


Tasks = Counter[Checked]
"""How many tasks earned what."""


def checked(said: Iterable[Answer], reference: Answer, candidate_count: int) -> Checked:
    """The answers to one task, held against its reference. Scores are the contract's."""
    answers = list(said)
    return Checked(
        len(answers),
        sum(answer == reference for answer in answers),
        sum(score(ScoreVariant.BALANCED, answer, reference, candidate_count) for answer in answers),
    )


@dataclass(frozen=True, slots=True)
class Share:
    """A number from 0 to 1 and its 95 % interval; all None where there is nothing to take it of."""

    value: float | None
    low: float | None
    high: float | None


NOTHING = Share(None, None, None)


@dataclass(frozen=True, slots=True)
class Correctness:
    """How well answers agree with a reference."""

    answers: int
    tasks: int
    exact: Share
    credit: Share


def correctness(tasks: Mapping[Checked, int]) -> Correctness:
    """Of all answers together, each weighing the same."""
    number = sum(tasks.values())
    answers = sum(task.answers * times for task, times in tasks.items())
    if not answers:
        return Correctness(0, 0, NOTHING, NOTHING)
    exact = sum(task.exact * times for task, times in tasks.items()) / answers
    credit = min(sum(task.credit * times for task, times in tasks.items()) / answers, 1.0)
    return Correctness(
        answers, number, Share(exact, *wilson(exact, number)), Share(credit, *_drawn(tasks, credit, number))
    )


def wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's score interval of a share that was observed in `number` independent trials."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = share + z * z / (2 * number)
    reach = z * sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    whole = 1 + z * z / number
    return max((middle - reach) / whole, 0.0), min((middle + reach) / whole, 1.0)


def _drawn(tasks: Mapping[Checked, int], credit: float, number: int) -> tuple[float, float]:
    """The percentile interval of mean credit over samples of the tasks with replacement.

    Where every task earned the same, drawing says nothing about the next one: Wilson's interval stands in, which is
    never too narrow, since no number from 0 to 1 spreads wider than right-or-wrong.
    """
    if len({task.credit / task.answers for task in tasks}) == 1:
        return wilson(credit, number)
    table = np.array([(task.answers, task.credit) for task in tasks], dtype=float)
    times = np.array(list(tasks.values()), dtype=float)
    sums = np.random.default_rng(_SEED).multinomial(number, times / number, size=DRAWS) @ table
    low, high = np.quantile(sums[:, 1] / sums[:, 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
