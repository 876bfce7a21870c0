"""Automated annotation: the model gives reasoning and answer.

Not here: calling the model (model_client.py), the checks themselves (checks.py), saving (runs/ledger.py).
"""

from __future__ import annotations

from annotation_workers.checks import OF_AUTOMATED
from annotation_workers.verdicts import Question, Rejected, read_and_check
from trainer.contract.answers import Completion
from trainer.contract.prompts import Prompt, ask


def build_prompt(question: Question) -> Prompt:
    """Images and question."""
    return ask(question.dimension, question.polarity, question.candidates)


def judge(question: Question, text: str) -> Completion | Rejected:
    """The completion if it is one that can be used, else why not."""
    return read_and_check(OF_AUTOMATED, question, text)
