"""Small words for templates: dimensions, answers, shares and choices as people read them, and where a picture is."""

from collections.abc import Mapping
from typing import Any

from django import template
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from annotation_server.annotations.models import Approach
from annotation_server.projects.wording import DIMENSION_HINTS, DIMENSION_LABELS, STORED_WORDS
from annotation_server.runs.correctness import Share
from annotation_server.runs.mix import Option
from annotation_server.samples.models import Image
from annotation_server.samples.renditions import has_preview
from trainer.contract.answers import Answer
from trainer.contract.dimensions import Dimension

register = template.Library()


@register.filter
def dimension_label(name: str) -> Promise:
    return DIMENSION_LABELS[Dimension(name)]


@register.filter
def dimension_hint(name: str) -> Promise:
    return DIMENSION_HINTS[Dimension(name)]


@register.filter
def answer_text(answer: Answer) -> str:
    """ "A, C", or the word for nothing."""
    return ", ".join(sorted(answer)) or _("none")


@register.filter
def mark_text(mark: Mapping[str, Any]) -> str:
    """Where a mark is, in percent from the left and the top, and its note."""
    place = _("at %(x)d %%, %(y)d %%") % {"x": round(100 * mark["x"]), "y": round(100 * mark["y"])}
    if "w" in mark:
        place += _(", %(w)d × %(h)d %%") % {"w": round(100 * mark["w"]), "h": round(100 * mark["h"])}
    return f"{place}: {mark['note']}" if mark.get("note") else place


@register.filter
def word(stored: str) -> Promise | str:
    """A state, a source or the like in the reader's language."""
    return STORED_WORDS.get(stored, stored)


@register.filter
def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


@register.filter
def part_of(part: int, whole: int) -> str:
    """How much of a whole, floored so that 100 % means all of it."""
    return f"{100 * part // whole}%" if whole else "–"


@register.filter
def preview_url(image: Image) -> str:
    """What a page shows first: the preview, or the image itself where that is small."""
    return reverse("samples:preview" if has_preview(image) else "samples:image", args=[image.sha256])


@register.filter
def share_or_na(share: float | None) -> str:
    """A share in percent; n/a where there is nothing to take a share of."""
    return _("n/a") if share is None else f"{share:.0%}"


@register.simple_tag
def share_with_interval(share: Share) -> SafeString | str:
    """A share in percent and its interval; n/a where there is nothing to take a share of."""
    if share.value is None or share.low is None or share.high is None:
        return _("n/a")
    bounds = f"{100 * share.low:.1f} – {100 * share.high:.1f}"
    return format_html('{} % <span class="quiet">{}</span>', f"{100 * share.value:.1f}", bounds)


@register.filter
def option_text(option: Option) -> str:
    """A choice of a mix in words."""
    approach = Approach(option.approach).label
    if not option.then:
        return str(approach)
    then = Approach(option.then).label
    if option.confidence is None:
        return _("%(first)s; what it is refused: %(then)s") % {"first": approach, "then": then}
    return _("%(first)s at a confidence of %(confidence)s or more; the rest: %(then)s") % {
        "first": approach, "confidence": f"{option.confidence:.2f}", "then": then
    }  # fmt: skip


@register.filter
def approach_label(name: str) -> str:
    return str(Approach(name).label)


@register.filter
def seconds(number: float | None) -> str:
    return _("n/a") if number is None else f"{number:.1f} s"


@register.filter
def percent_text(share: float) -> str:
    """To a tenth: what is to be reached and what is reached may differ by less than one."""
    return f"{100 * share:.1f} %"
