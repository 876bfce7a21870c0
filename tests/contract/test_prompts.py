"""The prompts: all images first, every version's words pinned, what is asked is what is trained."""

from __future__ import annotations

import hashlib
import json

import pytest

from trainer.contract.answers import format_completion, parse_completion
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity
from trainer.contract.prompts import (
    PROMPT_VERSIONS,
    Picture,
    Prompt,
    PromptKind,
    Text,
    ask,
    explain,
    image_prefix,
    openai_messages,
    resolve,
    template_messages,
)

PINNED = {
    "ask-1": "d4703a9f2911a5706d135cfae5d8f7d5aa3268c733c6faeb6d9ba3a5c8bb86ef",
    "explain-1": "e270a6a01207546173cc45629b36db2425258d01f6f72ccacef4709bb696fd37",
    "resolve-1": "faf40a7d9e078737a31792e1813d0c92c26a5787c9c65e93eebbb72012336341",
}
"""sha256 of every wording of a version. Changing a word means a new version with a line of its own here."""


def every_wording(kind: PromptKind) -> list[Prompt]:
    made = []
    for dimension in DIMENSIONS:
        for polarity in Polarity:
            for count in (1, 4, 8):
                match kind:
                    case PromptKind.ASK:
                        made.append(ask(dimension, polarity, count))
                    case PromptKind.EXPLAIN:
                        made += [explain(dimension, polarity, count, frozenset(given)) for given in ("", "A")]
                    case PromptKind.RESOLVE:
                        made.append(resolve(dimension, polarity, count, " A fits. "))
    return made


@pytest.mark.parametrize("kind", PromptKind)
def test_the_words_of_a_version_never_change(kind: PromptKind) -> None:
    prompts = every_wording(kind)

    words = [[part.text if isinstance(part, Text) else part.index for part in prompt.parts] for prompt in prompts]

    assert {prompt.version for prompt in prompts} == {PROMPT_VERSIONS[kind]}
    assert hashlib.sha256(json.dumps(words).encode()).hexdigest() == PINNED[PROMPT_VERSIONS[kind]]


@pytest.mark.parametrize("kind", PromptKind)
def test_every_image_comes_before_the_question_and_all_prompts_share_that_prefix(kind: PromptKind) -> None:
    for prompt in every_wording(kind):
        count = sum(isinstance(part, Picture) for part in prompt.parts) - 1
        assert prompt.parts[:-1] == image_prefix(count)
        assert [part.index for part in prompt.parts if isinstance(part, Picture)] == list(range(count + 1))
        assert prompt.question == prompt.parts[-1].text  # type: ignore[union-attr]


def test_explain_tells_the_answer_and_ask_does_not() -> None:
    case = (Dimension.PHYSICAL_SHADOW, Polarity.FLAWED, 4)

    assert "are: A,C." in explain(*case, frozenset("CA")).question
    assert "are: none." in explain(*case, frozenset()).question
    assert "A,C" not in ask(*case).question
    assert "flawed" in ask(*case).question


def test_the_form_asked_for_is_the_form_that_is_read() -> None:
    form = ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4).question.partition("Reply as ")[2]

    written = format_completion("what you see in each candidate", frozenset("A"))
    assert form.startswith(written.partition("<answer>")[0])
    assert parse_completion(written, 4).answer == {"A"}


def test_messages_carry_the_images_in_place() -> None:
    prompt = ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 2)

    (sent,) = openai_messages(prompt, ["data:original", "data:a", "data:b"])
    (trained,) = template_messages(prompt)

    assert [part.get("image_url", {}).get("url") or part["text"] for part in sent["content"]] == [
        "Original:", "data:original", "Candidate A:", "data:a", "Candidate B:", "data:b", prompt.question
    ]  # fmt: skip
    assert [part["type"] for part in trained["content"]] == ["text", "image"] * 3 + ["text"]
    texts = [[part["text"] for part in message["content"] if part["type"] == "text"] for message in (sent, trained)]
    assert texts[0] == texts[1]
