"""Claiming from the queue: one task in one pair of hands at a time, on both databases."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from datetime import timedelta

import pytest
from django.db import close_old_connections, connection
from django.utils import timezone

from annotation_server.annotations.models import Annotation
from annotation_server.annotations.queue import next_claims
from annotation_server.tasks.models import QueueCursor, Slot, Task
from annotation_server.tasks.services import _searches, _take, claim_next, extend_lease, release
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db


def test_it_works() -> None:
    project = make_project()
    _, tasks = make_sample(project)
    annotator = make_member(project)

    claim = claim_next(project, annotator)

    assert claim is not None
    assert claim.task == tasks[0]
    assert claim.expires_at > timezone.now()
    assert Slot.objects.get(pk=claim.slot_id).person == annotator


def test_the_dimensions_of_a_sample_come_in_a_row() -> None:
    project = make_project()
    _, first = make_sample(project)
    _, second = make_sample(project)
    annotator = make_member(project)

    seen = []
    while claim := claim_next(project, annotator):
        seen.append(claim.task)
        annotate(claim.task, annotator, "A")

    assert seen == first + second


def test_higher_priority_comes_first() -> None:
    project = make_project()
    make_task(project)
    urgent = make_task(project)
    Slot.objects.filter(task=urgent).update(priority=1)

    claim = claim_next(project, make_member(project))

    assert claim is not None
    assert claim.task == urgent


def test_asking_again_gives_the_task_already_held() -> None:
    project = make_project()
    make_sample(project)
    annotator = make_member(project)

    (first,), (again,) = next_claims(project, annotator), next_claims(project, annotator)

    assert (first.slot_id, first.lease_token) == (again.slot_id, again.lease_token)


def test_two_people_get_different_tasks_and_then_nothing() -> None:
    project = make_project()
    make_task(project)
    make_task(project)
    claims = [claim_next(project, make_member(project)) for _ in range(3)]

    assert len({claim.task for claim in claims if claim}) == 2
    assert claims[2] is None


def test_nobody_gets_a_task_twice_however_many_votes_it_wants() -> None:
    project = make_project(overlap=3)
    task = make_task(project)
    annotator = make_member(project)
    claim = claim_next(project, annotator)
    assert claim is not None
    annotate(task, annotator, "A")

    assert claim_next(project, annotator) is None
    assert claim_next(project, make_member(project)) is not None


def test_a_lease_is_reissued_the_moment_it_expires() -> None:
    project = make_project()
    make_task(project)
    slow, quick = make_member(project), make_member(project)
    claim = claim_next(project, slow)
    assert claim is not None
    assert claim_next(project, quick) is None

    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(milliseconds=1))
    reissued = claim_next(project, quick)

    assert reissued is not None
    assert reissued.slot_id == claim.slot_id
    assert extend_lease(claim.slot_id, claim.lease_token) is None


def test_an_expired_lease_nobody_took_comes_alive_again() -> None:
    project = make_project()
    make_task(project)
    claim = claim_next(project, make_member(project))
    assert claim is not None
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(hours=1))

    assert extend_lease(claim.slot_id, claim.lease_token) is not None


def test_a_released_task_is_free_at_once() -> None:
    project = make_project()
    make_task(project)
    claim = claim_next(project, make_member(project))
    assert claim is not None

    assert release(claim.slot_id, claim.lease_token)
    assert not release(claim.slot_id, claim.lease_token)
    assert claim_next(project, make_member(project)) is not None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_sixteen_people_at_once_give_exactly_k_votes_each(overlap: int) -> None:
    project = make_project(overlap=overlap)
    tasks = [make_task(project) for _ in range(12)]
    people = [make_member(project) for _ in range(16)]
    errors: list[BaseException] = []

    def work(annotator: object) -> None:
        try:
            while claim := claim_next(project, annotator):  # type: ignore[arg-type]
                annotate(claim.task, annotator, "AB")  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - whatever a thread died of fails the test below
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close_old_connections()

    assert not errors
    votes = Counter(Annotation.objects.filter(standing="vote").values_list("task_id", flat=True))
    assert votes == {task.pk: overlap for task in tasks}
    assert not Annotation.objects.exclude(standing="vote").exists()
    pairs = Annotation.objects.values_list("task_id", "annotator_id")
    assert len(set(pairs)) == len(pairs)
    assert set(Task.objects.values_list("state", flat=True)) == {"resolved"}


@pytest.mark.skipif(
    connection.vendor != "sqlite", reason="PostgreSQL reads a table of one page whole, whatever its indexes"
)
@pytest.mark.parametrize("begun", [False, True], ids=["from the start", "from the cursor"])
def test_claiming_walks_the_queue_index_instead_of_sorting_the_table(begun: bool) -> None:
    project = make_project()
    make_sample(project)
    annotator = make_member(project)
    claim_next(project, annotator)
    cursor = QueueCursor.objects.get()
    if not begun:
        cursor.priority, cursor.position = 2**31 - 1, 0
    now, token = timezone.now(), uuid.uuid4()
    lease = {"person": annotator.pk, "token": token, "now": now, "expires_at": now, "claimed_at": now}
    for search, values in _searches(cursor, False, now):
        plan = _take(search, None).plan(project=project.pk, **lease, **values)
        assert "slot_queue" in plan
        assert "TEMP B-TREE" not in plan
