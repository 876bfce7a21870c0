"""What people say about a task instead of an answer (a skip) or beside it (a flag)."""

from __future__ import annotations

import pytest
from django.test import Client

from annotation_server.annotations.queue import next_claims
from annotation_server.projects.models import Membership
from annotation_server.tasks.flags import close_flags, flag, unskip
from annotation_server.tasks.models import Flag, Slot
from annotation_server.tasks.services import claim_next
from tests.server.factories import annotate, make_member, make_project, make_task

pytestmark = pytest.mark.django_db


def test_it_works() -> None:
    project = make_project(dimensions=["physical_shadow"])
    first, second = make_task(project), make_task(project)
    annotator, other = make_member(project), make_member(project)
    (claim,) = next_claims(project, annotator)
    assert claim.task == first

    flag(task=first, person=annotator, reason="image", note=" A is black. ", skip=True)

    said = Flag.objects.get()
    assert (said.reason, said.note, said.skipped, said.closed_at) == ("image", "A is black.", True, None)
    assert Slot.objects.get(task=first).state == "open"  # given back at once
    assert [claim.task for claim in next_claims(project, annotator, 5)] == [second]  # never asked again
    taken = claim_next(project, other)
    assert taken is not None
    assert taken.task == first


def test_a_flag_beside_an_answer_changes_nothing_about_the_task() -> None:
    task = make_task()
    annotator = make_member(task.project)
    (claim,) = next_claims(task.project, annotator)
    flag(task=task, person=annotator, reason="guidelines", note="", skip=False)
    assert [held.slot_id for held in next_claims(task.project, annotator)] == [claim.slot_id]
    assert annotate(task, annotator, "A").standing == "vote"


def test_taken_back_a_skip_is_asked_again() -> None:
    task = make_task()
    annotator = make_member(task.project)
    flag(task=task, person=annotator, reason="unclear", note="", skip=True)
    assert next_claims(task.project, annotator) == []
    assert unskip(task, annotator)
    assert not unskip(task, annotator)
    assert [claim.task for claim in next_claims(task.project, annotator)] == [task]


def test_saying_it_again_changes_what_was_said_and_opens_it_again() -> None:
    task = make_task()
    annotator, reviewer = make_member(task.project), make_member(task.project, Membership.Role.REVIEWER)
    flag(task=task, person=annotator, reason="unclear", note="", skip=False)
    assert close_flags(task, reviewer) == 1
    assert close_flags(task, reviewer) == 0
    closed = Flag.objects.get()
    assert closed.closed_by == reviewer
    assert closed.closed_at is not None

    flag(task=task, person=annotator, reason="image", note="still", skip=False)

    said = Flag.objects.get()
    assert (said.reason, said.note, said.closed_at, said.closed_by) == ("image", "still", None, None)


def test_an_unknown_reason_is_refused() -> None:
    task = make_task()
    with pytest.raises(ValueError, match="'boring' is no reason"):
        flag(task=task, person=make_member(task.project), reason="boring", note="", skip=False)
    assert not Flag.objects.exists()


def test_the_api_takes_them_and_only_reviewers_close_them(client: Client) -> None:
    task = make_task()
    root = f"/api/v1/projects/{task.project.slug}/tasks/{task.pk}"
    client.force_login(make_member(task.project))
    said = client.post(f"{root}/flags", {"reason": "image", "note": "A is black.", "skip": True}, "application/json")
    assert (said.status_code, said.json()["skipped"]) == (201, True)
    assert client.post(f"{root}/flags", {"reason": "boring"}, "application/json").status_code == 422
    assert client.post(f"{root}/flags/close").status_code == 403
    client.force_login(make_member(task.project, Membership.Role.REVIEWER))
    assert client.post(f"{root}/flags/close").json() == {"slots": 1}
