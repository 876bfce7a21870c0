"""Blind re-solve: somebody who sees the images and a reasoning without its answer must come to the same answer.

A reasoning that only sounds right, or belongs to other images, leads elsewhere. Its own call, its own attempt; what it
says decides about the attempt that it resolves. Not here: when it is called (annotate.py), calling (model_client.py).
"""

from __future__ import annotations

from annotation_workers.verdicts import Question, Rejected, read_and_check
from trainer.contract.answers import Completion, format_answer
from trainer.contract.feedback import Objection
from trainer.contract.prompts import Prompt, resolve


def build_prompt(question: Question, rationale: str) -> Prompt:
    """Images and reasoning; the prompt itself cuts the conclusion off."""
    return resolve(question.dimension, question.polarity, question.candidates, rationale)


def read(question: Question, text: str) -> Completion | Rejected:
    """The re-solve as far as it can be read: the grammar is all that is asked of it."""
    return read_and_check((), question, text)


def compare(reasoned: Completion, resolved: Completion) -> Rejected | None:
    """The same answer, or the reasoning is refused."""
    if resolved.answer == reasoned.answer:
        return None
    return Rejected(
        Objection.RESOLVE_DIFFERS,
        f"its answer is {format_answer(reasoned.answer)}, who read it without says {format_answer(resolved.answer)}",
    )
