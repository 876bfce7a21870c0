"""Small plots as inline SVG: bars per day, shares of a whole, a value with its interval.

Sizes and places are SVG attributes, colours are classes: the content security policy allows no style attributes. Every
plot has a name for screen readers and its figures as tooltips. Not here: what is plotted (annotations/quality.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

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
