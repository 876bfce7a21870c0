"""Small plots as inline SVG: bars per day, shares of a whole, a value with its interval, cost against quality.

Sizes and places are SVG attributes, colours are classes: the content security policy allows no style attributes. Every
plot has a name for screen readers and its figures as tooltips. Not here: what is plotted (annotations/quality.py,
runs/comparison.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from django import template
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

register = template.Library()

_LOWEST = -0.2
"""Where the scale of coefficients begins; what is lower is drawn there."""


@register.simple_tag
def day_bars(days: Iterable[tuple[date, int]], height: int = 60, label: str = "") -> SafeString:
    """A bar per day, the last one today, with the most in words."""
    counted = list(days)
    most = max((number for _day, number in counted), default=0)
    step = 10
    bars = format_html_join(
        "\n",
        '<g><title>{}</title><rect class="hit" x="{}" y="0" width="{}" height="{}"/>'
        '<rect class="bar" x="{}" y="{}" width="{}" height="{}"/></g>',
        (
            (
                f"{date_format(day, 'Y-m-d')}: {number}",
                place * step,
                step,
                height,
                place * step + 1,
                round(height - (drawn := height * number / most if most else 0), 2),
                step - 2,
                round(drawn, 2),
            )
            for place, (day, number) in enumerate(counted)
        ),
    )
    name = label or _("Annotations per day")
    total = sum(number for _day, number in counted)
    said = _("%(name)s: %(total)d in %(days)d days, at most %(most)d") % {
        "name": name, "total": total, "days": len(counted), "most": most
    }  # fmt: skip
    return format_html(
        '<svg class="plot days" role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">'
        '{}<line class="axis" x1="0" y1="{}" x2="{}" y2="{}"/></svg>',
        said, len(counted) * step, height + 1, bars, height + 0.5, len(counted) * step, height + 0.5,
    )  # fmt: skip


@register.simple_tag
def share_bar(whole: int, label: str, **parts: int) -> SafeString:
    """One line split into `parts`, each a class of the stylesheet and a number; the rest of `whole` is empty."""
    drawn, at = [], 0.0
    for name, number in parts.items():
        width = 100 * number / whole if whole else 0.0
        drawn.append((f"{name}: {number}", name, round(at, 3), round(width, 3)))
        at += width
    said = f"{label}: " + ", ".join(f"{name} {number}" for name, number in parts.items())
    rects = format_html_join(
        "", '<g><title>{}</title><rect class="{}" x="{}" y="0" width="{}" height="10"/></g>', drawn
    )
    return format_html(
        '<svg class="plot share" role="img" aria-label="{}" viewBox="0 0 100 10" preserveAspectRatio="none">'
        '<rect class="rest" x="0" y="0" width="100" height="10"/>{}</svg>', said, rects
    )  # fmt: skip


@register.simple_tag
def whisker(value: float | None, low: float | None, high: float | None, label: str) -> SafeString:
    """A dot for a coefficient, a line for its interval, on a scale from just below chance to 1."""
    if value is None:
        return format_html('<span class="quiet">{}</span>', _("n/a"))

    def place(number: float) -> float:
        return round(200 * (max(number, _LOWEST) - _LOWEST) / (1 - _LOWEST) + 6, 2)

    line = ""
    if low is not None and high is not None:
        line = format_html('<line class="interval" x1="{}" y1="9" x2="{}" y2="9"/>', place(low), place(high))
    grid = format_html_join(
        "", '<line class="{}" x1="{}" y1="1" x2="{}" y2="17"/>',
        (("zero" if mark == 0 else "grid", place(mark), place(mark)) for mark in (0, 0.25, 0.5, 0.75, 1)),
    )  # fmt: skip
    return format_html(
        '<svg class="plot whisker" role="img" aria-label="{}" viewBox="0 0 212 18"><title>{}</title>{}{}'
        '<circle class="dot" cx="{}" cy="9" r="4"/></svg>',
        f"{label}: {coefficient(value)}", f"{coefficient(value)} ({interval(low, high)})", grid, line, place(value),
    )  # fmt: skip


@register.filter
def coefficient(value: float | None) -> str:
    """Three digits; n/a where it is undefined."""
    return _("n/a") if value is None else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    return _("n/a") if low is None or high is None else f"{low:.3f} – {high:.3f}"


@register.simple_tag
def interval_text(low: float | None, high: float | None) -> str:
    """An interval in figures."""
    return interval(low, high)


_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 38


@register.simple_tag
def cost_plot(
    points: Sequence[Mapping[str, Any]],
    label: str,
    steps: Sequence[Mapping[str, Any]] = (),
    wanted: float | None = None,
) -> SafeString:
    """Cost to the right, quality upwards. `points` have a name, a class (`kind`), `x`, `y` and how far they may be off.

    `steps` are what is best for its cost, from the cheapest on: between two of them the cheaper one is all there is.
    `wanted` is a quality to reach.
    """
    everything = [*points, *steps]
    lowest = min([*(one.get("low") or one["y"] for one in everything), wanted if wanted is not None else 1.0])
    floor = min(int(lowest * 10) / 10, 0.9)
    ticks_x = _ticks(max([*(one["x"] for one in everything), 0.0]))

    def across(cost: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * cost / ticks_x[-1], 2)

    def up(quality: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - quality) / (1 - floor), 2)

    bottom = _HEIGHT - _BOTTOM
    tenths = range(round(floor * 10), 11, 2 if floor < 0.5 else 1)
    grid = [
        *(("grid", _LEFT, up(tenth / 10), _WIDTH - _RIGHT, up(tenth / 10)) for tenth in tenths),
        *(("grid", across(tick), _TOP, across(tick), bottom) for tick in ticks_x),
    ]
    if wanted is not None:
        grid.append(("wanted", _LEFT, up(wanted), _WIDTH - _RIGHT, up(wanted)))
    figures = [
        *(("end", _LEFT - 6, up(tenth / 10) + 4, f"{tenth * 10} %") for tenth in tenths),
        *(("middle", across(tick), bottom + 15, f"{tick:g}") for tick in ticks_x),
        ("middle", (_LEFT + _WIDTH - _RIGHT) // 2, _HEIGHT - 4, _("USD per record")),
    ]
    path = " ".join(
        f"{'H' if place else 'M'}{across(one['x'])}{' V' if place else ' '}{up(one['y'])}"
        for place, one in enumerate(steps)
    )
    dots = [(across(one["x"]), up(one["y"])) for one in points]
    drawn = [
        *(_dot(one, across, up) for one in sorted(steps, key=lambda one: one["kind"] == "chosen")),
        *(_dot(one, across, up) for one in points),
        *(
            format_html('<text class="name" text-anchor="{}" x="{}" y="{}">{}</text>', anchor, x, y, one["name"])
            for one, (anchor, x, y) in zip(points, _labels(points, dots), strict=True)
        ),
    ]
    said = "; ".join(_in_words(one) for one in points)
    return format_html(
        '<svg class="plot cost" role="img" aria-label="{}" viewBox="0 0 {} {}">{}{}{}{}</svg>',
        f"{label}: {said}" if said else label, _WIDTH, _HEIGHT,
        format_html_join("", '<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', grid),
        format_html_join("", '<text text-anchor="{}" x="{}" y="{}">{}</text>', figures),
        format_html('<path class="best" d="{}"/>', path) if path else "",
        format_html_join("", "{}", ((one,) for one in drawn)),
    )  # fmt: skip


def _dot(one: Mapping[str, Any], across: Callable[[float], float], up: Callable[[float], float]) -> SafeString:
    """A dot with its figures as a tooltip, and the line of its interval."""
    x, y = across(one["x"]), up(one["y"])
    line: SafeString | str = ""
    if one.get("low") is not None and one.get("high") is not None:
        line = format_html('<line x1="{}" y1="{}" x2="{}" y2="{}"/>', x, up(one["low"]), x, up(one["high"]))
    return format_html(
        '<g class="point {}"><title>{}</title>{}<circle cx="{}" cy="{}" r="{}"/></g>',
        one["kind"], _in_words(one), line, x, y, 2.5 if one["kind"] == "mix" else 5,
    )  # fmt: skip


def _labels(
    points: Sequence[Mapping[str, Any]], dots: Sequence[tuple[float, float]]
) -> Iterator[tuple[str, float, float]]:
    """Anchor and place of each point's name: beside its dot, or above or below where that would hide something."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in dots]
    for one, (x, y) in zip(points, dots, strict=True):
        width = sum(12 if ord(character) > 0x2E7F else 7 for character in str(one["name"]))
        tries = [
            (anchor, x + side * 9, y + height)
            for height in (4, -10, 18, -24, 32)
            for anchor, side in (("start", 1), ("end", -1))
        ]
        boxes = [
            (at, below - 11, at + width, below + 2)
            for anchor, edge, below in tries
            for at in [edge if anchor == "start" else edge - width]
        ]
        place = next((place for place, box in enumerate(boxes) if _is_free(box, taken)), 0)
        taken.append(boxes[place])
        yield tries[place]


_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _is_free(box: _Box, taken: Iterable[_Box]) -> bool:
    left, top, right, bottom = box
    inside = left >= _LEFT and right <= _WIDTH and top >= 0 and bottom <= _HEIGHT - _BOTTOM
    return inside and not any(
        left < other[2] and right > other[0] and top < other[3] and bottom > other[1] for other in taken
    )


def _in_words(one: Mapping[str, Any]) -> str:
    said = _("%(cost)s USD, %(quality)s %%") % {"cost": usd(one["x"]), "quality": f"{100 * one['y']:.1f}"}
    return f"{one['name']}: {said}" if one["name"] else said


def _ticks(most: float) -> list[float]:
    """From 0 in even steps of 1, 2 or 5 times a power of ten, four to eight of them, past `most`."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if most / (power * part) <= 7)
    return [round(step * place, 12) for place in range(math.ceil(most / step - 1e-9) + 1)]


@register.filter
def usd(amount: float | None) -> str:
    """Dollars to the cent; less than one to four places, since a call costs fractions of a cent."""
    if amount is None:
        return _("n/a")
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.4f}"
