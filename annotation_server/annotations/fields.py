"""A database field that holds an answer: sorted letters in the row ("AC", "" for none), a frozenset in Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.db import models

from trainer.contract.answers import Answer
from trainer.contract.dimensions import MAX_CANDIDATES

if TYPE_CHECKING:
    AnswerBase = models.CharField[Iterable[str], Answer]
else:
    AnswerBase = models.CharField


class AnswerField(AnswerBase):
    """One answer. Whether its letters fit the task is checked where annotations are recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["max_length"] = MAX_CANDIDATES
        kwargs.setdefault("blank", True)
        super().__init__(*args, **kwargs)

    def from_db_value(self, value: str | None, *_: object) -> Answer | None:
        """The letters of the row as a set."""
        return None if value is None else frozenset(value)

    def to_python(self, value: Any) -> Answer | None:
        """As a set, from letters or any collection of them."""
        return None if value is None else frozenset(value)

    def get_prep_value(self, value: Any) -> str | None:
        """As sorted letters."""
        return None if value is None else "".join(sorted(value))
