"""Feedback: one pinned sentence per reason, before the form, that shows no completion and teaches no leak."""

from __future__ import annotations

import hashlib
import json

import pytest

from trainer.contract.answers import Refusal
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.feedback import FEEDBACK_VERSION, Objection, feedback, with_feedback
from trainer.contract.prompts import FORM, explain

PINNED = {"feedback-1": "b853d8874666f7c53ad81baacb3057c70866ab924a3c7f969daf45c7ef9e1f15"}
"""sha256 of every sentence of a version. Changing a word means a new version with a line of its own here."""

PROMPT = explain(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4, frozenset("AC"))


def test_the_words_of_a_version_never_change() -> None:
    words = {reason.value: feedback(reason) for reason in (*Refusal, *Objection)}
    assert hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest() == PINNED[FEEDBACK_VERSION]


def test_it_stands_before_the_form_and_everything_else_stays() -> None:
    asked_again = with_feedback(PROMPT, Objection.TOO_SHORT)
    assert asked_again.version == "explain-1+feedback-1"
    assert asked_again.parts[:-1] == PROMPT.parts[:-1]
    assert asked_again.question == PROMPT.question.replace(FORM, f"{feedback(Objection.TOO_SHORT)} {FORM}")
    assert "are: A,C." in asked_again.question


@pytest.mark.parametrize("reason", [*Refusal, *Objection])
def test_every_reason_has_a_sentence(reason: Refusal | Objection) -> None:
    assert feedback(reason).startswith("Mind")


@pytest.mark.parametrize("reason", ["", "timeout", "image_missing"])
def test_where_the_model_is_not_to_blame_it_is_asked_the_same(reason: str) -> None:
    assert with_feedback(PROMPT, reason) == PROMPT
