"""Automated annotation: the model gives reasoning and answer.

Not here: calling the model (model_client.py), the checks themselves (checks.py), saving (runs/ledger.py).
"""

from __future__ import annotations

from typing import Any

from annotation_workers.checks import OF_AUTOMATED
from annotation_workers.verdicts import Question, Rejected, read_and_check
from trainer.contract.answers import Completion, CompletionRefused, answer_schema, completion_from_json
from trainer.contract.prompts import Prompt, ask


def build_prompt(question: Question) -> Prompt:
    """Images and question."""
    return ask(question.dimension, question.polarity, question.candidates)


def response_format(question: Question) -> dict[str, Any]:
    """The grammar as a JSON schema, for endpoints that hold a model to one."""
    schema = {"name": "judgement", "strict": True, "schema": answer_schema(question.candidates)}
    return {"type": "json_schema", "json_schema": schema}


def judge_json(question: Question, text: str) -> Completion | Rejected:
    """What `judge` says of an answer in the schema."""
    try:
        return judge(question, completion_from_json(text, question.candidates))
    except CompletionRefused as error:
        return Rejected(error.reason.value, str(error))


def judge(question: Question, text: str) -> Completion | Rejected:
    """The completion if it is one that can be used, else why not."""
    return read_and_check(OF_AUTOMATED, question, text)
