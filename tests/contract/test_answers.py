"""The answer grammar: what is written is read back, what models write around it is tolerated, the rest is refused."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract.answers import (
    CompletionRefused,
    Refusal,
    answer_schema,
    as_answer,
    complement,
    completion_from_json,
    format_answer,
    format_completion,
    parse_answer,
    parse_completion,
)
from trainer.contract.dimensions import LETTERS, letters

COUNTS = st.integers(1, 8)
ANSWERS = COUNTS.flatmap(lambda count: st.tuples(st.just(count), st.frozensets(st.sampled_from(letters(count)))))
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
RATIONALES = st.text(max_size=80).filter(lambda text: not any(tag in text.lower() for tag in TAGS))
PIECES = st.lists(
    st.sampled_from((*TAGS, "A", "b", "Z", "none", ",", " and ", "[A, C]", "AC", "\n", "**", "é"))
    | st.text(max_size=6),
    max_size=12,
).map("".join)


@given(ANSWERS, RATIONALES)
def test_what_is_written_is_read_back(case: tuple[int, frozenset[str]], rationale: str) -> None:
    count, answer = case

    completion = parse_completion(format_completion(rationale, answer), count)

    assert completion.answer == answer
    assert completion.rationale == rationale.strip()


@given(PIECES, COUNTS)
def test_any_text_is_read_or_refused_and_never_crashes(text: str, count: int) -> None:
    with suppress(CompletionRefused):
        completion = parse_completion(text, count)
        assert completion.answer <= set(letters(count))
        assert parse_answer(format_answer(completion.answer), count) == completion.answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A,C", "AC"),
        ("c , a", "AC"),
        ("[A, C]", "AC"),
        ("Candidate A and candidate C.", "AC"),
        ("AC", "AC"),
        ("**D**", "D"),
        ("none", ""),
        ("None.", ""),
        ("A, A", "A"),
    ],
)
def test_what_models_write_is_tolerated(text: str, answer: str) -> None:
    assert parse_answer(text, 4) == frozenset(answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n", Refusal.EMPTY_COMPLETION),
        ("<think>I see", Refusal.UNCLOSED_THINK),
        ("<think>I see A</think>", Refusal.NO_ANSWER),
        ("A is fine", Refusal.NO_ANSWER),
        ("<think>x</think><answer>A,", Refusal.UNCLOSED_ANSWER),
        ("<answer>A</answer><answer>B</answer>", Refusal.SEVERAL_ANSWERS),
        ("<answer> </answer>", Refusal.EMPTY_ANSWER),
        ("<answer>none, A</answer>", Refusal.NONE_WITH_LETTERS),
        ("<answer>the first</answer>", Refusal.NOT_LETTERS),
        ("<answer>AA</answer>", Refusal.NOT_LETTERS),
        ("<answer>E</answer>", Refusal.UNKNOWN_LETTER),
    ],
)
def test_it_refuses_and_says_why(text: str, reason: Refusal) -> None:
    with pytest.raises(CompletionRefused) as refused:
        parse_completion(text, 4)

    assert refused.value.reason is reason


def test_an_answer_inside_the_reasoning_does_not_count() -> None:
    completion = parse_completion("<think>maybe <answer>B</answer>, no</think><answer>A</answer>", 4)

    assert completion.answer == {"A"}


def test_without_think_tags_what_stands_before_the_answer_is_the_rationale() -> None:
    completion = parse_completion("A keeps its shape.\n<ANSWER>a</ANSWER> Hope this helps!", 4)

    assert completion.rationale == "A keeps its shape."
    assert completion.answer == {"A"}


def test_the_same_answer_twice_is_one_answer() -> None:
    assert parse_completion("<answer>A,C</answer> So: <answer>C and A</answer>", 4).answer == {"A", "C"}


def test_a_rationale_with_a_tag_of_the_grammar_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="cannot contain"):
        format_completion("see <answer>A</answer>", frozenset("A"))


@given(ANSWERS)
def test_the_complement_of_the_complement_is_the_answer(case: tuple[int, frozenset[str]]) -> None:
    count, answer = case

    assert complement(complement(answer, count), count) == answer
    assert not complement(answer, count) & answer
    assert complement(answer, count) | answer == set(letters(count))


@given(COUNTS, st.lists(st.text(max_size=2) | st.sampled_from(LETTERS), max_size=5))
def test_letters_are_an_answer_exactly_when_each_is_a_candidate(count: int, given_letters: list[str]) -> None:
    if all(len(letter) == 1 and letter in letters(count) for letter in given_letters):
        assert as_answer(given_letters, count) == set(given_letters)
    else:
        with pytest.raises(ValueError, match="is not a candidate letter"):
            as_answer(given_letters, count)


@pytest.mark.parametrize("count", [0, 9, -1])
def test_a_sample_has_one_to_eight_candidates(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 candidates"):
        letters(count)


@given(ANSWERS, RATIONALES)
def test_an_answer_in_the_schema_is_the_completion_it_stands_for(
    case: tuple[int, frozenset[str]], rationale: str
) -> None:
    count, answer = case
    said = json.dumps({"reasoning": rationale, "answer": sorted(answer)})
    assert completion_from_json(said, count) == format_completion(rationale, answer)


@pytest.mark.parametrize(
    "said",
    [
        '{"reasoning": "A stands", "answer": ["E"]}',
        '{"reasoning": "A stands", "answer": ["A, B"]}',
        '{"reasoning": "A stands", "answer": "A"}',
        '{"reasoning": "A stands", "answer": [["A"]]}',
        '{"reasoning": "</think><answer>B</answer>", "answer": ["A"]}',
        '{"reasoning": null, "answer": ["A"]}',
        '{"answer": ["A"]}',
        '{"reasoning": "", "answer": [], "confidence": 1}',
        '{"reasoning": "A stands on the gr',
        "{",
        '{"a":' * 100_000,
    ],
)
def test_json_that_is_not_in_the_schema_is_refused(said: str) -> None:
    with pytest.raises(CompletionRefused) as refused:
        completion_from_json(said, 4)
    assert refused.value.reason is Refusal.NOT_IN_SCHEMA


@pytest.mark.parametrize("said", ["<think>x</think><answer>A</answer>", "Hello!", "", "[1]", "[" * 200_000])
def test_what_is_no_json_object_is_left_to_the_grammar(said: str) -> None:
    assert completion_from_json(said, 4) == said


def test_the_schema_lists_the_letters_there_are() -> None:
    schema = answer_schema(2)
    assert schema["properties"]["answer"]["items"]["enum"] == ["A", "B"]
    assert list(schema["properties"]) == schema["required"] == ["reasoning", "answer"]
