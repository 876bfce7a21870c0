"""Answer-driven annotation: a person gave the answer; ask a model for the reasoning that leads to it.

Not here: calling the model (model_client.py), the checks themselves (checks.py), saving (runs/ledger.py).
"""

from __future__ import annotations

from annotation_workers.checks import OF_ANSWER_DRIVEN, given_answer
from annotation_workers.verdicts import Question, Rejected, read_and_check
from trainer.contract.answers import Completion
from trainer.contract.prompts import Prompt, explain


def build_prompt(question: Question) -> Prompt:
    """Images, question and the answer."""
    return explain(question.dimension, question.polarity, question.candidates, given_answer(question))


def judge(question: Question, text: str) -> Completion | Rejected:
    """The completion if its reasoning can stand for the given answer, else why not."""
    return read_and_check(OF_ANSWER_DRIVEN, question, text)
