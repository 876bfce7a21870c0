"""Scores of a predicted answer against the answer that stands, the reward made of them, and what chance would get.

Grade and reward are one function: the evaluator prints the number the optimizer saw, and the platform's quality
pages call the same code. The formulas and the chance levels are those of docs/design.md, "Scores" (ours; the
paper's DPA formula is not known to us).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from trainer.contract.answers import Answer, CompletionRefused, Refusal, parse_completion
from trainer.contract.dimensions import letters


class ScoreVariant(StrEnum):
    """How partly right answers count. `exact` gives no partial credit; the others are the DPA family."""

    EXACT = "exact"
    BALANCED = "balanced"
    HAMMING = "hamming"
    JACCARD = "jaccard"
    STRICT = "strict"
    NET = "net"


POLARITY_BOUND = frozenset({ScoreVariant.JACCARD, ScoreVariant.STRICT, ScoreVariant.NET})
"""Variants whose value changes when both answers are complemented: they score in the record's own polarity."""


def score(variant: ScoreVariant, predicted: Answer | None, gold: Answer, count: int) -> float:
    """One prediction's score in [0, 1]; None (nothing could be parsed) scores 0 under every variant."""
    if predicted is None:
        return 0.0
    hit = len(predicted & gold)
    match variant:
        case ScoreVariant.EXACT:
            return float(predicted == gold)
        case ScoreVariant.BALANCED:
            sides = []
            if gold:
                sides.append(hit / len(gold))
            if len(gold) < count:
                sides.append((count - len(predicted | gold)) / (count - len(gold)))
            return sum(sides) / len(sides)
        case ScoreVariant.HAMMING:
            return 1 - len(predicted ^ gold) / count
        case ScoreVariant.JACCARD:
            return hit / len(predicted | gold) if predicted or gold else 1.0
        case ScoreVariant.STRICT:
            if not gold:
                return float(not predicted)
            return len(predicted) / len(gold) if predicted <= gold else 0.0
        case ScoreVariant.NET:
            if not gold:
                return float(not predicted)
            return max(0.0, (hit - len(predicted - gold)) / len(gold))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """How a reward is put together. The default, 0.9 × balanced + 0.1 × parsable, is ours."""

    variant: ScoreVariant = ScoreVariant.BALANCED
    """How a partly right answer counts."""
    dpa: float = 0.9
    """Weight of that score."""
    parsable: float = 0.1
    """Weight of an answer that can be read, right or wrong."""
    exact: float = 0.0
    """Weight of the answer that stands, to the letter."""

    def __post_init__(self) -> None:
        if min(self.dpa, self.parsable, self.exact) < 0 or self.dpa + self.parsable + self.exact <= 0:
            raise ValueError("reward weights must not be negative, and one must be positive")


@dataclass(frozen=True, slots=True)
class Grade:
    """Everything a completion earned."""

    answer: Answer | None
    refusal: Refusal | None
    exact: float
    dpa: float
    reward: float


def grade(text: str, gold: Answer, count: int, weights: RewardWeights) -> Grade:
    """Read a completion and score it: the number the evaluator prints is the number the optimizer saw."""
    try:
        answer = parse_completion(text, count).answer
    except CompletionRefused as refused:
        return Grade(answer=None, refusal=refused.reason, exact=0.0, dpa=0.0, reward=0.0)
    exact = score(ScoreVariant.EXACT, answer, gold, count)
    dpa = score(weights.variant, answer, gold, count)
    reward = weights.dpa * dpa + weights.parsable + weights.exact * exact
    return Grade(answer=answer, refusal=None, exact=exact, dpa=dpa, reward=reward)


def all_answers(count: int) -> list[Answer]:
    """Every subset of `count` candidates: 2**count answers, smallest first."""
    names = letters(count)
    return [frozenset(chosen) for size in range(count + 1) for chosen in combinations(names, size)]


@dataclass(frozen=True, slots=True)
class ChanceLevels:
    """What stands beside every score. All three are exact expectations, no sampling."""

    uniform: float
    """A uniform guess over all subsets."""
    best_constant: float
    """The best single answer for this split, chosen with the answers in view; of several dimensions, one for each."""
    permuted: float
    """The same predictions dealt out at random among the records, of several dimensions within each."""


def chance_levels(
    variant: ScoreVariant,
    predicted: Sequence[Answer | None],
    gold: Sequence[Answer],
    counts: Sequence[int],
    dimensions: Sequence[str],
) -> ChanceLevels:
    """Chance levels of mean score over records. Records are grouped by candidate count, since a guess must fit, and by
    dimension: the question names it, so that nobody has to look at the images to answer each in its own way.

    `predicted`, `gold`, `counts`, `dimensions`: one entry per record. ValueError when lengths differ or are 0.
    """
    if not gold or not len(predicted) == len(gold) == len(counts) == len(dimensions):
        raise ValueError("chance levels need one prediction, answer, candidate count and dimension per record")
    groups: dict[tuple[int, str], tuple[Counter[Answer | None], Counter[Answer]]] = defaultdict(
        lambda: (Counter(), Counter())
    )
    for prediction, answer, count, dimension in zip(predicted, gold, counts, dimensions, strict=True):
        predictions, answers = groups[count, dimension]
        predictions[prediction] += 1
        answers[answer] += 1
    uniform = constant = permuted = 0.0
    for (count, _), (predictions, answers) in groups.items():
        size = answers.total()
        means = [_mean_score(variant, guess, answers, count) for guess in all_answers(count)]
        uniform += size * sum(means) / len(means)
        constant += size * max(means)
        permuted += sum(times * _mean_score(variant, guess, answers, count) for guess, times in predictions.items())
    return ChanceLevels(uniform / len(gold), constant / len(gold), permuted / len(gold))


def _mean_score(variant: ScoreVariant, guess: Answer | None, answers: Counter[Answer], count: int) -> float:
    return sum(times * score(variant, guess, gold, count) for gold, times in answers.items()) / answers.total()
