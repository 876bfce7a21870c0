"""One’s own page in a real browser: a box takes the key that is pressed, a chosen theme is above the system’s."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from annotation_server.accounts.models import Person
from tests.server.factories import make_person

pytestmark = [pytest.mark.needs_chromium, pytest.mark.django_db(transaction=True)]

BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(250, 250, 250)", "rgb(23, 24, 26)"


def test_it_works(sign_in: Callable[..., Page]) -> None:
    ada = make_person("ada")
    page = sign_in(ada, color_scheme="dark")
    page.goto("/you")
    assert page.evaluate(BACKGROUND) == DARK

    page.get_by_label("Light").check()
    page.get_by_label("Skip", exact=True).press("X")
    page.get_by_label("Undo", exact=True).press("Backspace")
    page.get_by_label("Flicker (hold)").press("y")
    page.get_by_label("Submit", exact=True).press("Space")
    expect(page.get_by_label("Submit", exact=True)).to_have_value("Space")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()

    assert page.evaluate(BACKGROUND) == LIGHT
    assert Person.objects.get().preferences == {
        "theme": "light",
        "keys": {"skip": "x", "undo": "Backspace", "flicker": "y", "submit": " "},
    }


def test_tab_goes_on_to_the_next_box(sign_in: Callable[..., Page]) -> None:
    page = sign_in(make_person())
    page.goto("/you")
    page.get_by_label("Skip", exact=True).press("Tab")
    expect(page.get_by_label("Skip", exact=True)).to_have_value("s")
    expect(page.get_by_label("Flag", exact=True)).to_be_focused()
