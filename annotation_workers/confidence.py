"""How sure a model is: several samples of one task that vote, and the probabilities of the tokens of an answer.

Samples may see the candidates in another order each, so that a model which likes the first one best contradicts itself.
Pure functions. Not here: asking for the samples (annotate.py), what confidence is enough (a project's setting).
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from annotation_server.runs.models import Attempt
from trainer.contract.answers import Answer, Completion, format_answer
from trainer.contract.dimensions import letters

_ANSWER_SPANS = (
    re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL),
    re.compile(r'"answer"\s*:\s*\[(.*?)\]', re.DOTALL),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one completion said, in the letters that the candidates have."""

    attempt: Attempt
    completion: Completion


@dataclass(frozen=True, slots=True)
class Vote:
    """What most samples said."""

    answer: Answer
    rationale: str
    confidence: float
    """The share of the samples wanted, those that never came included, which said so."""
    agreeing: list[Attempt]
    outvoted: list[Attempt]
    votes: dict[str, int]
    """Answers, as they are written, and how many samples gave each."""


def order_shown(task_id: int, number: int, candidates: int) -> str:
    """In which order a task's call of that number shows its candidates: the first by letter, the others shuffled; the
    same again after a crash. Empty where it is by letter."""
    by_letter = letters(candidates)
    if number == 1:
        return ""
    dice = random.Random(f"{task_id}-{number}")  # noqa: S311 - they guard nothing
    shuffled = "".join(dice.sample(by_letter, k=candidates))
    return "" if shuffled == by_letter else shuffled


def in_order(messages: Sequence[dict[str, Any]], shown: str) -> list[dict[str, Any]]:
    """The contract's messages with the candidates' pictures in that order; the names before them stay: the model
    calls the first one A, whichever it is."""
    if not shown:
        return list(messages)
    (message,) = messages
    original, *candidates = [part for part in message["content"] if part["type"] == "image_url"]
    places = {letter: place for place, letter in enumerate(sorted(shown))}
    pictures = iter([original, *(candidates[places[letter]] for letter in shown)])
    content = [next(pictures) if part["type"] == "image_url" else part for part in message["content"]]
    return [message | {"content": content}]


def mapped_back(completion: Completion, shown: str) -> Completion:
    """What was said of the candidates as they were shown, said of the candidates. A reasoning speaks of them by the
    letters it saw, in words that no rule can tell from an article ("A shadow"): it is left out."""
    if not shown:
        return completion
    names = dict(zip(sorted(shown), shown, strict=True))
    return Completion(rationale="", answer=frozenset(names[letter] for letter in completion.answer))


def vote(samples: Sequence[Sample], wanted: int) -> Vote:
    """The answer that most samples gave, of equals the one given first, with the first reasoning that leads to it."""
    counted = Counter(sample.completion.answer for sample in samples)
    answer, agreeing = counted.most_common(1)[0]
    rationales = [s.completion.rationale for s in samples if s.completion.answer == answer]
    said_so = {sample.attempt.pk: sample.attempt for sample in samples if sample.completion.answer == answer}
    others = {sample.attempt.pk: sample.attempt for sample in samples if sample.attempt.pk not in said_so}
    return Vote(
        answer=answer,
        rationale=next(filter(None, rationales), ""),
        confidence=agreeing / max(wanted, len(samples)),
        agreeing=list(said_so.values()),
        outvoted=list(others.values()),
        votes={format_answer(given): times for given, times in counted.items()},
    )


def answer_probability(tokens: Sequence[tuple[str, float]]) -> float | None:
    """The mean probability of the tokens that an answer is written in; None where none are known, or none is one."""
    text = "".join(token for token, _ in tokens)
    found = next((match for span in _ANSWER_SPANS if (match := _last(span, text)) is not None), None)
    if found is None:
        return None
    begin, end = found.span(1)
    probabilities = []
    at = 0
    for token, logprob in tokens:
        if at < end and at + len(token) > begin:
            probabilities.append(min(1.0, math.exp(logprob)))
        at += len(token)
    return sum(probabilities) / len(probabilities) if probabilities else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=lambda match: match.start(), default=None)
