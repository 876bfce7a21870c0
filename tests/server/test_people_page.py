"""The people page: everybody's figures for those who manage or review, one's own without gold for annotators."""

from __future__ import annotations

import pytest
from django.test import Client

from annotation_server.annotations.quality import PersonLine, people, per_day, said_by_task
from annotation_server.annotations.services import add_gold, model_annotator, withdraw
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.flags import flag
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db

Role = Membership.Role


@pytest.fixture
def project() -> Project:
    return make_project(dimensions=["physical_shadow"], overlap=2)


def lines(project: Project) -> dict[str, PersonLine]:
    return {line.person.username: line for line in people(project, checked=True)}


def test_the_figures_of_everybody(project: Project) -> None:
    ada, grace = make_member(project, username="ada"), make_member(project, username="grace")
    for number in range(3):
        task = make_task(project)
        annotate(task, ada, "A", seconds_spent=10.0 * (number + 1))
        annotate(task, grace, "A" if number else "B")
    known = make_task(project)
    annotate(known, ada, "B")
    add_gold({known: frozenset("B")})
    flag(task=known, person=grace, reason="unclear", note="", skip=True)

    found = lines(project)

    assert (found["ada"].answered, found["ada"].seconds) == (4, 20.0)
    assert found["ada"].days[-1][1] == 4
    assert len(found["ada"].days) == 30
    assert (found["grace"].answered, found["grace"].seconds, found["grace"].skips) == (3, None, 1)
    assert found["ada"].gold is not None
    assert found["ada"].gold.dimensions["physical_shadow"].share == 1.0
    assert found["ada"].with_others is not None
    assert (found["ada"].with_others.compared, found["ada"].with_others.same) == (3, 2)
    assert per_day(project)[-1][1] == 7


def test_what_is_undone_or_by_models_is_nobodys_work(project: Project) -> None:
    ada = make_member(project, username="ada")
    withdraw(annotate(make_task(project), ada, "A"), ada)
    annotate(make_task(project), model_annotator("m"), "A", approach="automated")
    assert lines(project)["ada"].answered == 0
    assert "m" not in lines(project)


def test_agreement_counts_votes_only(project: Project) -> None:
    task = make_task(project)
    people = [make_member(project) for _ in range(3)]
    annotate(task, people[0], "A")
    annotate(task, people[1], "AC")
    annotate(task, people[2], "")  # surplus
    annotate(task, model_annotator("m"), "A", approach="automated")
    alone = make_task(project)
    annotate(alone, people[0], "")
    _, (small,) = make_sample(project, candidates=2)
    annotate(small, people[0], "")
    annotate(small, people[1], "B")

    said = said_by_task(project, "physical_shadow")

    patterns = {(count, tuple(answer for _, answer in votes)): number for (count, votes), number in said.items()}
    assert patterns == {(4, (frozenset("A"), frozenset("AC"))): 1, (2, (frozenset(), frozenset("B"))): 1}
    assert said_by_task(project, "placement_layout") == {}


def test_an_annotator_sees_only_their_own_and_nothing_of_gold(project: Project, client: Client) -> None:
    ada = make_member(project, username="ada")
    make_member(project, username="grace")
    task = make_task(project)
    annotate(task, ada, "B")
    add_gold({task: frozenset("A")})
    client.force_login(ada)
    for address in ("people", "people.csv"):
        page = client.get(f"/projects/{project.slug}/{address}").getvalue().decode()
        assert "ada" in page
        assert "grace" not in page
        assert "gold" not in page.lower()
        assert "others" not in page
        assert "Resume" not in page
    assert client.post(f"/projects/{project.slug}/people/{ada.pk}/resume").status_code == 403


def test_a_reviewer_pauses_and_resumes(project: Project, client: Client) -> None:
    ada = make_member(project, username="ada")
    client.force_login(make_member(project, Role.REVIEWER))
    root = f"/projects/{project.slug}/people"
    page = client.get(root).content.decode()
    assert "Gold exact" in page
    assert "n/a" in page

    paused = client.post(f"{root}/{ada.pk}/pause", {"why": "on leave"}, follow=True).content.decode()
    assert "ada is paused." in paused
    assert "on leave" in paused
    resumed = client.post(f"{root}/{ada.pk}/resume", follow=True).content.decode()
    assert "ada gets tasks again." in resumed
    assert Membership.objects.get(person=ada).paused_at is None
    assert client.post(f"{root}/{ada.pk}/delete").status_code == 404
    assert client.post(f"{root}/0/pause").status_code == 404


def test_the_agreement_page_shows_every_dimension_and_the_pairs_asked_for(project: Project, client: Client) -> None:
    ada, grace = make_member(project, username="ada"), make_member(project, username="grace")
    for number in range(6):
        task = make_task(project)
        annotate(task, ada, "A")
        annotate(task, grace, "AB" if number == 0 else "A")
    client.force_login(make_member(project, Role.ML_ENGINEER))
    root = f"/projects/{project.slug}/agreement"
    page = client.get(root).content.decode()
    assert "0.833" in page  # five of six the same
    assert "whisker" in page
    assert "ada · grace" not in page
    page = client.get(f"{root}?dimension=physical_shadow").content.decode()
    assert "ada · grace" in page
    client.force_login(ada)
    assert client.get(root).status_code == 403


def test_an_undefined_coefficient_is_not_available(project: Project, client: Client) -> None:
    task = make_task(project)
    for _ in range(2):
        annotate(task, make_member(project), "")
    client.force_login(make_member(project, Role.MANAGER))
    page = client.get(f"/projects/{project.slug}/agreement").content.decode()
    assert page.count("n/a") > 6
    assert "nan" not in page


def test_the_api_says_the_same_to_those_who_review(project: Project, client: Client) -> None:
    ada, grace = make_member(project, username="ada"), make_member(project, username="grace")
    for answer in ("A", "B"):
        task = make_task(project)
        annotate(task, ada, answer)
        annotate(task, grace, answer)
    root = f"/api/v1/projects/{project.slug}"
    client.force_login(make_member(project, Role.REVIEWER, "reviewer"))

    found = {row["username"]: row for row in client.get(f"{root}/people").json()}
    assert (found["ada"]["answered"], found["ada"]["same_as_others"], found["ada"]["paused"]) == (2, 1.0, "")
    lines = client.get(f"{root}/agreement").json()
    assert {(line["coefficient"], line["value"]) for line in lines} >= {("fleiss", 1.0), ("cohen", 1.0)}
    assert client.post(f"{root}/people/ada/pause", {"why": "tired"}, "application/json").json() == {"changed": True}
    assert Membership.objects.get(person=ada).paused_why == "tired"
    assert client.post(f"{root}/people/ada/resume").json() == {"changed": True}
    assert client.post(f"{root}/people/nobody/resume").status_code == 404

    client.force_login(ada)
    for page in ("people", "agreement"):
        assert client.get(f"{root}/{page}").status_code == 403
