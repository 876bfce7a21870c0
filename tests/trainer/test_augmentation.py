"""A permuted or mirrored sample says the same as before, or stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.scenes import describe_sample
from trainer.augmentation import mirror_rationale, permute_candidates
from trainer.contract.dimensions import DIMENSIONS, AnswerSource, Approach, Dimension, Polarity, Split
from trainer.contract.records import ImageFile, Record


def record(rationale: str, answer: str = "AC", count: int = 4) -> Record:
    pictures = [ImageFile(path=f"{n}.png", sha256=str(n), width=8, height=8) for n in range(count + 1)]
    return Record(
        id="s:physical_shadow",
        sample_id="s",
        split=Split.TRAIN,
        dimension=Dimension.PHYSICAL_SHADOW,
        polarity=Polarity.ACCEPTABLE,
        original=pictures[0],
        candidates=tuple(pictures[1:]),
        answer=frozenset(answer),
        answer_source=AnswerSource.GOLD,
        rationale=rationale,
        approach=Approach.MANUAL,
        annotators=1,
        agreement=None,
        prompt_version="ask-1",
        meta={"defects": [{}]},
    )


DRAWN = "A: soft, fine. B: detached, flawed. C: soft, fine. D: missing, flawed. Fine: A, C. Flawed: B, D."


def test_images_answer_and_rationale_move_together() -> None:
    moved = permute_candidates(record(DRAWN), [3, 0, 1, 2])
    assert moved is not None
    assert [image.path for image in moved.candidates] == ["4.png", "1.png", "2.png", "3.png"]
    assert moved.answer == {"B", "D"}
    assert moved.rationale == (
        "A: missing, flawed. B: soft, fine. C: detached, flawed. D: soft, fine. Fine: B, D. Flawed: A, C."
    )
    assert moved.meta == {}


@given(st.permutations(range(4)))
def test_the_way_back_is_the_inverse(order: list[int]) -> None:
    moved = permute_candidates(record(DRAWN), order)
    assert moved is not None
    back = permute_candidates(moved, [order.index(place) for place in range(4)])
    assert back is not None
    assert (back.candidates, back.answer, back.rationale) == (record(DRAWN).candidates, frozenset("AC"), DRAWN)


def test_an_answer_without_rationale_moves() -> None:
    moved = permute_candidates(record(""), [1, 0, 2, 3])
    assert moved is not None
    assert moved.answer == {"B", "C"}


@pytest.mark.parametrize(
    "rationale",
    [
        "Only the first two are fine.",
        "A: fine. B: like A. C: fine. D: fine.",
        "A: fine. B: flawed. C: fine.",
        "In short: A: fine. B: flawed. C: fine. D: flawed.",
        "A: fine. B: flawed. C: fine. D: flawed. So the first and third stand.",
        "A: fine. A: again. C: fine. D: flawed.",
        "Fine: A, C.",
        "A: fine. B: same as the first candidate. C: fine. D: flawed.",
        "A: fine. B: flawed. C: fine. D: flawed, unlike the previous ones.",
        "A: fine. B: flawed. C: the same as in candidate 1. D: flawed.",
        "Original: like the second. A: fine. B: flawed. C: fine. D: flawed.",
    ],
)
def test_what_cannot_be_relabelled_with_certainty_stays(rationale: str) -> None:
    assert permute_candidates(record(rationale), [1, 0, 2, 3]) is None


@pytest.mark.parametrize(
    ("said", "mirrored"),
    [
        (
            "A: a seam on the left. B: light from the right, upright.",
            "A: a seam on the right. B: light from the left, upright.",
        ),
        ("The shadow falls left but far too long.", "The shadow falls right but far too long."),
        ("LEFT edge cut, top right corner fine.", "RIGHT edge cut, top left corner fine."),
        ("From left to right; the rightmost leans left.", "From right to left; the leftmost leans right."),
        ("A bright, upright bottle.", "A bright, upright bottle."),
        ("", ""),
    ],
)
def test_sides_are_exchanged_in_a_mirror(said: str, mirrored: str) -> None:
    found = mirror_rationale(record(said))
    assert found is not None
    assert found.rationale == mirrored


@pytest.mark.parametrize(
    "said",
    [
        "A: looks right.",
        "A: the right shadow for this light.",
        "A: on the left. B: nothing is left of the label.",
        "A: stands in the right place.",
        "A: right side up.",
        "A: the shadow falls right where it should.",
        "A: stands at right angles to the wall.",
        "A: turned clockwise.",
    ],
)
def test_what_may_be_no_side_is_not_shown_in_a_mirror(said: str) -> None:
    assert mirror_rationale(record(said)) is None


def test_everything_that_is_said_of_drawn_scenes_can_be_arranged_anew() -> None:
    for number in range(300):
        scene = describe_sample(number)
        for dimension in DIMENSIONS:
            said = scene.rationale(dimension)
            drawn = record(said)
            assert permute_candidates(drawn, [2, 0, 3, 1]) is not None, dimension
            turned = mirror_rationale(drawn)
            assert turned is not None, said
            again = mirror_rationale(turned)
            assert again is not None
            assert again.rationale == said


def test_what_is_said_of_the_original_stays_in_front() -> None:
    said = "Original: red cap. A: red cap, same, fine. B: blue cap, recoloured, flawed. Fine: A. Flawed: B."
    permuted = permute_candidates(record(said, "A", count=2), [1, 0])
    assert permuted is not None
    assert permuted.rationale == (
        "Original: red cap. A: blue cap, recoloured, flawed. B: red cap, same, fine. Fine: B. Flawed: A."
    )
    assert permuted.answer == {"B"}


def test_a_letter_said_of_the_original_is_not_relabelled() -> None:
    assert permute_candidates(record("Original: like A. A: same. B: other.", "A", count=2), [1, 0]) is None
