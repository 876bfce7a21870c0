"""Rewards of completions: `trainer.contract.scores.grade`, applied to a record's group.

Not here: any formula (trainer/contract/scores.py has the only one), and what the optimizer makes of a reward
(objective.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.contract.records import Record
from trainer.contract.scores import Grade, RewardWeights, grade


def grade_completions(record: Record, completions: Sequence[str], weights: RewardWeights) -> list[Grade]:
    """What each completion about `record` earned, in order; `.reward` of a grade is what the optimizer sees."""
    return [grade(text, record.answer, len(record.candidates), weights) for text in completions]
