"""A reasoning without its conclusion: what says the answer goes, what is seen stays; trained on as it is asked."""

from __future__ import annotations

import pytest

from trainer.contract import prompts
from trainer.contract.conclusions import without_conclusion
from trainer.contract.dimensions import Dimension, Polarity


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("A: a shadow, fine. B: none, flawed. Fine: A. Flawed: B.", "A: a shadow, fine. B: none, flawed."),
        ("A stands. B floats. So A is acceptable.", "A stands. B floats."),
        ("A stands. B floats.\nTherefore the answer is A.", "A stands. B floats."),
        ("A stands. B floats. The final answer: A.", "A stands. B floats."),
        ("A stands. A and C are acceptable.", "A stands."),
        ("A stands. B is flawed.", "A stands. B is flawed."),
        ("A站在地上。B悬空。因此答案是A。", "A站在地上。 B悬空。"),
        ("Fine: A.", ""),
    ],
)
def test_a_conclusion_is_cut_off_and_the_reasoning_stays(text: str, reasoning: str) -> None:
    assert without_conclusion(text) == reasoning.strip()


def test_the_prompt_shows_no_conclusion_whoever_builds_it() -> None:
    said = "A: a shadow, fine. B: none, flawed. Fine: A. Flawed: B. So the answer is A."
    asked = prompts.resolve(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 2, said)
    assert "Somebody reasoned: A: a shadow, fine. B: none, flawed. Following the images" in asked.question
    assert "Fine: A" not in asked.question
