"""Drafts on the server: kept while somebody types, never overwritten by a page that knows an older one."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from annotation_server.annotations.drafts import DraftConflict, DraftRefused, drafts_of, save_draft
from annotation_server.annotations.models import Draft
from annotation_server.annotations.queue import next_claims
from annotation_server.annotations.services import withdraw
from tests.server.factories import annotate, make_member, make_project, make_task

pytestmark = pytest.mark.django_db

MARK = {"letter": "B", "x": 0.5, "y": 0.25}


def test_it_works() -> None:
    task = make_task()
    annotator = make_member(task.project)

    first = save_draft(task=task, person=annotator, revision=0, answer=None, rationale="B")
    second = save_draft(task=task, person=annotator, revision=1, answer="CA", rationale="B floats.", marks=[MARK])

    assert (first.revision, second.revision) == (1, 2)
    kept = drafts_of(annotator, [task.pk])[task.pk]
    assert (kept.answer, kept.rationale, kept.marks) == (["A", "C"], "B floats.", [MARK])
    annotate(task, annotator, "AC")
    assert not Draft.objects.exists()


def test_nothing_chosen_is_not_the_same_as_none() -> None:
    task = make_task()
    annotator = make_member(task.project)
    save_draft(task=task, person=annotator, revision=0, answer=[], rationale="")
    assert Draft.objects.get().answer == []


def test_a_page_that_knows_an_older_one_gets_a_conflict_and_the_newer() -> None:
    task = make_task()
    annotator = make_member(task.project)
    save_draft(task=task, person=annotator, revision=0, answer=["A"], rationale="here")
    for stale in (0, 7):
        with pytest.raises(DraftConflict) as conflict:
            save_draft(task=task, person=annotator, revision=stale, answer=["B"], rationale="there")
        assert conflict.value.draft.rationale == "here"
    assert Draft.objects.get().answer == ["A"]


def test_everybody_has_their_own() -> None:
    task = make_task()
    one, other = make_member(task.project), make_member(task.project)
    save_draft(task=task, person=one, revision=0, answer=["A"], rationale="")
    save_draft(task=task, person=other, revision=0, answer=["B"], rationale="")
    assert drafts_of(one, [task.pk])[task.pk].answer == ["A"]
    annotate(task, one, "A")
    assert Draft.objects.get().person == other


def test_a_draft_gone_meanwhile_begins_anew() -> None:
    """Submitted and undone in another tab: this one still knows revision 3."""
    task = make_task()
    annotator = make_member(task.project)
    draft = save_draft(task=task, person=annotator, revision=3, answer=["A"], rationale="")
    assert draft.revision == 1


def test_an_answered_task_takes_no_draft_until_it_is_undone() -> None:
    task = make_task()
    annotator = make_member(task.project)
    said = annotate(task, annotator, "A")
    with pytest.raises(DraftRefused, match="answered this task already"):
        save_draft(task=task, person=annotator, revision=0, answer=["B"], rationale="")
    withdraw(said, annotator)
    draft = save_draft(task=task, person=annotator, revision=1, answer=["B"], rationale="")
    assert draft.answer == ["B"]


@pytest.mark.parametrize(
    "bad", [{"answer": ["E"]}, {"answer": ["A"], "marks": [{"letter": "A", "x": 2, "y": 0}]}], ids=["answer", "marks"]
)
def test_what_does_not_fit_the_task_is_refused(bad: dict[str, Any]) -> None:
    task = make_task()
    with pytest.raises(DraftRefused):
        save_draft(task=task, person=make_member(task.project), revision=0, rationale="", **bad)
    assert not Draft.objects.exists()


def test_the_api_keeps_gives_back_and_refuses(client: Client) -> None:
    project = make_project(dimensions=["physical_shadow"])
    task = make_task(project)
    annotator = make_member(project)
    client.force_login(annotator)
    address = f"/api/v1/projects/{project.slug}/tasks/{task.pk}/draft"
    assert client.get(address).status_code == 204

    said = {"revision": 0, "answer": ["A"], "rationale": "A stands.", "marks": [MARK]}
    assert client.put(address, said, "application/json").json()["revision"] == 1
    stale = client.put(address, said, "application/json")
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "draft_conflict")
    assert client.get(address).json() == {"revision": 1, "answer": ["A"], "rationale": "A stands.", "marks": [MARK]}
    next_claims(project, annotator)
    (claim,) = client.post(f"/api/v1/projects/{project.slug}/claims", {}, "application/json").json()["claims"]
    assert claim["draft"]["rationale"] == "A stands."

    client.force_login(make_member(project))
    assert client.get(address).status_code == 204  # others' drafts are theirs
