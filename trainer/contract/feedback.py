"""What may be wrong with a completion that can be read, and what is said to the model that is asked once more.

A prompt with feedback is the prompt with one sentence more before its form: no earlier completion is shown again, and
no sentence speaks of one, of being told something or of what must not be said. A model repeats what it reads: words
about an earlier try, or the forbidden phrases themselves, would come back. Changing a word means a new version.

Not here: finding what is wrong (annotation_workers/checks.py), the prompts themselves (prompts.py).
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from trainer.contract.answers import Refusal
from trainer.contract.prompts import FORM, Prompt, Text

FEEDBACK_VERSION = "feedback-1"


class Objection(StrEnum):
    """Why a completion in the grammar is not taken, in the order in which it is looked for."""

    ANSWER_DIFFERS = "answer_differs"
    """It ends in another answer than the one it was to explain."""
    NO_RATIONALE = "no_rationale"
    """It holds an answer and no reasoning."""
    TOO_LONG = "too_long"
    TOO_SHORT = "too_short"
    LEAKS = "leaks"
    """It says, or shows by repeating the instruction, that it was told what to say."""
    EMPTY_TALK = "empty_talk"
    """It names no candidate, or nothing that can be seen of the dimension."""
    CONTRADICTS = "contradicts"
    """What it says about a candidate is the opposite of its answer."""
    NEAR_COPY = "near_copy"
    """Its words are those of another task's reasoning."""
    RESOLVE_DIFFERS = "resolve_differs"
    """Somebody who saw the images and this reasoning without its answer answered otherwise."""
    RESOLVE_UNREAD = "resolve_unread"
    """Whoever was to answer from this reasoning gave nothing that could be read."""


_GRAMMAR = (
    "Mind the form: the reasoning stands between <think> and </think>, and after it one answer between <answer> and "
    "</answer>, which is letters separated by commas or the word none."
)
_EVIDENCE = "Mind: say of every candidate, by its letter, what is visible in it and what follows from that."

_WORDS: dict[str, str] = dict.fromkeys(Refusal, _GRAMMAR) | {
    Objection.ANSWER_DIFFERS: "Mind: the reasoning ends in exactly this answer.",
    Objection.NO_RATIONALE: _EVIDENCE,
    Objection.TOO_LONG: "Mind: be brief, one or two sentences for each candidate.",
    Objection.TOO_SHORT: _EVIDENCE,
    Objection.LEAKS: "Mind: every sentence speaks of something visible in a candidate, and of nothing else.",
    Objection.EMPTY_TALK: _EVIDENCE,
    Objection.CONTRADICTS: "Mind: what is said of each candidate agrees with the answer.",
    Objection.NEAR_COPY: "Mind: name what is particular to these images: objects, colours, places and sizes.",
    Objection.RESOLVE_DIFFERS: _EVIDENCE,
    Objection.RESOLVE_UNREAD: _EVIDENCE,
}


def feedback(reason: str) -> str:
    """The sentence for a refusal of the grammar or an objection; empty where nothing helpful can be said."""
    return _WORDS.get(reason, "")


def with_feedback(prompt: Prompt, reason: str) -> Prompt:
    """The prompt for another try after `reason`, with one sentence more. Its version names both."""
    said = feedback(reason)
    if not said:
        return prompt
    question = Text(f"{prompt.question.removesuffix(FORM)}{said} {FORM}")
    return replace(prompt, version=f"{prompt.version}+{FEEDBACK_VERSION}", parts=(*prompt.parts[:-1], question))
