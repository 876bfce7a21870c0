"""What both model approaches share: the question about a task, and the verdict on a completion.

Not here: what a good completion is (automated.py, answer_driven.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.contract.answers import Answer, Completion
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked about a task."""

    dimension: Dimension
    polarity: Polarity
    candidates: int
    given_answer: Answer | None = None
    """Answer-driven: the answer whose reasoning is wanted."""


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


def first_objection(checks: tuple[Check, ...], question: Question, completion: Completion) -> Rejected | None:
    """What the first check that minds has to say."""
    return next((said for check in checks if (said := check(question, completion)) is not None), None)
