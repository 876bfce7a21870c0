"""Automated annotation: the model gives reasoning and answer.

Not here: calling the model (model_client.py), saving (annotation_server/runs/ledger.py).
"""

from __future__ import annotations

from annotation_workers.verdicts import Check, Question, Rejected, first_objection
from trainer.contract.answers import Completion, CompletionRefused, parse_completion
from trainer.contract.prompts import Prompt, ask

CHECKS: tuple[Check, ...] = ()
"""Beyond the grammar, nothing is asked of an automated completion yet."""


def build_prompt(question: Question) -> Prompt:
    """Images and question."""
    return ask(question.dimension, question.polarity, question.candidates)


def judge(question: Question, text: str) -> Completion | Rejected:
    """The completion if it is one, else why not."""
    try:
        completion = parse_completion(text, question.candidates)
    except CompletionRefused as error:
        return Rejected(error.reason.value, str(error))
    return first_objection(CHECKS, question, completion) or completion
