"""Each check by examples on both sides, and their order."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import replace

import pytest

from annotation_workers import answer_driven, automated, checks
from annotation_workers.verdicts import Check, Limits, Question, Rejected
from fixtures.scenes import describe_sample
from trainer.contract.answers import Completion, complement, format_completion
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity
from trainer.contract.feedback import Objection, feedback
from trainer.contract.prompts import EXPLAIN_WISH, FORM, criterion

QUESTION = Question(
    dimension=Dimension.PHYSICAL_SHADOW,
    polarity=Polarity.ACCEPTABLE,
    candidates=4,
    given_answer=frozenset("AC"),
    limits=Limits(8, 60),
)
GOOD = "A: its shadow falls left, fine. B: no shadow at all, flawed. C: a soft shadow touches it, fine. D: two shadows."


def objection(check: Check, rationale: str, answer: str = "AC", question: Question = QUESTION) -> str:
    said = check(question, Completion(rationale, frozenset(answer)))
    if said is None:
        return ""
    assert said.detail
    assert not any(unicodedata.category(char) in ("Cc", "Cf") for char in said.detail)
    return said.reason


def test_a_good_reasoning_passes_them_all_by_both_approaches() -> None:
    text = format_completion(GOOD, frozenset("AC"))
    for judge in (answer_driven.judge, automated.judge):
        assert judge(QUESTION, text) == Completion(GOOD, frozenset("AC"))


def test_every_objection_but_those_that_need_more_is_some_checks() -> None:
    elsewhere = {Objection.NEAR_COPY, Objection.RESOLVE_DIFFERS, Objection.RESOLVE_UNREAD}
    assert len(checks.OF_ANSWER_DRIVEN) == len(set(Objection) - elsewhere)
    assert set(checks.OF_AUTOMATED) < set(checks.OF_ANSWER_DRIVEN)


def test_the_answer_must_be_the_given_one() -> None:
    assert objection(checks.same_answer, GOOD, "A") == "answer_differs"
    assert objection(checks.same_answer, GOOD, "AC") == ""


def test_there_must_be_a_reasoning() -> None:
    assert objection(checks.has_rationale, "") == "no_rationale"
    assert objection(checks.has_rationale, "A casts a shadow.") == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("word " * 60, ""),
        ("word " * 61, "too_long"),
        ("阴" * 60, ""),
        ("阴" * 61, "too_long"),
        ("阴影 shadow " * 20, ""),
    ],
)
def test_words_are_counted_and_chinese_by_the_character(text: str, reason: str) -> None:
    assert objection(checks.not_too_long, text) == reason
    assert objection(checks.not_too_long, text, question=replace(QUESTION, limits=Limits())) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [("one two three four five six seven", "too_short"), ("影子落在左边很长", ""), ("", "too_short")],
)
def test_too_few_words_are_too_short(text: str, reason: str) -> None:
    assert objection(checks.not_too_short, text) == reason
    assert objection(checks.not_too_short, text, question=replace(QUESTION, limits=Limits())) == ""


@pytest.mark.parametrize(
    "text",
    [
        "Since the answer is A, C, the others must be flawed.",
        "The given answer lists A and C.",
        "I was told that A and C are acceptable.",
        "As stated in the prompt, A and C pass.",
        "According to the instructions, A stands.",
        "We have to justify the answer A, C.",
        "A and C match the ground truth.",
        "My previous reasoning was wrong: A casts a shadow.",
        "Here is the revised reasoning. A casts a shadow.",
        "I apologize. A casts a shadow.",
        "As requested, I look at A first.",
        "As if I had found it myself: A casts a shadow.",
        "The correct answer is already known: A and C.",
        "根据给出的答案，A和C的影子正常。",
        "已知答案是A和C。",
        "题目已经给出A和C可接受。",
        "既然答案是A，那么B有缺陷。",
        "我被告知A合格。",
        "参考答案为A、C。",
        "修改后的推理：A的影子正常。",
        "Following the instructions, A passes.",
        "We were given the answer A, C.",
        "I am asked to explain why A passes.",
        "The user told me that A passes.",
        "抱歉，A的影子正常。",
    ],
)
def test_a_phrase_that_gives_the_telling_away_is_a_leak(text: str) -> None:
    assert objection(checks.keeps_the_secret, f"{GOOD} {text}") == "leaks"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Given the lamp on the left, the shadow of A falls right.",
        "A matches the original as given by its outline.",
        "The label on B is told apart by its colour.",
        "Therefore the answer is A and C.",
        "So the correct answer is A, C.",
        "The provided background is smooth behind A.",
        "A: the shadow falls away from the visible light.",
        "The acceptable candidates are A, C.",
        "A的影子落在左边，给人稳定的感觉。",
        "因此答案是A和C。",
        "修改后的图片里A的影子正常。",
        "题目要求判断影子，A的影子正常。",
        "提供的标签在B上变形了。",
        "On B the instructions on the label are garbled.",
        "We are given an original and four candidates, and asked to judge their shadows.",
        "The user would hold A by its handle.",
        "According to the question, shadows count: A casts one.",
        "",
    ],
)
def test_innocent_words_are_none(text: str) -> None:
    assert objection(checks.keeps_the_secret, text) == ""


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("I write the reasoning that leads there from what is visible.", "leaks"),
        (EXPLAIN_WISH, "leaks"),
        (FORM, "leaks"),
        ("what you see in each candidate", "leaks"),
        (criterion(QUESTION.dimension).partition(": ")[2], "leaks"),
        ("A casts a shadow that touches it, falls away from the lamp, and has a believable length.", ""),
        ("A falls away from the visible light.", ""),
    ],
)
def test_a_sentence_of_the_instruction_is_a_leak(sentence: str, reason: str) -> None:
    assert objection(checks.keeps_the_secret, f"A casts a shadow. {sentence}") == reason


@pytest.mark.parametrize("reason", [*Objection])
def test_feedback_does_not_teach_to_leak(reason: Objection) -> None:
    """A model that repeats it word for word would be caught by nothing but the phrases: there must be none in it."""
    assert objection(checks.keeps_the_secret, feedback(reason)) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I looked at all of them and compared their shadows.", "empty_talk"),
        ("A shadow falls to the left of it.", "empty_talk"),
        ("A is good and B is bad, as anybody can tell.", "empty_talk"),
        ("A casts a shadow, B does not.", ""),
        ("候选A的影子偏右。", ""),
        ("候选A很好，B不好。", "empty_talk"),
    ],
)
def test_talk_that_names_no_candidate_or_nothing_to_see_is_empty(text: str, reason: str) -> None:
    assert objection(checks.says_something, text) == reason


def test_of_a_single_candidate_nobody_needs_the_letter() -> None:
    alone = replace(QUESTION, candidates=1)
    assert objection(checks.says_something, "The candidate casts a shadow.", "A", alone) == ""
    assert objection(checks.says_something, "It casts a shadow.", "A", alone) == "empty_talk"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        ("A: no shadow, flawed.", "contradicts"),
        ("B is acceptable.", "contradicts"),
        ("Fine: A, B, C. Flawed: D.", "contradicts"),
        ("B is acceptable in outline, but casts no shadow.", ""),
        ("Perhaps B is acceptable.", ""),
        ("A:\u202e no shadow\x07, flawed.", "contradicts"),
    ],
)
def test_what_it_says_of_a_candidate_must_agree_with_its_answer(text: str, reason: str) -> None:
    assert objection(checks.agrees_with_itself, text) == reason


def test_the_same_words_agree_with_the_opposite_letters_in_the_other_polarity() -> None:
    flawed = replace(QUESTION, polarity=Polarity.FLAWED)
    assert objection(checks.agrees_with_itself, GOOD, "BD", flawed) == ""
    assert objection(checks.agrees_with_itself, GOOD, "AC", flawed) == "contradicts"


@pytest.mark.parametrize("polarity", Polarity)
def test_drawn_rationales_pass_with_their_answer_and_contradict_every_other(polarity: Polarity) -> None:
    for seed in range(40):
        scenes = describe_sample(seed)
        for dimension in DIMENSIONS:
            fine = frozenset(scenes.acceptable(dimension))
            right = fine if polarity == Polarity.ACCEPTABLE else complement(fine, 4)
            for answer, expected in ((right, ""), (right ^ {"B"}, "contradicts")):
                question = replace(
                    QUESTION, dimension=dimension, polarity=polarity, given_answer=answer, limits=Limits(8, 600)
                )
                verdict = answer_driven.judge(question, format_completion(scenes.rationale(dimension), answer))
                assert (verdict.reason if isinstance(verdict, Rejected) else "") == expected, verdict


def test_the_first_check_that_minds_names_the_rejection() -> None:
    """Too short, leaking and contradicting at once, with another answer: in the order of Objection."""
    text = "I was told A is acceptable."
    found = [check(QUESTION, Completion(text, frozenset("B"))) for check in checks.OF_ANSWER_DRIVEN]
    reasons = [said.reason for said in found if said is not None]
    assert reasons == ["answer_differs", "too_short", "leaks", "empty_talk", "contradicts"]
    assert reasons == [word for word in Objection if word in reasons]
    verdict = answer_driven.judge(QUESTION, format_completion(text, frozenset("B")))
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "answer_differs"


@pytest.mark.parametrize(
    "text",
    ["A, " * 33_000, "A is " * 20_000, "so " * 33_000 + "A", "fine " * 20_000, "影" * 33_000, "A " * 50_000,
     ": " * 50_000, "A，" * 50_000, "not " * 25_000, "without any " * 8_000, "\u202e" * 100_000,
     "A casts a shadow. " * 5_600],
)  # fmt: skip
def test_a_hundred_kilobytes_are_judged_in_a_moment(text: str) -> None:
    began = time.process_time()
    for check in checks.OF_ANSWER_DRIVEN:
        check(replace(QUESTION, limits=Limits()), Completion(text, frozenset("AC")))
    assert time.process_time() - began < 2
