"""Small words for templates: dimensions and answers as people read them."""

from django import template
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from annotation_server.projects.wording import DIMENSION_HINTS, DIMENSION_LABELS, STORED_WORDS
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
