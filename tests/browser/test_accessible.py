"""axe-core finds nothing serious on any main page, light and dark. Not here: what a page does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.test import Client
from playwright.sync_api import Page, expect

from annotation_server.accounts.models import Person
from annotation_server.projects.models import Membership, Project
from annotation_server.samples.models import Candidate
from annotation_server.tasks.models import Task
from tests.browser.conftest import picture
from tests.server.compared import make_run, settle
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

PAGES = (
    "/",
    "/you",
    "/projects/bottles/",
    "/projects/bottles/annotate",
    "/projects/bottles/guidelines",
    "/projects/bottles/guidelines/physical_shadow/edit",
    "/projects/bottles/tasks",
    "/projects/bottles/tasks/{resolved}",
    "/projects/bottles/disputed",
    "/projects/bottles/disputed/{disputed}",
    "/projects/bottles/review",
    "/projects/bottles/review?kind=resolved&share=100",
    "/projects/bottles/agreement",
    "/projects/bottles/approaches",
    "/projects/bottles/people",
    "/projects/bottles/imports",
    "/projects/bottles/runs",
    "/projects/bottles/versions",
    "/projects/bottles/members",
    "/projects/bottles/settings",
)


@pytest.fixture
def manager() -> Person:
    """Of a project with a resolved, a disputed and open tasks, one of which a model answered."""
    project = make_project(slug="bottles", overlap=2, dimensions=["physical_shadow"], hourly_wage=12)
    for number in range(4):
        sample, _ = make_sample(project, external_id=f"bottle-{number}", original=picture("slategray"))
        for candidate, colour in zip(sample.candidates.order_by("letter"), ("tomato", "gold", "teal"), strict=False):
            Candidate.objects.filter(pk=candidate.pk).update(image=picture(colour))
        Candidate.objects.filter(sample=sample, letter="D").update(image=picture("orchid"))
    first, second = make_member(project), make_member(project)
    tasks = list(Task.objects.order_by("pk"))
    for person in (first, second):
        annotate(tasks[0], person, "AB", rationale="A and B touch their shadows.", seconds_spent=10)
    settle(make_run(project), tasks[0], "AB", "Both stand.")
    annotate(tasks[1], first, "A", rationale="Only A.", marks=[{"letter": "B", "x": 0.5, "y": 0.5}])
    annotate(tasks[1], second, "B")
    return make_member(project, Membership.Role.MANAGER, username="manager")


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical: the rule, and the first elements it names."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_the_sign_in_page(browser: Any, live_server: Any) -> None:
    page = browser.new_page()
    page.goto(f"{live_server.url}/sign-in")
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_main_page(sign_in: Callable[..., Page], manager: Person, scheme: str) -> None:
    numbers = {
        "resolved": Task.objects.get(state="resolved").pk,
        "disputed": Task.objects.get(state="disputed").pk,
    }
    page = sign_in(manager, color_scheme=scheme)
    found = {}
    for address in PAGES:
        response = page.goto(address.format(**numbers))
        assert response is not None
        assert response.ok, address
        if address.endswith("annotate"):
            expect(page.locator("#workbench")).to_have_attribute("data-state", "task")
        if problems := serious(page):
            found[address] = problems
    assert found == {}


def test_the_annotating_pages_dialogs(sign_in: Callable[..., Page], manager: Person) -> None:
    page = sign_in(manager)
    page.goto("/projects/bottles/annotate")
    expect(page.locator("#workbench")).to_have_attribute("data-state", "task")
    for key in ("?", "m", "s", "t"):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog")).to_be_visible()
        assert serious(page) == [], key
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()


def test_the_pages_of_this_test_are_all_there_are(client: Client, manager: Person) -> None:
    """A page that the navigation leads to is looked at here."""
    client.force_login(manager)
    body = client.get("/projects/bottles/").content.decode()
    project = Project.objects.get()
    nav = body[body.index("<nav") : body.index("</header>")]
    linked = {part.split('"')[0] for part in nav.split('href="')[1:] if f"/projects/{project.slug}/" in part}
    assert linked <= set(PAGES), linked - set(PAGES)
