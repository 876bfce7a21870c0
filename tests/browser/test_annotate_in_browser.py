"""Annotating in a real browser: by mouse, by keyboard, without JavaScript, with a lost lease and a lost network."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation
from annotation_server.projects.models import Membership, Project
from annotation_server.samples.models import Candidate
from annotation_server.tasks.models import Slot, Task
from annotation_server.tasks.services import claim_next
from tests.browser.conftest import picture
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

SignIn = Callable[..., Page]
COLOURS = ("tomato", "gold", "teal", "orchid")


@pytest.fixture
def project() -> Project:
    project = make_project(slug="bottles", dimensions=["physical_shadow"], lease_seconds=10)
    for number in range(3):
        sample, _ = make_sample(project, external_id=f"bottle-{number}", original=picture("slategray"))
        for candidate, colour in zip(sample.candidates.order_by("letter"), COLOURS, strict=True):
            Candidate.objects.filter(pk=candidate.pk).update(image=picture(colour))
    return project


@pytest.fixture
def annotator(project: Project) -> Person:
    return make_member(project, username="annotator")


def test_a_session_by_mouse(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    page.get_by_role("link", name=project.name).click()
    page.get_by_role("link", name="Annotate").first.click()
    expect(page.get_by_role("img", name="Candidate D")).to_be_visible()
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 96)")

    page.get_by_role("checkbox", name="A is acceptable").check()
    page.get_by_role("checkbox", name="C is acceptable").check()
    page.get_by_label("Rationale").fill("Both touch their shadows.")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("bottle-1")).to_be_visible()

    # None and letters exclude each other.
    page.get_by_role("checkbox", name="B is acceptable").check()
    page.get_by_role("checkbox", name="None is acceptable").check()
    expect(page.get_by_role("checkbox", name="B is acceptable")).not_to_be_checked()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("bottle-2")).to_be_visible()

    page.get_by_role("checkbox", name="D is acceptable").check()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("All done")).to_be_visible()

    answers = list(Annotation.objects.order_by("pk").values_list("answer", flat=True))
    assert answers == [frozenset("AC"), frozenset(), frozenset("D")]
    assert all(spent is not None and spent > 0 for spent in Annotation.objects.values_list("seconds_spent", flat=True))


def test_a_session_by_keyboard_alone(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    page.goto("/projects/bottles/annotate")

    page.keyboard.press("a")
    page.keyboard.press("b")
    page.keyboard.press("b")  # again takes it back
    page.keyboard.press("d")
    page.keyboard.press("r")
    page.keyboard.type("An answer with n and a in it.")  # letters typed here choose nothing
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("bottle-1")).to_be_visible()

    page.keyboard.press("c")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    expect(page.get_by_text("bottle-2")).to_be_visible()

    page.keyboard.press("r")
    page.keyboard.type("typed")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")  # nothing is chosen yet
    expect(page.get_by_text("Choose one or more candidates")).to_be_visible()
    expect(page.get_by_label("Rationale")).to_have_value("typed")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    expect(page.get_by_text("All done")).to_be_visible()

    said = list(Annotation.objects.order_by("pk").values_list("answer", "rationale"))
    assert said == [
        (frozenset("AD"), "An answer with n and a in it."),
        (frozenset(), ""),
        (frozenset("B"), "typed"),
    ]


def test_it_works_without_javascript(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator, java_script_enabled=False)
    page.goto("/projects/bottles/annotate")
    page.get_by_role("checkbox", name="A is acceptable").check()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("bottle-1")).to_be_visible()
    assert Annotation.objects.get().answer == frozenset("A")


def test_leaving_the_page_gives_the_task_back(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    page.goto("/projects/bottles/annotate")
    assert Slot.objects.filter(state="claimed").count() == 1
    page.get_by_role("link", name="Tasks").click()
    expect(page.get_by_role("heading", name="Tasks you have answered")).to_be_visible()
    # Sent while the page goes away, which Playwright does not see; the lease itself would last another ten seconds.
    until = time.monotonic() + 3
    while Slot.objects.filter(state="claimed").exists():
        assert time.monotonic() < until, "the task was not given back"
        page.wait_for_timeout(50)


def test_the_page_keeps_its_lease_and_says_when_it_is_lost(
    sign_in: SignIn, project: Project, annotator: Person
) -> None:
    page = sign_in(annotator)
    page.goto("/projects/bottles/annotate")
    (before,) = Slot.objects.filter(state="claimed").values_list("lease_expires_at", flat=True)
    with page.expect_response(re.compile("/extend$")) as kept:
        pass
    assert kept.value.status == 204
    assert Slot.objects.filter(state="claimed", lease_expires_at__gt=before).exists()

    # The page is silent for too long (its laptop slept), and somebody faster takes and answers the task.
    Slot.objects.filter(state="claimed").update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    faster = make_member(project, username="faster")
    claimed = claim_next(project, faster)
    assert claimed is not None
    annotate(claimed.task, faster, "B", lease_token=claimed.lease_token)

    expect(page.get_by_text("This task was idle too long")).to_be_visible()
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(page.get_by_text("kept as surplus and does not count")).to_be_visible()
    assert Annotation.objects.get(annotator__person=annotator).standing == "surplus"
    assert Task.objects.get(pk=claimed.task.pk).resolution.answer == frozenset("B")


def test_a_lost_network_loses_nothing_typed(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    page.goto("/projects/bottles/annotate")
    page.get_by_label("Rationale").fill("typed before the cut")
    page.get_by_role("checkbox", name="A is acceptable").check()
    page.context.set_offline(True)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("The server cannot be reached.")).to_be_visible()
    expect(page.get_by_label("Rationale")).to_have_value("typed before the cut")

    page.context.set_offline(False)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("bottle-1")).to_be_visible()
    expect(page.get_by_text("The server cannot be reached.")).to_be_hidden()
    assert Annotation.objects.get().rationale == "typed before the cut"


def test_a_dispute_is_decided_with_every_vote_in_view(sign_in: SignIn) -> None:
    project = make_project(slug="cans", dimensions=["physical_shadow"], overlap=2)
    _, (task,) = make_sample(project, original=picture("slategray"))
    annotate(task, make_member(project, username="ada"), "A", rationale="B floats.")
    annotate(task, make_member(project, username="grace"), "AB", rationale="B is fine.")

    page = sign_in(make_member(project, Membership.Role.REVIEWER, "reviewer"))
    page.goto("/projects/cans/disputed")
    page.get_by_role("link", name="Decide").click()
    expect(page.get_by_text("B floats.")).to_be_visible()
    expect(page.get_by_text("B is fine.")).to_be_visible()
    page.get_by_role("checkbox", name="A is acceptable").check()
    page.get_by_label("Rationale").fill("Its shadow does not touch it.")
    page.get_by_role("button", name="Decide").click()

    expect(page.get_by_text("Nothing is disputed.")).to_be_visible()
    assert Task.objects.get(pk=task.pk).resolution.answer == frozenset("A")


def test_nothing_on_the_page_breaks_its_own_policy(sign_in: SignIn, project: Project, annotator: Person) -> None:
    """A script or style that the Content-Security-Policy refuses is logged by the browser as an error."""
    page = sign_in(annotator, color_scheme="dark")
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto("/projects/bottles/annotate")
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(page.get_by_text("bottle-1")).to_be_visible()
    assert errors == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 26)"
