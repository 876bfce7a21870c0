"""The blind re-solve: what it shows, and what follows from what it says."""

from __future__ import annotations

from annotation_workers import resolving
from annotation_workers.verdicts import Question, Rejected
from trainer.contract.answers import Completion
from trainer.contract.dimensions import Dimension, Polarity

QUESTION = Question(
    dimension=Dimension.PHYSICAL_SHADOW, polarity=Polarity.ACCEPTABLE, candidates=2, given_answer=frozenset("A")
)
REASONED = Completion("A: a shadow, fine. B: none, flawed. Fine: A. Flawed: B. So the answer is A.", frozenset("A"))


def test_it_shows_the_reasoning_and_neither_the_answer_nor_its_conclusion() -> None:
    asked = resolving.build_prompt(QUESTION, REASONED.rationale)
    assert asked.version == "resolve-1"
    assert "Somebody reasoned: A: a shadow, fine. B: none, flawed. Following" in asked.question
    assert "are: A" not in asked.question


def test_the_same_answer_confirms_and_any_other_refuses() -> None:
    same = resolving.read(QUESTION, "<think>So it is.</think><answer>A</answer>")
    assert isinstance(same, Completion)
    assert resolving.compare(REASONED, same) is None
    other = resolving.compare(REASONED, Completion("", frozenset("AB")))
    assert other == Rejected("resolve_differs", "its answer is A, who read it without says A,B")


def test_of_its_own_reasoning_nothing_is_asked() -> None:
    assert resolving.read(QUESTION, "<answer>none</answer>") == Completion("", frozenset())
    unread = resolving.read(QUESTION, "A, I think.")
    assert isinstance(unread, Rejected)
    assert unread.reason == "no_answer"
