"""A real Chromium for every test here, with people who sign in as anybody does and pictures it can show.

Playwright's sync API runs an event loop in the test's thread, where Django by default forbids its ORM.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image as Pillow
from playwright.sync_api import Browser, Page, sync_playwright

from annotation_server.accounts.models import Person
from annotation_server.samples import storage
from annotation_server.samples.models import Image
from tests.server.factories import make_image

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(autouse=True)
def _orm_beside_playwright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")


@pytest.fixture
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def sign_in(browser: Browser, live_server: Any) -> Callable[..., Page]:
    """A page of its own for a person, signed in through the form. A script error in it fails the test."""

    def page_of(person: Person, **context: Any) -> Page:
        page = browser.new_context(base_url=live_server.url, **context).new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
        page.goto("/sign-in")
        page.locator("input[name=username]").fill(person.username)
        page.locator("input[name=password]").fill("secret")
        page.locator("main button.main").click()
        page.wait_for_url("**/")
        return page

    return page_of


def picture(colour: str) -> Image:
    """A stored picture of one colour."""
    file = io.BytesIO()
    Pillow.new("RGB", (96, 96), colour).save(file, "PNG")
    content = file.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    image = Image.objects.filter(sha256=sha256).first() or make_image(
        sha256=sha256, source_sha256=sha256, width=96, height=96, size=len(content)
    )
    storage.put(image.path, content)
    return image
