"""Deciding in a real browser: an adjudicator from dispute to dispute, a reviewer through a queue, by keys; and the
colour scheme a person chose. Not here: how pictures are shown (test_viewer.py), what a decision does (tests/server).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Resolution, Review
from annotation_server.projects.models import Membership
from annotation_server.samples.models import Candidate
from annotation_server.tasks.models import Task
from tests.browser.conftest import picture
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

SignIn = Callable[..., Page]
COLOURS = ("tomato", "gold", "teal", "orchid")


@pytest.fixture
def reviewer() -> Person:
    """Of a project with two disputed tasks and two on which everybody agreed."""
    project = make_project(slug="bottles", overlap=2, dimensions=["physical_shadow"])
    ada, bob = make_member(project, username="ada"), make_member(project, username="bob")
    for number in range(4):
        sample, (task,) = make_sample(project, external_id=f"bottle-{number}", original=picture("slategray"))
        for candidate, colour in zip(sample.candidates.order_by("letter"), COLOURS, strict=True):
            Candidate.objects.filter(pk=candidate.pk).update(image=picture(colour))
        annotate(task, ada, "AB", rationale="Ada sees two.", marks=[{"letter": "B", "x": 0.25, "y": 0.5}])
        annotate(task, bob, "A" if number < 2 else "AB", rationale="Bob looked twice.")
    return make_member(project, Membership.Role.REVIEWER, username="reviewer")


def answer_of(name: str) -> tuple[str, str]:
    resolution = Resolution.objects.get(task__sample__external_id=name)
    return "".join(sorted(resolution.answer)), resolution.source


def test_an_adjudicator_goes_from_dispute_to_dispute_by_keys(sign_in: SignIn, reviewer: Person) -> None:
    page = sign_in(reviewer)
    page.goto("/projects/bottles/disputed")
    page.get_by_role("link", name="bottle-0").click()
    page.wait_for_url("**/disputed/*")
    expect(page.locator(".viewer")).to_be_visible()
    for said in ("Ada sees two.", "Bob looked twice."):
        expect(page.get_by_text(said)).to_be_visible()
    expect(page.get_by_text("at 25 %, 50 %")).to_be_visible()
    page.keyboard.press("b")
    expect(page.locator(".viewer .chosen")).to_have_count(1)
    page.keyboard.press("n")
    expect(page.locator(".viewer .chosen")).to_have_count(0)
    page.keyboard.press("a")
    page.keyboard.press("c")
    expect(page.locator(".viewer .chosen")).to_have_count(2)
    page.get_by_label("Rationale").fill("A and C, look at the foot.")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("is decided")).to_be_visible()
    assert answer_of("bottle-0") == ("AC", "adjudication")

    # The next dispute is there already; it may be left as it is.
    assert page.url.endswith(f"/disputed/{Task.objects.get(sample__external_id='bottle-1').pk}")
    page.keyboard.press("s")
    page.wait_for_url("**/disputed")
    assert Task.objects.get(sample__external_id="bottle-1").state == "disputed"


def test_a_reviewer_goes_through_a_queue_by_keys(sign_in: SignIn, reviewer: Person) -> None:
    page = sign_in(reviewer)
    page.goto("/projects/bottles/review?kind=resolved&share=100")
    expect(page.get_by_text("0 of 2 reviewed")).to_be_visible()
    page.keyboard.press("y")
    expect(page.get_by_text("1 of 2 reviewed")).to_be_visible()
    page.get_by_label("Reason to reject").fill("B floats.")
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_text("1 of 2 reviewed")).to_be_hidden()
    verdicts = Review.objects.order_by("pk").values_list("task__sample__external_id", "verdict", "reason")
    assert [(verdict, reason) for _, verdict, reason in verdicts] == [("accepted", ""), ("rejected", "B floats.")]
    rejected = verdicts[1][0]
    assert Task.objects.get(sample__external_id=rejected).state == "disputed"


def test_dark_mode_is_the_systems_or_the_persons_own(sign_in: SignIn, reviewer: Person) -> None:
    def background(page: Page) -> int:
        page.goto("/projects/bottles/annotate")
        said: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(said.removeprefix("rgb(").split(",")[0])

    assert background(sign_in(reviewer, color_scheme="light")) > 200
    dark = sign_in(reviewer, color_scheme="dark")
    assert background(dark) < 60
    # Pictures are judged on the same grey in both.
    dark.goto(f"/projects/bottles/disputed/{Task.objects.filter(state='disputed').first().pk}")  # type: ignore[union-attr]
    assert dark.evaluate("getComputedStyle(document.querySelector('.viewer')).backgroundColor") == "rgb(119, 119, 119)"

    dark.goto("/you")
    dark.get_by_label("Light", exact=True).check()
    dark.get_by_role("button", name="Save").first.click()
    dark.wait_for_load_state()
    assert background(dark) > 200
