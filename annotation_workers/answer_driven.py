"""Answer-driven annotation: a person gave the answer; ask a model for the reasoning that leads to it.

Not here: calling the model (model_client.py), saving (annotation_server/runs/ledger.py).
"""

from __future__ import annotations

from annotation_workers.verdicts import Check, Question, Rejected, first_objection
from trainer.contract.answers import Answer, Completion, CompletionRefused, format_answer, parse_completion
from trainer.contract.prompts import Prompt, explain


def build_prompt(question: Question) -> Prompt:
    """Images, question and the answer."""
    return explain(question.dimension, question.polarity, question.candidates, _given(question))


def same_answer(question: Question, completion: Completion) -> Rejected | None:
    """A reasoning that leads elsewhere explains nothing."""
    given = _given(question)
    if completion.answer == given:
        return None
    return Rejected(
        "answer_differs", f"given {format_answer(given)}, the completion says {format_answer(completion.answer)}"
    )


def has_rationale(question: Question, completion: Completion) -> Rejected | None:
    """The reasoning is all that was asked for."""
    return None if completion.rationale else Rejected("no_rationale", "the completion holds an answer and no reasoning")


CHECKS: tuple[Check, ...] = (same_answer, has_rationale)
"""In this order: the first that minds names the rejection."""


def judge(question: Question, text: str) -> Completion | Rejected:
    """The completion if its reasoning can stand for the given answer, else why not."""
    try:
        completion = parse_completion(text, question.candidates)
    except CompletionRefused as error:
        return Rejected(error.reason.value, str(error))
    return first_objection(CHECKS, question, completion) or completion


def _given(question: Question) -> Answer:
    if question.given_answer is None:
        raise ValueError("an answer-driven question needs the answer that was given")
    return question.given_answer
