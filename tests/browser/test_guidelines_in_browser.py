"""Guidelines in a real browser: a preview that leaves what was typed alone, and pictures that arrive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from annotation_server.projects.models import Membership
from tests.server.factories import make_member, make_project

pytestmark = [pytest.mark.needs_chromium, pytest.mark.django_db(transaction=True)]


def test_it_works(sign_in: Callable[..., Page]) -> None:
    project = make_project(slug="bottles")
    page = sign_in(make_member(project, Membership.Role.MANAGER))
    page.goto("/projects/bottles/guidelines/physical_shadow/edit")
    expect(page.locator("#preview")).to_contain_text("First find the light")

    page.get_by_label("Text", exact=True).fill("Only *real* shadows. <img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Preview").click()

    expect(page.locator("#preview")).to_contain_text("Only real shadows. <img")
    expect(page.locator("#preview img")).to_have_count(0)
    expect(page.get_by_label("Text", exact=True)).to_have_value("Only *real* shadows. <img src=x onerror=alert(1)>")
    project.refresh_from_db()
    assert project.dimension_guidelines == {}

    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    expect(page.get_by_role("region", name="Physical shadow")).to_contain_text("Only real shadows.")


def test_every_picture_arrives_and_nothing_is_wider_than_a_phone(sign_in: Callable[..., Page]) -> None:
    page = sign_in(make_member(make_project(slug="jars")), viewport={"width": 400, "height": 800})
    page.goto("/projects/jars/guidelines")
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth === 288)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
