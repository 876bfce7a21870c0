"""The cheapest mix of approaches that reaches a quality: one choice per dimension, exactly the best of all.

Cost and quality of a mix are the means of its choices, weighted by the dimensions' tasks. Both only add up, so whatever
is beaten among some of the dimensions is beaten in every mix it could be part of: dropping it after each dimension
leaves the whole frontier, and nothing is guessed. Not here: what an approach costs and achieves (comparison.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_SAME = 1e-12
"""Sums of floating point in another order differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to annotate a dimension."""

    approach: str
    """The approach, or of the first pass where people take over what it leaves."""
    then: str = ""
    """The approach of what the first pass leaves; empty: nothing is left to anybody."""
    confidence: float | None = None
    """What the first pass says with less goes on to `then`; None: only what it was refused."""
    left: float = 0.0
    """The share that goes on."""
    cost: float
    """USD per record."""
    quality: float
    borrowed: bool = False
    """The quality is that of people's own answers, which it copies: it was not measured by itself."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A choice for each dimension, and what is to be expected of them together."""

    cost: float
    quality: float
    choices: Mapping[str, Option] = field(default_factory=dict)


def frontier(options: Mapping[str, Sequence[Option]], weights: Mapping[str, float]) -> list[Mix]:
    """Every mix that no other beats in both, from the cheapest to the best. A dimension without options has no part."""
    dimensions = [dimension for dimension, choices in options.items() if choices and weights.get(dimension, 0) > 0]
    whole = sum(weights[dimension] for dimension in dimensions)
    if not dimensions:
        return []
    found = [Mix(0.0, 0.0)]
    for dimension in dimensions:
        share = weights[dimension] / whole
        found = _undominated(
            Mix(
                mix.cost + share * option.cost, mix.quality + share * option.quality, {**mix.choices, dimension: option}
            )
            for mix in found
            for option in worth_choosing(options[dimension])
        )
    return found


def worth_choosing(options: Iterable[Option]) -> list[Option]:
    """Those of a dimension that no other beats in both."""
    mixes = _undominated(Mix(option.cost, option.quality, {"": option}) for option in options)
    return [mix.choices[""] for mix in mixes]


def cheapest(mixes: Iterable[Mix], quality: float) -> Mix | None:
    """The first of a frontier that reaches the quality; None where none does."""
    return next((mix for mix in mixes if mix.quality >= quality - _SAME), None)


def _undominated(mixes: Iterable[Mix]) -> list[Mix]:
    """Dearer only where better. Of equals the first stays."""
    found: list[Mix] = []
    for mix in sorted(mixes, key=lambda mix: (mix.cost, -mix.quality)):
        if not found or mix.quality > found[-1].quality + _SAME:
            found.append(mix)
    return found
