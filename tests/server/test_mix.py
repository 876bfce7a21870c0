"""The cheapest mix that reaches a quality, against trying out every one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation_server.runs.mix import Option, cheapest, frontier

SHADOW, LAYOUT = "physical_shadow", "placement_layout"


def option(cost: float, quality: float, approach: str = "manual") -> Option:
    return Option(approach=approach, cost=cost, quality=quality)


def test_it_works() -> None:
    """Three quarters of the tasks are on shadows.

    manual 0.20 USD and 0.96 right everywhere; automated 0.01 USD and 0.60 on shadows, 0.92 on the layout. Automated
    alone: 0.01 and 0.75 · 0.6 + 0.25 · 0.92 = 0.68. People for shadows only: 0.75 · 0.2 + 0.25 · 0.01 = 0.1525 and
    0.75 · 0.96 + 0.25 · 0.92 = 0.95. People for the layout only: 0.0575 and 0.69.
    """
    options = {
        SHADOW: [option(0.2, 0.96), option(0.01, 0.6, "automated")],
        LAYOUT: [option(0.2, 0.96), option(0.01, 0.92, "automated")],
    }
    mixes = frontier(options, {SHADOW: 300, LAYOUT: 100})
    assert [mix.cost for mix in mixes] == pytest.approx([0.01, 0.0575, 0.1525, 0.2])
    assert [mix.quality for mix in mixes] == pytest.approx([0.68, 0.69, 0.95, 0.96])
    found = cheapest(mixes, 0.95)
    assert found is mixes[2]
    assert {name: chosen.approach for name, chosen in found.choices.items()} == {SHADOW: "manual", LAYOUT: "automated"}
    assert cheapest(mixes, 0.9501) is mixes[3]
    assert cheapest(mixes, 0.961) is None


def test_what_is_dearer_and_no_better_is_never_chosen() -> None:
    options = {SHADOW: [option(1, 0.8), option(2, 0.8, "dearer"), option(3, 0.7, "worse"), option(1, 0.6, "less")]}
    (mix,) = frontier(options, {SHADOW: 1})
    assert mix.choices[SHADOW].approach == "manual"


def test_a_dimension_without_options_or_tasks_has_no_part() -> None:
    options = {SHADOW: [option(1, 0.8)], LAYOUT: [], "extension_rationality": [option(5, 0.1)]}
    (mix,) = frontier(options, {SHADOW: 1, LAYOUT: 99})
    assert (mix.cost, mix.quality, list(mix.choices)) == (1, 0.8, [SHADOW])
    assert frontier({SHADOW: []}, {SHADOW: 1}) == []
    assert cheapest([], 0.5) is None


def naive(options: Mapping[str, Sequence[Option]], weights: Mapping[str, int], wanted: float) -> float | None:
    """The least cost of all combinations that reach it."""
    whole = sum(weights.values())
    costs = []
    for chosen in itertools.product(*options.values()):
        each = list(zip(weights.values(), chosen, strict=True))
        if sum(weight * one.quality for weight, one in each) / whole >= wanted - 1e-12:
            costs.append(sum(weight * one.cost for weight, one in each) / whole)
    return min(costs, default=None)


some_options = st.lists(
    st.builds(
        option, st.integers(0, 20).map(lambda cents: cents / 100), st.integers(0, 20).map(lambda part: part / 20)
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(some_options, min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=4), st.integers(0, 21))
def test_it_is_the_best_of_all(each: list[list[Option]], numbers: list[int], twentieths: int) -> None:
    options = {f"dimension {place}": found for place, found in enumerate(each)}
    weights = dict(zip(options, numbers, strict=False))
    wanted = twentieths / 20
    mixes = frontier(options, weights)
    found = cheapest(mixes, wanted)
    least = naive(options, weights, wanted)
    assert (found is None) == (least is None)
    if found is not None:
        assert found.cost == pytest.approx(least)
        assert found.quality >= wanted - 1e-9
    assert [mix.cost for mix in mixes] == sorted(mix.cost for mix in mixes)
    assert all(one.quality < other.quality for one, other in itertools.pairwise(mixes))
