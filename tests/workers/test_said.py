"""What a reasoning says of each candidate: clear sentences count, in both languages, and nothing else does."""

from __future__ import annotations

import pytest

from annotation_workers.said import letters_named, verdicts_said
from fixtures.scenes import describe_sample
from trainer.contract.conclusions import without_conclusion
from trainer.contract.dimensions import DIMENSIONS


def said(text: str, count: int = 4) -> str:
    """Its verdicts: an upper-case letter for acceptable, a lower-case one for flawed."""
    return "".join(s.letter if s.acceptable else s.letter.lower() for s in verdicts_said(text, count))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A: the shadow falls left, away from the lamp, fine.", "A"),
        ("A: shape fine, mark red same, band blue changed, flawed.", "a"),
        ("Fine: A, C. Flawed: B, D.", "ACbd"),
        ("Fine: none. Flawed: A.", "a"),
        ("Candidate B is flawed because its label is torn.", "b"),
        ("B is not acceptable.", "b"),
        ("C is not flawed.", "C"),
        ("D is without visible defects.", "D"),
        ("A and C are acceptable, while B is unacceptable.", "ACb"),
        ("**A**: acceptable, because the shadow touches it.", "A"),
        ("Candidate A - the shadow lies apart, so flawed.", "a"),
        ("Only A is acceptable.", "A"),
        ("The acceptable candidates are A and C.", "AC"),
        ("Compared with A, B is flawed.", "b"),
        ("All candidates are acceptable.", "ABCD"),
        ("None of the candidates is flawed.", "ABCD"),
        ("No candidate is acceptable.", "abcd"),
        ("B fails.", "b"),
        ("A：影子落在左边，合格。", "A"),
        ("候选B有缺陷。", "b"),
        ("A和C可接受，B不合格。", "ACb"),
        ("可接受：A、C。有缺陷：B。", "ACb"),
        ("候选图D没有明显缺陷。", "D"),
    ],
)
def test_clear_sentences_say_it(text: str, expected: str) -> None:
    assert said(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A shadow is fine where it touches the foot.",
        "A's shadow is fine.",
        "The shadow of A and B is fine.",
        "The shadow of A is fine.",
        "A: shape fine, mark red same.",
        "A is fine at first glance.",
        "A is fine, but its shadow lies apart.",
        "A would be acceptable if the shadow touched it.",
        "Is A acceptable?",
        "B might be flawed.",
        "All candidates but B are acceptable.",
        "Neither B nor D is acceptable.",
        "A is correct in colour.",
        "A is fine in outline.",
        "A: the shadow falls left.",
        "Flawed: none.",
        "It is flawed.",
        "候选A的影子合格",
        "A似乎合格。",
        "",
    ],
)
def test_unclear_sentences_say_nothing(text: str) -> None:
    assert said(text) == ""


def test_letters_that_are_no_candidates_are_nobody() -> None:
    assert said("E is flawed. Fine: A, F.") == "A"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A stands on the ground; B floats above it.", "AB"),
        ("A shadow falls to the left.", ""),
        ("A soft light comes from a window; nothing is wrong.", ""),
        ("In candidate A the mug leans.", "A"),
        ("A: fine. D: flawed.", "AD"),
        ("A and C look alike.", "AC"),
        ("The mug (B) leans.", "B"),
        ("候选A的影子偏右，D没有影子。", "AD"),
        ("E floats.", ""),
    ],
)
def test_letters_are_named_and_articles_are_not(text: str, expected: str) -> None:
    assert "".join(sorted(letters_named(text, 4))) == expected


def test_drawn_scenes_say_of_every_candidate_what_is_true_with_and_without_their_conclusion() -> None:
    for seed in range(60):
        scenes = describe_sample(seed)
        for dimension in DIMENSIONS:
            text, fine = scenes.rationale(dimension), scenes.acceptable(dimension)
            reasoning = without_conclusion(text)
            assert "Fine:" not in reasoning
            truth = {letter: letter in fine for letter in "ABCD"}
            for words in (text, reasoning):
                assert {one.letter: one.acceptable for one in verdicts_said(words, 4)} == truth, words
