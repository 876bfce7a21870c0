"""What both model approaches share: the question about a task, and the verdict on a completion.

Not here: what a good completion is (checks.py), who asks for what (automated.py, answer_driven.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.contract.answers import Answer, Completion, CompletionRefused, parse_completion
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Limits:
    """What a project asks of a reasoning's length, in words."""

    min_words: int = 0
    max_words: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked about a task."""

    dimension: Dimension
    polarity: Polarity
    candidates: int
    given_answer: Answer | None = None
    """Answer-driven: the answer whose reasoning is wanted."""
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A completion that is not taken: a countable word and one line for people."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ModelApproach:
    """What sets the approaches apart: how a task is put to a model, and when its completion is taken."""

    build_prompt: Callable[[Question], Prompt]
    judge: Callable[[Question, str], Completion | Rejected]
    response_format: Callable[[Question], dict[str, Any]] | None = None
    """What a completion has to be held to by the endpoint, where the run asks for that."""


Check = Callable[[Question, Completion], Rejected | None]
"""Looks at one thing in a completion; None when it is fine. Its counts stand on the run's page, by reason."""


def read_and_check(checks: tuple[Check, ...], question: Question, text: str) -> Completion | Rejected:
    """The completion, else what the grammar or the first check that minds has to say."""
    try:
        completion = parse_completion(text, question.candidates)
    except CompletionRefused as error:
        return Rejected(error.reason.value, str(error))
    return next((said for check in checks if (said := check(question, completion)) is not None), completion)
