"""The three versioned prompts: ask, explain a given answer, re-solve from a reasoning.

The prompt that trains is the prompt that asks: the trainer, the workers and the evaluator all build messages here.
A prompt is a list of parts; every image comes before the question, so that all questions about one sample share one
image prefix. Changing a word of a prompt means a new version: a test pins each version's text.
Not here: how images become pixels or URLs (trainer/data.py, annotation_workers/model_client.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from trainer.contract.answers import Answer, format_answer
from trainer.contract.conclusions import without_conclusion
from trainer.contract.dimensions import Dimension, Polarity, letters


class PromptKind(StrEnum):
    """What a prompt wants."""

    ASK = "ask"
    """Reasoning and answer from the images."""
    EXPLAIN = "explain"
    """The reasoning that leads to a given answer."""
    RESOLVE = "resolve"
    """The answer from the images and somebody's reasoning whose answer was cut off."""


PROMPT_VERSIONS: dict[PromptKind, str] = {
    PromptKind.ASK: "ask-1",
    PromptKind.EXPLAIN: "explain-1",
    PromptKind.RESOLVE: "resolve-1",
}


@dataclass(frozen=True, slots=True)
class Text:
    """Words in a prompt."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The place of an image: 0 is the original, 1 to n the candidates in letter order."""

    index: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user message: all pictures first, then the question."""

    kind: PromptKind
    version: str
    parts: tuple[Text | Picture, ...]

    @property
    def question(self) -> str:
        """The words after the last picture: what differs between prompts about one sample."""
        return "".join(part.text for part in self.parts[-1:] if isinstance(part, Text))


_CRITERIA: dict[Dimension, str] = {
    Dimension.APPEARANCE_DEFORMATION: (
        "appearance deformation: the product must look as in the original - same outline, parts, colours and label, "
        "nothing bent, garbled, missing or added"
    ),
    Dimension.PHYSICAL_SHADOW: (
        "physical shadow: the product must cast a shadow that touches it, falls away from the visible light, "
        "and has a believable length and darkness"
    ),
    Dimension.PLACEMENT_LAYOUT: (
        "placement and layout: the product must stand on the ground, upright, whole, "
        "and at a believable size for the scene"
    ),
    Dimension.EXTENSION_RATIONALITY: (
        "extension rationality: the background that was added must continue in one piece, "
        "without seams, repeats, ghosts or broken lines"
    ),
}

_LISTED: dict[Polarity, str] = {Polarity.ACCEPTABLE: "acceptable", Polarity.FLAWED: "flawed"}

EXPLAIN_WISH = "Write the reasoning that leads there from what is visible, as if you had found it yourself."

FORM = "Reply as <think>what you see in each candidate</think><answer>letters separated by commas, or none</answer>."


def criterion(dimension: Dimension) -> str:
    """What a dimension asks of a candidate, as every prompt says it."""
    return _CRITERIA[dimension]


@cache
def image_prefix(count: int) -> tuple[Text | Picture, ...]:
    """Original and candidates, each named before it is shown: the part that every prompt about a sample shares."""
    parts: list[Text | Picture] = [Text("Original:"), Picture(0)]
    for index, letter in enumerate(letters(count), start=1):
        parts += [Text(f"Candidate {letter}:"), Picture(index)]
    return tuple(parts)


def ask(dimension: Dimension, polarity: Polarity, count: int) -> Prompt:
    """The images and the question: which candidates does the answer list?"""
    question = f"Judge {_CRITERIA[dimension]}. Which candidates are {_LISTED[polarity]}? {FORM}"
    return _prompt(PromptKind.ASK, count, question)


def explain(dimension: Dimension, polarity: Polarity, count: int, answer: Answer) -> Prompt:
    """The images and the answer: what reasoning leads to it? The reply must not mention that it was told."""
    question = (
        f"Judge {_CRITERIA[dimension]}. The {_LISTED[polarity]} candidates are: {format_answer(answer)}. "
        f"{EXPLAIN_WISH} {FORM}"
    )
    return _prompt(PromptKind.EXPLAIN, count, question)


def resolve(dimension: Dimension, polarity: Polarity, count: int, reasoning: str) -> Prompt:
    """The images and a reasoning, whose conclusion is cut off here: what answer does it lead to?

    Where nothing is left, the reasoning was its conclusion.
    """
    question = (
        f"Judge {_CRITERIA[dimension]}. Somebody reasoned: {without_conclusion(reasoning)} "
        f"Following the images and this reasoning, which candidates are {_LISTED[polarity]}? {FORM}"
    )
    return _prompt(PromptKind.RESOLVE, count, question)


def _prompt(kind: PromptKind, count: int, question: str) -> Prompt:
    return Prompt(kind, PROMPT_VERSIONS[kind], (*image_prefix(count), Text(question)))


def openai_messages(prompt: Prompt, image_urls: Sequence[str]) -> list[dict[str, Any]]:
    """The prompt as chat messages of the OpenAI protocol; `image_urls` are URLs or data URIs, the original first."""
    content: list[dict[str, Any]] = []
    for part in prompt.parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        else:
            content.append({"type": "image_url", "image_url": {"url": image_urls[part.index]}})
    return [{"role": "user", "content": content}]


def template_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as messages for a model's own chat template, images as ``{"type": "image"}``."""
    content = [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image"} for part in prompt.parts
    ]
    return [{"role": "user", "content": content}]
