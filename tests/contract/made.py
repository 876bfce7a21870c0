"""Records for the contract's tests: any of them (a strategy), or one with defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from trainer.contract.dimensions import AnswerSource, Approach, Dimension, Polarity, Split, letters
from trainer.contract.records import ImageFile, Record

# What a canonical line can hold: no lone surrogates, no NaN.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
IMAGES = st.builds(
    lambda sha256, width, height: ImageFile(
        path=f"images/{sha256[:2]}/{sha256}.png", sha256=sha256, width=width, height=height
    ),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.integers(1, 9999),
    st.integers(1, 9999),
)


def make_record(**fields: Any) -> Record:
    """A record about one candidate, whose images no test looks at."""
    image = ImageFile(path="images/aa/aa.png", sha256="aa", width=8, height=6)
    record = Record(
        id="bottle:physical_shadow",
        sample_id="bottle",
        split=Split.TRAIN,
        dimension=Dimension.PHYSICAL_SHADOW,
        polarity=Polarity.ACCEPTABLE,
        original=image,
        candidates=(image,) * 4,
        answer=frozenset("AC"),
        answer_source=AnswerSource.AGREEMENT,
        rationale="",
        approach=None,
        annotators=1,
        agreement=1.0,
        prompt_version="ask-1",
    )
    return replace(record, **fields)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record."""
    candidates = tuple(draw(st.lists(IMAGES, min_size=1, max_size=8)))
    approach = draw(st.none() | st.sampled_from(Approach))
    return make_record(
        id=draw(TEXTS),
        sample_id=draw(TEXTS),
        split=draw(st.sampled_from(Split)),
        dimension=draw(st.sampled_from(Dimension)),
        polarity=draw(st.sampled_from(Polarity)),
        original=draw(IMAGES),
        candidates=candidates,
        answer=draw(st.frozensets(st.sampled_from(letters(len(candidates))))),
        answer_source=draw(st.sampled_from(AnswerSource)),
        rationale=draw(TEXTS) if approach else "",
        approach=approach,
        annotators=draw(st.integers(0, 25)),
        agreement=draw(st.none() | st.floats(0, 1)),
        prompt_version=draw(TEXTS),
        meta=draw(st.dictionaries(TEXTS, JSON, max_size=2)),
    )
