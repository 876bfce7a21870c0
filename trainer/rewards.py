"""Rewards of completions: `trainer.contract.scores.grade`, applied to a record's group.

Not here: any formula (trainer/contract/scores.py has the only one), and what the optimizer makes of a reward
(objective.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.contract.answers import format_answer
from trainer.contract.records import Record
from trainer.contract.scores import Grade, RewardWeights, grade


def grade_completions(record: Record, completions: Sequence[str], weights: RewardWeights) -> list[Grade]:
    """What each completion about `record` earned, in order; `.reward` of a grade is what the optimizer sees."""
    return [grade(text, record.answer, len(record.candidates), weights) for text in completions]


def mean_figures(grades: Sequence[Grade]) -> dict[str, float]:
    """Means over completions: reward, exact, dpa, and the share that could be parsed. ValueError when there is none."""
    if not grades:
        raise ValueError("there is no grade to take a mean of")
    return {
        "reward": sum(grade.reward for grade in grades) / len(grades),
        "exact": sum(grade.exact for grade in grades) / len(grades),
        "dpa": sum(grade.dpa for grade in grades) / len(grades),
        "parsable": sum(grade.refusal is None for grade in grades) / len(grades),
    }


def sample_row(record: Record, text: str, weights: RewardWeights) -> dict[str, Any]:
    """A completion to be read by people, beside what stands: a row of samples.jsonl."""
    (earned,) = grade_completions(record, [text], weights)
    return {
        "record_id": record.id,
        "dimension": record.dimension.value,
        "gold": format_answer(record.answer),
        "answer": None if earned.answer is None else format_answer(earned.answer),
        "refusal": earned.refusal.value if earned.refusal else None,
        "reward": round(earned.reward, 4),
        "exact": earned.exact,
        "text": text,
    }


def exact_by_dimension(records: Sequence[Record], grades: Sequence[Grade]) -> dict[str, float]:
    """Exact match of completions per dimension, one record per grade; dimensions without a record are left out."""
    found: dict[str, list[float]] = {}
    for record, one in zip(records, grades, strict=True):
        found.setdefault(record.dimension.value, []).append(one.exact)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}
