"""The answer grammar: one strict way to write an answer, one tolerant way to read it that says why it refuses.

Written: ``<think>reasoning</think><answer>A,C</answer>``; the empty set is ``<answer>none</answer>``. An endpoint that
can hold a model to a JSON schema is given the same as one (`answer_schema`); what it says is turned into this grammar.
Not here: whether an answer is right (scores.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trainer.contract.dimensions import LETTERS, letters

Answer = frozenset[str]
"""A set of candidate letters, possibly empty, possibly all."""

NONE = "none"


class Refusal(StrEnum):
    """Why a completion could not be read as an answer."""

    EMPTY_COMPLETION = "empty_completion"
    UNCLOSED_THINK = "unclosed_think"
    NO_ANSWER = "no_answer"
    UNCLOSED_ANSWER = "unclosed_answer"
    SEVERAL_ANSWERS = "several_answers"
    EMPTY_ANSWER = "empty_answer"
    NONE_WITH_LETTERS = "none_with_letters"
    NOT_LETTERS = "not_letters"
    UNKNOWN_LETTER = "unknown_letter"
    NOT_IN_SCHEMA = "not_in_schema"


class CompletionRefused(ValueError):
    """A completion that is not an answer; `reason` is countable, the message is one line for people."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Completion:
    """What a completion said."""

    rationale: str
    answer: Answer


def as_answer(given: Iterable[str], count: int) -> Answer:
    """The letters as an answer among `count` candidates. ValueError names the first letter that is none of them."""
    allowed = letters(count)
    chosen = list(given)
    for letter in chosen:
        if len(letter) != 1 or letter not in allowed:
            raise ValueError(f"{letter!r} is not a candidate letter: expected some of {', '.join(allowed)}")
    return frozenset(chosen)


def complement(answer: Answer, count: int) -> Answer:
    """The letters not in `answer`: the same judgement in the other polarity."""
    return frozenset(letters(count)) - answer


def format_answer(answer: Answer) -> str:
    """``"A,C"`` in letter order, or ``"none"``."""
    return ",".join(sorted(answer)) or NONE


def format_completion(rationale: str, answer: Answer) -> str:
    """The one way a completion is written: what SFT teaches and the parser always accepts.

    ValueError when the rationale carries a tag of the grammar, since it would be read as something else.
    """
    if _ANY_TAG.search(rationale):
        raise ValueError("a rationale cannot contain <think> or <answer> tags")
    return f"<think>{rationale.strip()}</think><answer>{format_answer(answer)}</answer>"


def answer_schema(count: int) -> dict[str, Any]:
    """The grammar as a JSON schema, in what all servers of such schemas understand. The reasoning comes first: what a
    model has not written yet, it cannot reason from."""
    return {
        "type": "object",
        "properties": {
            "reasoning": {"type": "string"},
            "answer": {"type": "array", "items": {"type": "string", "enum": list(letters(count))}},
        },
        "required": ["reasoning", "answer"],
        "additionalProperties": False,
    }


def completion_from_json(text: str, count: int) -> str:
    """The completion, in the grammar, that an answer in the schema stands for. Raises CompletionRefused.

    Text that is no JSON object is returned as it is: an endpoint that ignores schemas may keep to the grammar.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):  # the latter where brackets are nested by the thousand
        if text.lstrip().startswith("{"):
            raise CompletionRefused(Refusal.NOT_IN_SCHEMA, "the JSON is cut or broken") from None
        return text
    if not isinstance(said, dict):
        return text
    reasoning, answer = said.get("reasoning"), said.get("answer")
    if not isinstance(reasoning, str) or not isinstance(answer, list) or set(said) != {"reasoning", "answer"}:
        raise CompletionRefused(
            Refusal.NOT_IN_SCHEMA, "expected an object of a reasoning (text) and an answer (list of letters)"
        )
    try:
        return format_completion(reasoning, as_answer(map(str, answer), count))
    except ValueError as error:
        raise CompletionRefused(Refusal.NOT_IN_SCHEMA, str(error)) from None


def parse_answer(text: str, count: int) -> Answer:
    """Read the inside of an answer tag: ``A,C``, ``a and c``, ``[A, C]``, ``Candidate A``, ``none``.

    Raises CompletionRefused. Runs of letters without a separator ("AC") are read as letters when every one is
    a candidate, because models write them; a word that is not made of candidate letters is refused.
    """
    words = [word for word in re.split(r"[\s,;/&+.]+", _BRACKETS.sub(" ", text).lower()) if word not in _FILLERS]
    if not words:
        raise CompletionRefused(Refusal.EMPTY_ANSWER, "the answer is empty: expected letters or 'none'")
    if NONE in words:
        if any(word != NONE for word in words):
            raise CompletionRefused(
                Refusal.NONE_WITH_LETTERS, f"the answer says 'none' and more: {text.strip()[:60]!r}"
            )
        return frozenset()
    chosen: set[str] = set()
    for word in words:
        upper = word.upper()
        if len(set(upper)) != len(upper) or any(letter not in LETTERS for letter in upper):
            raise CompletionRefused(Refusal.NOT_LETTERS, f"{word[:40]!r} is not a candidate letter")
        outside = [letter for letter in upper if letter not in letters(count)]
        if outside:
            raise CompletionRefused(
                Refusal.UNKNOWN_LETTER,
                f"there is no candidate {outside[0]}: expected some of {', '.join(letters(count))}",
            )
        chosen.update(upper)
    return frozenset(chosen)


def parse_completion(text: str, count: int) -> Completion:
    """Read a model's completion about `count` candidates.

    Tolerated: missing think tags (what stands before the answer is the rationale), any letter case, spaces,
    text after the answer, the same answer given twice. Raises CompletionRefused for everything else.
    """
    if not text.strip():
        raise CompletionRefused(Refusal.EMPTY_COMPLETION, "the completion is empty")
    thought, closed, rest = _last_partition(text, "</think>")
    if not closed:
        if _OPEN_THINK.search(text):
            raise CompletionRefused(
                Refusal.UNCLOSED_THINK, "<think> is never closed: the completion was cut or wandered"
            )
        rest = text
    answers = _ANSWER.findall(rest)
    if not answers:
        if _OPEN_ANSWER.search(rest):
            raise CompletionRefused(Refusal.UNCLOSED_ANSWER, "<answer> is never closed: the completion was cut")
        raise CompletionRefused(Refusal.NO_ANSWER, "there is no <answer>…</answer> after the reasoning")
    read = {parse_answer(answer, count) for answer in answers}
    if len(read) > 1:
        shown = "; ".join(sorted(format_answer(answer) for answer in read))
        raise CompletionRefused(Refusal.SEVERAL_ANSWERS, f"the completion gives different answers: {shown}")
    before = thought if closed else _ANSWER.split(rest, maxsplit=1)[0]
    return Completion(rationale=_ANY_TAG.sub("", before).strip(), answer=read.pop())


def _last_partition(text: str, tag: str) -> tuple[str, bool, str]:
    at = text.lower().rfind(tag)
    return (text[:at], True, text[at + len(tag) :]) if at >= 0 else ("", False, text)


_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_OPEN_ANSWER = re.compile(r"<answer>", re.IGNORECASE)
_OPEN_THINK = re.compile(r"<think>", re.IGNORECASE)
_ANY_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_BRACKETS = re.compile(r"[\[\](){}\"'`*:]")
_FILLERS = {"", "and", "candidate", "candidates", "only"}
