"""Annotating in a real browser: by keyboard alone and by mouse, with undo, skips, a lost network, an ended session,
two tabs, and two hundred tasks in a row. Not here: looking at images (test_viewer.py)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone
from playwright.sync_api import Page, expect

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation, Draft
from annotation_server.projects.models import Membership, Project
from annotation_server.samples.models import Candidate, Sample
from annotation_server.tasks.models import Flag, Slot, Task
from annotation_server.tasks.services import claim_next
from tests.browser.conftest import picture
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = [pytest.mark.needs_chromium, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

SignIn = Callable[..., Page]
COLOURS = ("tomato", "gold", "teal", "orchid")


def fill_queue(project: Project, samples: int, first: int = 0) -> None:
    for number in range(first, first + samples):
        sample, _ = make_sample(project, external_id=f"bottle-{number}", original=picture("slategray"))
        for candidate, colour in zip(sample.candidates.order_by("letter"), COLOURS, strict=True):
            Candidate.objects.filter(pk=candidate.pk).update(image=picture(colour))


@pytest.fixture
def project() -> Project:
    project = make_project(slug="bottles", dimensions=["physical_shadow"], lease_seconds=10)
    fill_queue(project, 3)
    return project


@pytest.fixture
def annotator(project: Project) -> Person:
    return make_member(project, username="annotator")


def begin(page: Page) -> None:
    page.goto("/projects/bottles/annotate")
    at_task(page, "bottle-0")


def at_task(page: Page, name: str) -> None:
    expect(page.locator("[data-part=sample]")).to_have_text(name)
    expect(page.locator("#workbench")).to_have_attribute("data-state", "task")


def said() -> list[tuple[str, str]]:
    counted = Annotation.objects.exclude(standing="withdrawn").order_by("pk")
    return [("".join(sorted(one.answer)), one.rationale) for one in counted.only("answer", "rationale")]


def wait_until(page: Page, condition: Callable[[], Any]) -> None:
    """The server hears of what the page does a moment later."""
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail("the server was not told in time")


def test_a_session_by_keyboard_alone(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("a")
    page.keyboard.press("c")
    page.keyboard.press("b")
    page.keyboard.press("b")
    page.keyboard.press("r")
    page.keyboard.type("Both touch their shadows.")
    page.keyboard.press("Control+Enter")
    at_task(page, "bottle-1")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    at_task(page, "bottle-2")
    page.keyboard.press("l")
    expect(page.get_by_role("button", name="D is acceptable").first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    expect(page.get_by_text("All done")).to_be_visible()
    wait_until(page, lambda: len(said()) == 3)
    assert said() == [("AC", "Both touch their shadows."), ("", ""), ("ABCD", "")]
    assert Annotation.objects.filter(seconds_spent__gt=0).count() == 3


def test_a_session_by_mouse(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    page.get_by_role("link", name=project.name).click()
    page.get_by_role("link", name="Annotate").first.click()
    at_task(page, "bottle-0")
    page.locator("[data-part=letters]").get_by_role("button", name="B is acceptable").click()
    page.get_by_role("button", name="Submit").click()
    at_task(page, "bottle-1")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Choose one or more candidates")).to_be_visible()
    page.get_by_role("button", name="None").click()
    page.get_by_role("button", name="Submit").click()
    at_task(page, "bottle-2")
    wait_until(page, lambda: len(said()) == 2)
    assert said() == [("B", ""), ("", "")]


def test_undo_brings_the_answer_back(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("a")
    page.get_by_label("Rationale").fill("A stands well.")
    page.keyboard.press("Control+Enter")
    at_task(page, "bottle-1")
    wait_until(page, lambda: len(said()) == 1)
    assert Task.objects.get(sample__external_id="bottle-0").state == "resolved"

    page.keyboard.press("Escape")
    page.keyboard.press("u")
    at_task(page, "bottle-0")
    expect(page.get_by_label("Rationale")).to_have_value("A stands well.")
    assert (said(), Task.objects.get(sample__external_id="bottle-0").state) == ([], "open")

    page.keyboard.press("b")
    page.keyboard.press("Enter")
    at_task(page, "bottle-1")
    wait_until(page, lambda: said() == [("AB", "A stands well.")])


def test_undo_is_refused_after_somebody_acted(sign_in: SignIn, project: Project, annotator: Person) -> None:
    project.overlap = 2
    project.save()
    Sample.objects.all().delete()
    fill_queue(project, 1)
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    wait_until(page, lambda: len(said()) == 1)
    other = make_member(project)
    claimed = claim_next(project, other)
    assert claimed is not None
    annotate(claimed.task, other, "B")

    page.keyboard.press("u")
    expect(page.get_by_text("can no longer be undone")).to_be_visible()
    assert len(said()) == 2


def test_skipping_with_a_reason_and_taking_it_back(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("s")
    page.get_by_label("The guidelines do not cover it").check()
    page.get_by_label("Note").fill("What is a straw?")
    page.keyboard.press("Enter")
    at_task(page, "bottle-1")
    flag = Flag.objects.get()
    assert (flag.reason, flag.note, flag.skipped) == ("guidelines", "What is a straw?", True)

    page.keyboard.press("u")
    at_task(page, "bottle-0")
    assert not Flag.objects.exists()


def test_flagging_keeps_the_task(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("t")
    page.get_by_role("dialog").get_by_role("button", name="Flag").click()
    wait_until(page, lambda: Flag.objects.filter(skipped=False).exists())
    at_task(page, "bottle-0")


def test_the_network_is_cut_in_the_middle_and_comes_back(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    page.keyboard.press("a")
    page.get_by_label("Rationale").fill("Written without a network.")
    page.keyboard.press("Control+Enter")
    at_task(page, "bottle-1")  # it was fetched ahead
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    at_task(page, "bottle-2")
    expect(page.get_by_text("The server cannot be reached. Go on working")).to_be_visible()
    expect(page.get_by_text("Waiting to be sent: 2")).to_be_visible()
    assert said() == []

    page.context.set_offline(False)
    wait_until(page, lambda: len(said()) == 2)
    assert said() == [("A", "Written without a network."), ("D", "")]
    expect(page.get_by_text("Waiting to be sent")).to_be_hidden()


def test_what_waits_survives_a_closed_tab(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    page.keyboard.press("c")
    page.keyboard.press("Enter")
    at_task(page, "bottle-1")
    context = page.context
    page.close()
    context.set_offline(False)
    page = context.new_page()
    page.goto("/projects/bottles/annotate")
    wait_until(page, lambda: said() == [("C", "")])
    at_task(page, "bottle-1")


def test_the_session_ends_in_the_middle_of_a_task(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("a")
    page.get_by_label("Rationale").fill("Typed before the session ended.")
    Session.objects.all().delete()
    page.keyboard.press("Control+Enter")
    dialog = page.get_by_role("dialog", name="Your session has ended")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Password").fill("wrong")
    dialog.get_by_role("button", name="Sign in").click()
    expect(dialog.get_by_text("Name or password is wrong.")).to_be_visible()
    dialog.get_by_label("Password").fill("secret")
    dialog.get_by_role("button", name="Sign in").click()
    expect(dialog).to_be_hidden()
    wait_until(page, lambda: said() == [("A", "Typed before the session ended.")])
    at_task(page, "bottle-1")


def test_a_draft_is_on_the_server_and_comes_back(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    page.keyboard.press("b")
    page.get_by_label("Rationale").fill("Half a th")
    wait_until(page, lambda: Draft.objects.filter(rationale="Half a th", answer=["B"]).exists())

    elsewhere = sign_in(annotator)
    begin(elsewhere)
    expect(elsewhere.get_by_label("Rationale")).to_have_value("Half a th")


def test_two_tabs_on_one_task_get_a_conflict_instead_of_an_overwrite(
    sign_in: SignIn, project: Project, annotator: Person
) -> None:
    first = sign_in(annotator)
    begin(first)
    second = first.context.new_page()
    begin(second)
    first.get_by_label("Rationale").fill("from the first tab")
    wait_until(first, lambda: Draft.objects.filter(rationale="from the first tab").exists())
    second.get_by_label("Rationale").fill("from the second tab")
    expect(second.get_by_text("changed in another tab")).to_be_visible()
    assert Draft.objects.get().rationale == "from the first tab"
    second.get_by_role("button", name="Take what stands there").click()
    expect(second.get_by_label("Rationale")).to_have_value("from the first tab")

    first.keyboard.press("Escape")
    first.keyboard.press("a")
    first.keyboard.press("Enter")
    wait_until(first, lambda: len(said()) == 1)
    expect(second.get_by_text("answered this task in another tab")).to_be_visible()
    at_task(second, "bottle-1")
    assert said() == [("A", "from the first tab")]


def test_a_task_that_went_to_others_says_so(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    # Idle so long that everything it held went to somebody faster.
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(minutes=1))
    faster = make_member(project)
    claimed = claim_next(project, faster)
    assert claimed is not None
    annotate(claimed.task, faster, "B")
    expect(page.get_by_text("may be in other hands by now")).to_be_visible()
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(page.get_by_text("is kept as surplus and does not count")).to_be_visible()
    assert Annotation.objects.get(annotator__person=annotator).standing == "surplus"


def test_leaving_gives_everything_back(sign_in: SignIn, project: Project, annotator: Person) -> None:
    page = sign_in(annotator)
    begin(page)
    wait_until(page, lambda: Slot.objects.filter(state="claimed").count() == 3)
    page.goto("/")
    wait_until(page, lambda: not Slot.objects.filter(state="claimed").exists())


def test_nothing_to_do_and_being_paused_say_why(sign_in: SignIn, project: Project, annotator: Person) -> None:
    Membership.objects.update(paused_at=timezone.now(), paused_why="ask Ada")
    page = sign_in(annotator)
    page.goto("/projects/bottles/annotate")
    expect(page.get_by_text("You get no tasks in this project for now.")).to_be_visible()
    Membership.objects.update(paused_at=None)
    Task.objects.all().delete()
    page.get_by_role("button", name="Look again").click()
    expect(page.get_by_text("There is nothing to annotate yet.")).to_be_visible()


def test_two_hundred_tasks_in_a_row_leak_nothing(sign_in: SignIn, project: Project, annotator: Person) -> None:
    fill_queue(project, 207, first=3)
    page = sign_in(annotator)
    begin(page)
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable")

    def measured() -> dict[str, float]:
        tools.send("HeapProfiler.collectGarbage")
        return {one["name"]: one["value"] for one in tools.send("Performance.getMetrics")["metrics"]}

    sizes = []
    for number in range(200):
        at_task(page, f"bottle-{number}")
        page.keyboard.press("abcd"[number % 4])
        page.keyboard.press("Enter")
        if number in (50, 199):
            at_task(page, f"bottle-{number + 1}")
            sizes.append(measured())
    wait_until(page, lambda: len(said()) == 200)
    before, after = sizes
    assert after["Nodes"] < before["Nodes"] * 1.1
    assert after["JSEventListeners"] < before["JSEventListeners"] * 1.1
    assert after["JSHeapUsedSize"] < before["JSHeapUsedSize"] * 1.3
