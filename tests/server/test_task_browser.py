"""The task browser: filters over allowed fields only, pages both ways by keyset, as blind as everything else."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from annotation_server.annotations.decisions import adjudicate
from annotation_server.annotations.models import Approach
from annotation_server.annotations.selectors import TaskFilter, task_rows
from annotation_server.annotations.services import add_gold, annotator_for, model_annotator
from annotation_server.projects.access import access_to
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.flags import flag
from annotation_server.tasks.models import Flag, Slot, Task
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db

Role = Membership.Role


@pytest.fixture
def project() -> Project:
    return make_project(dimensions=["physical_shadow"])


def found(project: Project, role: str = Role.ML_ENGINEER, **wanted: object) -> list[Task]:
    """What somebody with the role, who has answered nothing, finds."""
    access = access_to(make_member(project, role), project.slug)
    return [row.task for row in task_rows(access, TaskFilter(**wanted))]  # type: ignore[arg-type]


def test_every_filter_finds_its_tasks(project: Project) -> None:
    annotator, other = make_member(project), make_member(project)
    _, (opened,) = make_sample(project, external_id="cup-1")
    _, (agreed,) = make_sample(project, external_id="cup-2")
    _, (decided,) = make_sample(project, external_id="jar_1")
    _, (layout,) = make_sample(project, external_id="jar%2", dimensions=["placement_layout"])
    annotate(agreed, annotator, "A")
    annotate(decided, other, "A")
    adjudicate(task=decided, answer=frozenset("B"), person=make_member(project, Role.REVIEWER), idempotency_key="k")
    annotate(agreed, model_annotator("m"), "A", approach=Approach.AUTOMATED)
    everything = [opened, agreed, decided, layout]

    assert found(project) == everything
    assert found(project, state="open") == [opened, layout]
    assert found(project, state="resolved") == [agreed, decided]
    assert found(project, dimension="placement_layout") == [layout]
    assert found(project, sample="cup-") == [opened, agreed]
    assert found(project, sample="jar_") == [decided]
    assert found(project, sample="jar%") == [layout]
    assert found(project, approach="automated") == [agreed]
    assert found(project, approach="manual", source="adjudication") == [decided]
    assert found(project, annotator=annotator_for(annotator).pk) == [agreed]


def test_what_is_open_to_a_voter_is_found_as_open_whatever_answer_it_has(project: Project) -> None:
    project.overlap, project.model_confidence = 2, 0.0
    project.save()
    voted, known, by_model, done, opened = (make_task(project) for _ in range(5))
    reviewer, others = make_member(project, Role.REVIEWER), [make_member(project) for _ in range(2)]
    add_gold({known: frozenset("A")})
    annotate(by_model, model_annotator("m"), "A", approach=Approach.AUTOMATED, confidence=0.9)
    annotate(voted, reviewer, "A")
    annotate(voted, model_annotator("m"), "A", approach=Approach.AUTOMATED, confidence=0.9)
    for other in others:
        annotate(done, other, "A")
    access = access_to(reviewer, project.slug)

    def pages(state: str) -> list[Task]:
        found: list[Task] = []
        while rows := task_rows(access, TaskFilter(state=state), after=found[-1].pk if found else 0, rows=1):
            found.append(rows[0].task)
        return found

    assert pages("open") == [known, by_model, opened]
    assert pages("resolved") == [voted, done]
    before = task_rows(access, TaskFilter(state="open"), before=opened.pk, rows=1)
    assert [row.task for row in before] == [known, by_model]
    assert set(Task.objects.values_list("pk", "state", "asking")) == {
        (voted.pk, "resolved", True),
        (known.pk, "resolved", False),
        (by_model.pk, "resolved", True),
        (done.pk, "resolved", False),
        (opened.pk, "open", True),
    }


def test_flags_are_for_those_who_deal_with_them(project: Project) -> None:
    annotator = make_member(project)
    make_task(project)
    flagged, skipped = make_task(project), make_task(project)
    flag(task=flagged, person=annotator, reason="image", note="", skip=False)
    flag(task=skipped, person=annotator, reason="unclear", note="", skip=True)
    assert found(project, Role.REVIEWER, flagged=True) == [flagged, skipped]
    assert found(project, Role.REVIEWER, skipped=True) == [skipped]
    assert len(found(project, Role.ML_ENGINEER, flagged=True)) == 3  # filters nothing


def test_no_filter_tells_what_others_said_on_a_task_one_may_still_vote_on(project: Project) -> None:
    known, told = make_task(project), make_task(project)
    add_gold({known: frozenset("A")})
    annotate(told, model_annotator("m"), "A", approach=Approach.AUTOMATED)
    model = model_annotator("m").pk
    for wanted in ({"state": "resolved"}, {"source": "gold"}, {"approach": "automated"}, {"annotator": model}):
        assert found(project, Role.REVIEWER, **wanted) == [], wanted
        assert len(found(project, Role.ML_ENGINEER, **wanted)) == 1, wanted
    assert found(project, Role.REVIEWER, state="open") == [known, told]


def test_an_annotator_filters_their_own_by_what_is_no_secret(project: Project, client: Client) -> None:
    annotator = make_member(project)
    task = make_task(project)
    make_task(project)
    annotate(task, annotator, "A")
    annotate(task, model_annotator("m"), "B", approach=Approach.AUTOMATED)
    client.force_login(annotator)
    for query in ("", "?approach=answer_driven", "?flagged=on", "?source=gold", "?annotator=1"):
        page = client.get(f"/projects/{project.slug}/tasks{query}").content.decode()
        assert page.count('class="state ') == 1, query
        assert task.sample.external_id in page
        assert 'name="approach"' not in page


def pages_of(client: Client, project: Project, direction: str, start: str = "") -> list[list[str]]:
    """The sample ids of each page, following its links."""
    pages, address = [], f"/projects/{project.slug}/tasks{start}"
    while address:
        page = client.get(address).content.decode()
        pages.append(re.findall(r'tasks/\d+">([^<]+)</a>', page))
        link = re.search(rf'href="(\?[^"]+)" rel="{direction}"', page)
        address = f"/projects/{project.slug}/tasks{link[1].replace('&amp;', '&')}" if link else ""
    return pages


def test_pages_lead_forth_and_back_and_keep_the_filter(
    project: Project, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotation_server.annotations.selectors.PAGE_ROWS", 2)
    monkeypatch.setattr("annotation_server.annotations.views.browse.PAGE_ROWS", 2)
    for number in range(5):
        make_sample(project, external_id=f"s{number}")
    _, (last,) = make_sample(project, external_id="other")
    client.force_login(make_member(project, Role.MANAGER))

    assert pages_of(client, project, "next", "?sample=s") == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    back = f"?sample=s&before={last.pk}"
    assert pages_of(client, project, "prev", back) == [["s3", "s4"], ["s1", "s2"], ["s0"]]


def test_nonsense_filters_nothing(project: Project, client: Client) -> None:
    make_task(project)
    client.force_login(make_member(project, Role.MANAGER))
    for query in ("state=done", "dimension=taste", "after=x", "before=-1", "annotator=99", "password=1", "source='"):
        page = client.get(f"/projects/{project.slug}/tasks?{query}")
        assert page.status_code == 200, query
        assert page.content.decode().count('class="state ') == 1, query


def test_a_manager_puts_tasks_first(project: Project, client: Client) -> None:
    make_task(project)
    urgent = make_task(project)
    address = f"/projects/{project.slug}/tasks/put-first"
    client.force_login(make_member(project, Role.REVIEWER))
    assert client.post(address, {"task": urgent.pk}).status_code == 403

    client.force_login(make_member(project, Role.MANAGER))
    page = client.post(address, {"task": [urgent.pk, "x"], "query": "state=open"})
    assert page["Location"] == f"/projects/{project.slug}/tasks?state=open"
    assert list(Slot.objects.filter(priority=1).values_list("task", flat=True)) == [urgent.pk]
    client.post(address, {"task": urgent.pk, "ordinary": "1"})
    assert not Slot.objects.filter(priority=1).exists()


def test_a_reviewer_reads_and_closes_flags(project: Project, client: Client) -> None:
    task = make_task(project)
    flag(task=task, person=make_member(project), reason="image", note="A is black.", skip=False)
    address = f"/projects/{project.slug}/tasks/{task.pk}"
    client.force_login(make_member(project))
    assert "A is black." not in client.get(address).content.decode()
    assert client.post(f"{address}/flags/close").status_code == 403

    client.force_login(make_member(project, Role.REVIEWER))
    assert "A is black." in client.get(address).content.decode()
    closed = client.post(f"{address}/flags/close", follow=True).content.decode()
    assert "A is black." not in closed
    assert Flag.objects.get().closed_at is not None
