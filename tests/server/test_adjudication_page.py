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
