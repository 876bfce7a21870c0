"""Disputed tasks and the page that decides one."""

from __future__ import annotations

import pytest
from django.test import Client

from annotation_server.annotations.models import Resolution
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.models import Task
from tests.server.factories import annotate, make_member, make_project, make_sample

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    project = make_project(dimensions=["physical_shadow"], overlap=2)
    _, (task,) = make_sample(project)
    annotate(task, make_member(project, username="ada"), "A", rationale="B floats.")
    annotate(task, make_member(project, username="grace"), "AB", rationale="B is fine.")
    return project


def test_it_works(client: Client, project: Project) -> None:
    reviewer = make_member(project, Membership.Role.REVIEWER)
    client.force_login(reviewer)
    task = Task.objects.get()
    disputed = f"/projects/{project.slug}/disputed"

    listed = client.get(disputed).content.decode()
    page = client.get(f"{disputed}/{task.pk}").content.decode()
    assert f"{disputed}/{task.pk}" in listed
    assert all(words in page for words in ("ada", "grace", "B floats.", "B is fine."))

    decided = client.post(
        f"{disputed}/{task.pk}", {"letters": "A", "rationale": "It floats.", "idempotency_key": "k"}, follow=True
    )

    resolution = Resolution.objects.get()
    assert (resolution.answer, resolution.source) == (frozenset("A"), "adjudication")
    assert resolution.decided_by == reviewer
    assert resolution.rationale_from is not None
    assert "is decided." in decided.content.decode()
    assert "Nothing is disputed." in decided.content.decode()


def test_deciding_twice_with_one_key_decides_once(client: Client, project: Project) -> None:
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    task = Task.objects.get()
    for letters in ("A", "B"):
        client.post(f"/projects/{project.slug}/disputed/{task.pk}", {"letters": letters, "idempotency_key": "k"})
    assert task.annotations.filter(standing="decision").count() == 1


def test_an_empty_decision_keeps_what_was_typed(client: Client, project: Project) -> None:
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    task = Task.objects.get()
    page = client.post(f"/projects/{project.slug}/disputed/{task.pk}", {"rationale": "typed", "idempotency_key": "k"})
    assert page.status_code == 422
    assert "Choose one or more candidates" in page.content.decode()
    assert "typed" in page.content.decode()


def test_after_deciding_the_next_disputed_task_comes(client: Client, project: Project) -> None:
    """The one after it, then from the beginning; none that one may still be asked to vote on."""
    first = Task.objects.get()
    reviewer = make_member(project, Membership.Role.REVIEWER)
    voters = [make_member(project) for _ in range(2)]
    _, (second,) = make_sample(project)
    for voter, answer in zip(voters, "AB", strict=True):
        annotate(second, voter, answer)
    client.force_login(reviewer)
    root = f"/projects/{project.slug}/disputed"
    assert f'href="{root}/{second.pk}"' in client.get(f"{root}/{first.pk}").content.decode()

    decided = client.post(f"{root}/{second.pk}", {"letters": "A", "idempotency_key": "k"})
    assert decided["Location"] == f"{root}/{first.pk}"
    decided = client.post(f"{root}/{first.pk}", {"letters": "A", "idempotency_key": "l"})
    assert decided["Location"] == root


def test_marks_stand_beside_the_answer_they_belong_to(client: Client, project: Project) -> None:
    _, (task,) = make_sample(project)
    box = {"letter": "B", "x": 0.1, "y": 0.25, "w": 0.5, "h": 0.5, "note": "a seam <here>"}
    annotate(task, make_member(project), "A", marks=[box, {"letter": "C", "x": 0.5, "y": 1}])
    annotate(task, make_member(project), "AB")
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    page = client.get(f"/projects/{project.slug}/disputed/{task.pk}").content.decode()
    assert "<strong>B</strong> at 10 %, 25 %, 50 × 50 %: a seam &lt;here&gt;</li>" in page
    assert "<strong>C</strong> at 50 %, 100 %</li>" in page


def test_the_list_goes_on_past_a_page(client: Client, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotation_server.annotations.views.adjudicate.PAGE_ROWS", 1)
    _, (second,) = make_sample(project)
    for answer in "AB":
        annotate(second, make_member(project), answer)
    client.force_login(make_member(project, Membership.Role.REVIEWER))
    root = f"/projects/{project.slug}/disputed"
    page = client.get(root).content.decode()
    assert f"{root}/{second.pk}" not in page
    first = Task.objects.exclude(pk=second.pk).get()
    assert f'href="?after={first.pk}"' in page
    assert f"{root}/{second.pk}" in client.get(f"{root}?after={first.pk}").content.decode()
