"""Pages of projects: making one, its settings and members, its overview."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from annotation_server.accounts.models import AuditEvent
from annotation_server.annotations.queue import next_claims
from annotation_server.projects.models import Membership, Project
from tests.server.factories import annotate, make_member, make_person, make_project, make_sample

pytestmark = pytest.mark.django_db

FIELDS = {
    "name": "Bottles",
    "slug": "bottles",
    "dimensions": ["physical_shadow", "appearance_deformation"],
    "polarity": "flawed",
    "overlap": "2",
    "resolution_rule": "majority",
    "queue_order": "sample",
    "gold_rate": "0.05",
    "gold_window": "20",
    "lease_seconds": "120",
    "rationale_min_words": "8",
    "near_copy": "0.9",
    "validation_share": "0.1",
    "test_share": "0.1",
}


def test_it_works(client: Client) -> None:
    administrator = make_person(is_superuser=True)
    client.force_login(administrator)

    created = client.post("/new-project", FIELDS)

    project = Project.objects.get()
    assert created["Location"] == "/projects/bottles/"
    assert project.dimensions == ["appearance_deformation", "physical_shadow"]  # in the contract's order
    assert (project.polarity, project.overlap, project.lease_seconds) == ("flawed", 2, 120)
    assert project.memberships.get().person == administrator
    assert AuditEvent.objects.get().verb == "project.create"
    assert "No samples yet." in client.get("/projects/bottles/").content.decode()


def test_only_administrators_and_managers_create_projects(client: Client) -> None:
    client.force_login(make_member(make_project(), Membership.Role.ANNOTATOR))
    assert client.post("/new-project", FIELDS).status_code == 403
    client.force_login(make_member(make_project(), Membership.Role.MANAGER))
    assert client.post("/new-project", FIELDS).status_code == 302


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slug": "taken"}, "Project with this Slug already exists."),
        ({"dimensions": ["taste"]}, "taste is not one of the available choices"),
        ({"dimensions": []}, "This field is required."),
        ({"overlap": "0"}, "greater than or equal to 1"),
        ({"validation_share": "0.7", "test_share": "0.7"}, "leave nothing for training"),
        ({"lease_seconds": "5"}, "greater than or equal to 10"),
        ({"gold_rate": "0.6"}, "less than or equal to 0.5"),
        ({"gold_floor": "-1"}, "greater than or equal to 0"),
        ({"gold_window": "1"}, "greater than or equal to 5"),
        ({"rationale_min_words": "-1"}, "greater than or equal to 0"),
        ({"rationale_max_words": "0"}, "greater than or equal to 1"),
        ({"near_copy": "1.5"}, "less than or equal to 1"),
        ({"queue_order": "random"}, "not one of the available choices"),
    ],
)
def test_a_mistake_is_said_where_it_was_made(client: Client, change: dict[str, object], said: str) -> None:
    make_project(slug="taken")
    client.force_login(make_person(is_superuser=True))
    page = client.post("/new-project", FIELDS | change)
    assert page.status_code == 422
    assert said in page.content.decode()
    assert Project.objects.count() == 1


def test_settings_change_and_are_noted(client: Client) -> None:
    project = make_project(slug="bottles", name="Old")
    client.force_login(make_member(project, Membership.Role.MANAGER))

    client.post("/projects/bottles/settings", FIELDS | {"slug": "renamed", "model_confidence": "0.9"})

    project.refresh_from_db()
    assert (project.name, project.slug, project.model_confidence) == ("Bottles", "bottles", 0.9)
    assert "name" in AuditEvent.objects.get(verb="project.edit").detail["changed"]


def test_another_queue_order_reorders_what_is_still_to_be_done(client: Client) -> None:
    project = make_project(slug="bottles", dimensions=["appearance_deformation", "physical_shadow"])
    for _ in range(2):
        make_sample(project)
    annotator = make_member(project)
    client.force_login(make_member(project, Membership.Role.MANAGER))
    fields = FIELDS | {"polarity": "acceptable", "queue_order": "dimension", "gold_floor": "0.6"}

    assert client.post("/projects/bottles/settings", fields).status_code == 302

    project.refresh_from_db()
    assert (project.queue_order, project.gold_floor) == ("dimension", 0.6)
    dimensions = [claim.task.dimension for claim in next_claims(project, annotator, 4)]
    assert dimensions == ["appearance_deformation"] * 2 + ["physical_shadow"] * 2


def test_polarity_cannot_turn_answers_around(client: Client) -> None:
    project = make_project(slug="bottles")
    _, tasks = make_sample(project)
    annotate(tasks[0], make_member(project), "A")
    client.force_login(make_member(project, Membership.Role.MANAGER))

    page = client.post("/projects/bottles/settings", FIELDS)

    assert page.status_code == 422
    assert "the polarity of this project cannot change" in page.content.decode()
    project.refresh_from_db()
    assert project.polarity == "acceptable"


def test_members_come_change_and_go(client: Client) -> None:
    project = make_project()
    manager = make_member(project, Membership.Role.MANAGER)
    friend = make_person("grace")
    client.force_login(manager)
    members = f"/projects/{project.slug}/members"

    client.post(members, {"username": "grace", "role": "annotator"})
    client.post(members, {"username": "grace", "role": "reviewer"})
    assert project.memberships.get(person=friend).role == "reviewer"

    client.post(f"{members}/{friend.pk}/remove")
    assert not project.memberships.filter(person=friend).exists()
    assert client.post(f"{members}/{friend.pk}/remove").status_code == 404


def test_a_member_who_does_not_exist_is_a_line_on_the_page(client: Client) -> None:
    project = make_project()
    client.force_login(make_member(project, Membership.Role.MANAGER))
    page = client.post(f"/projects/{project.slug}/members", {"username": "nobody", "role": "annotator"})
    assert page.status_code == 422
    assert "Nobody signs in as" in page.content.decode()


def test_the_overview_counts_by_dimension_and_approach(client: Client) -> None:
    project = make_project(dimensions=["physical_shadow"])
    annotator = make_member(project)
    for answer in ("A", "B", None):
        _, tasks = make_sample(project)
        if answer:
            annotate(tasks[0], annotator, answer)
    client.force_login(annotator)

    context = client.get(f"/projects/{project.slug}/").context

    (line,) = context["lines"]
    assert (line.tasks, line.open, line.disputed, line.resolved) == (3, 1, 0, 2)
    assert line.annotations == {"manual": 2, "automated": 0, "answer_driven": 0}


def test_the_overview_asks_the_same_number_of_questions_however_much_there_is(client: Client) -> None:
    project = make_project()
    annotator = make_member(project)
    client.force_login(annotator)
    counts = []
    for _ in range(2):
        for _ in range(3):
            _, tasks = make_sample(project)
            annotate(tasks[0], annotator, "A")
        with CaptureQueriesContext(connection) as queries:
            client.get(f"/projects/{project.slug}/")
        counts.append(len(queries))
    assert counts[0] == counts[1]
