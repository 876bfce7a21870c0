"""Lengths, variety and near-copies of rationales: by hand, and against the naive form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation_server.runs.rationale_texts import (
    FEWEST_PAIRS,
    MOST_PAIRS,
    Quartiles,
    Words,
    nearly_the_same,
    pairs_in,
    quartiles,
    size_to_compare,
    variety,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A: it stands, upright.", ("a", "it", "stands", "upright")),
        ("The SHADOW's edge", ("the", "shadow", "s", "edge")),
        ("阴影方向正确", ("阴", "影", "方", "向", "正", "确")),
        ("候选图B有阴影", ("候", "选", "图", "b", "有", "阴", "影")),
        ("0.5 m", ("0", "5", "m")),
        (" \n…", ()),
    ],
)
def test_words_of_any_script(text: str, words: Words) -> None:
    assert words_of(text) == words


def test_quartiles() -> None:
    assert quartiles([]) is None
    assert quartiles([7]) == Quartiles(7, 7, 7)
    assert quartiles([4, 1, 3, 2, 5]) == Quartiles(2, 3, 4)
    assert quartiles([1, 2, 3, 4]) == Quartiles(1.75, 2.5, 3.25)


def test_variety_is_of_as_many_word_pairs_as_asked() -> None:
    """a b | b a | a b: the third pair is the first again. No pair reaches over into the next text."""
    texts = [words_of("a b a b"), words_of("c d")]
    assert pairs_in(texts) == 4
    assert variety(texts, 3) == pytest.approx(2 / 3)
    assert variety(texts, 4) == pytest.approx(3 / 4)
    assert variety(texts, 5) is None
    assert variety(texts, 0) is None


def test_all_are_compared_on_as_many_pairs_as_the_shortest_has() -> None:
    assert size_to_compare([300, 120, 9000]) == 120
    assert size_to_compare([300, FEWEST_PAIRS - 1]) == 300  # says too little to count
    assert size_to_compare([MOST_PAIRS + 1]) == MOST_PAIRS
    assert size_to_compare([3]) == 0
    assert size_to_compare([]) == 0


def test_near_copies() -> None:
    """Ten words have eight triples. Another last word changes one: 7 shared of 9, under four fifths. Of thirteen words
    one triple of eleven changes: 10 of 12, above. Exact copies count, however short."""
    ten = "one two three four five six seven eight nine ten"
    thirteen = f"{ten} eleven twelve thirteen"
    other = "something else that nobody else has said at all here"
    assert nearly_the_same([words_of(text) for text in (ten, f"{ten[:-3]}last", other)]) == 0
    assert nearly_the_same([words_of(text) for text in (thirteen, f"{thirteen[:-8]}last", other)]) == pytest.approx(
        2 / 3
    )
    assert nearly_the_same([words_of("fine"), words_of("Fine."), words_of(other)]) == pytest.approx(2 / 3)
    assert nearly_the_same([words_of("fine"), words_of("bad")]) == 0
    # Six words and one more: 4 of 5 triples, just four fifths.
    assert nearly_the_same([words_of("a b c d e f"), words_of("a b c d e f g")]) == 1
    assert nearly_the_same([words_of("fine")]) is None


def naive(texts: list[Words]) -> float | None:
    def triples(text: Words) -> set[Words]:
        return {text} if len(text) < 3 else {text[place : place + 3] for place in range(len(text) - 2)}

    sets = [triples(text) for text in texts]
    if len(sets) < 2:
        return None
    near = [
        any(place != at and len(one & other) / len(one | other) >= 0.8 for at, other in enumerate(sets))
        for place, one in enumerate(sets)
    ]
    return sum(near) / len(near)


long_texts = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=30).map(tuple), max_size=12)


@given(long_texts)
def test_near_copies_are_what_comparing_every_two_finds(texts: list[Words]) -> None:
    # A change at the end of a long text makes a near-copy: drawn at random they would hardly occur.
    more = [*texts, *((*text[:-1], "z") for text in texts[::2] if len(text) > 12)]
    found, wanted = nearly_the_same(more), naive(more)
    assert (found is None) == (wanted is None)
    assert found is None or found == pytest.approx(wanted)
