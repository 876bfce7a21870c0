"""What people choose for their own pages: colour scheme, language, and the keys of the annotating page.

Kept in Person.preferences: only what differs from the default, so that a better default reaches everybody.

Not here: what the keys do (static/js/workbench.js), applying the language (middleware.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from annotation_server.accounts.models import Person
from trainer.contract.dimensions import LETTERS

THEMES = ("auto", "light", "dark")

DEFAULT_KEYS: dict[str, str] = {
    "none": "n",
    "all": "l",
    "submit": "Enter",
    "skip": "s",
    "flag": "t",
    "undo": "u",
    "next_task": "j",
    "rationale": "r",
    "flicker": " ",
    "difference": "i",
    "swipe": "w",
    "focus_next": "ArrowRight",
    "focus_previous": "ArrowLeft",
    "fit": "0",
    "actual": "1",
    "zoom_in": "+",
    "zoom_out": "-",
    "point": "p",
    "box": "q",
    "guidelines": "m",
    "help": "?",
}
"""The actions of the annotating page, each with its key as browsers name it (`KeyboardEvent.key`)."""

ACTION_LABELS: dict[str, Promise] = {
    "none": gettext_lazy("None of the candidates"),
    "all": gettext_lazy("All candidates"),
    "submit": gettext_lazy("Submit"),
    "skip": gettext_lazy("Skip"),
    "flag": gettext_lazy("Flag"),
    "undo": gettext_lazy("Undo"),
    "next_task": gettext_lazy("Another task you hold"),
    "rationale": gettext_lazy("Write the rationale"),
    "flicker": gettext_lazy("Flicker (hold)"),
    "difference": gettext_lazy("Difference"),
    "swipe": gettext_lazy("Swipe"),
    "focus_next": gettext_lazy("Next image at full size"),
    "focus_previous": gettext_lazy("Previous image at full size"),
    "fit": gettext_lazy("Fit"),
    "actual": gettext_lazy("1:1"),
    "zoom_in": gettext_lazy("Zoom in"),
    "zoom_out": gettext_lazy("Zoom out"),
    "point": gettext_lazy("Mark a point"),
    "box": gettext_lazy("Mark a box"),
    "guidelines": gettext_lazy("Guidelines"),
    "help": gettext_lazy("All keys"),
}

NAMED_KEYS = frozenset(
    (
        "Enter", "Backspace", "Delete", "Insert", "Home", "End", "PageUp", "PageDown",
        "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", *(f"F{number}" for number in range(1, 13)),
    )
)  # fmt: skip
"""Keys without a character of their own. Tab and Escape keep what they do on every page."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """Everything settled: what the person chose, else the default."""

    theme: str = "auto"
    language: str = ""
    """Empty: the browser's."""
    keys: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_KEYS))


def preferences_of(person: Person) -> Preferences:
    """What holds for the person's pages."""
    kept: dict[str, Any] = person.preferences
    return Preferences(
        theme=kept.get("theme", "auto"), language=kept.get("language", ""), keys=DEFAULT_KEYS | kept.get("keys", {})
    )


def set_preferences(person: Person, *, theme: str, language: str, keys: Mapping[str, str]) -> Preferences:
    """Keep what the person chose; an action left out of `keys` has its default.

    Raises ValidationError naming the field.
    """
    mistakes = {}
    if theme not in THEMES:
        mistakes["theme"] = _("There is no such theme.")
    if language and language not in dict(settings.LANGUAGES):
        mistakes["language"] = _("There is no such language.")
    all_keys = DEFAULT_KEYS | dict(keys)
    for action, mistake in key_mistakes(all_keys).items():
        mistakes["keys"] = f"{action}: {mistake}"
    if mistakes:
        raise ValidationError(mistakes)
    own_keys = {action: key for action, key in all_keys.items() if key != DEFAULT_KEYS[action]}
    chosen = {"theme": theme if theme != "auto" else "", "language": language, "keys": own_keys}
    person.preferences = {name: value for name, value in chosen.items() if value}
    person.save(update_fields=["preferences"])
    return preferences_of(person)


def key_mistakes(keys: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the keys, by action."""
    mistakes: dict[str, str] = {}
    taken: dict[str, str] = {}
    for action, key in keys.items():
        if action not in DEFAULT_KEYS:
            mistakes[action] = _("There is no such action.")
        elif key.upper() in LETTERS:
            mistakes[action] = _("The letters A to H belong to the candidates.")
        elif key not in NAMED_KEYS and not (len(key) == 1 and key.isprintable()):
            mistakes[action] = _("This is not one key.")
        elif key.lower() in taken:  # a letter is one key, with or without Shift
            mistakes[action] = _("“%(action)s” has this key already.") % {"action": ACTION_LABELS[taken[key.lower()]]}
        else:
            taken[key.lower()] = action
    return mistakes
