"""Sixteen people at once, doing all that people do: every task ends with exactly the votes it wants, nothing is lost.

On both databases (.ci/run). Not here: what they get in which order when nobody is in the way (test_queue_order.py).
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation
from annotation_server.annotations.queue import next_claims
from annotation_server.annotations.services import AlreadyAnswered, AnnotationRefused, withdraw
from annotation_server.projects.models import Project
from annotation_server.tasks.flags import flag, unskip
from annotation_server.tasks.models import Slot, Task
from annotation_server.tasks.services import drop_open_slots, prioritise, release, release_all
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db(transaction=True)

PEOPLE = 16


def all_at_once(works: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own, from one moment on; the first error fails the test."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:  # noqa: BLE001 - whatever a thread died of fails the test below
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def assert_settled(project: Project, overlap: int) -> None:
    """Each task has its votes, one a person, each in a slot of its own, and its state says so."""
    tasks = Task.objects.filter(project=project)
    votes = Annotation.objects.filter(task__project=project, standing="vote")
    assert Counter(votes.values_list("task_id", flat=True)) == dict.fromkeys(
        tasks.values_list("pk", flat=True), overlap
    )
    assert len(set(votes.values_list("task_id", "annotator_id"))) == len(votes)
    slots = Slot.objects.filter(project=project)
    assert {slot.pk: (slot.task_id, slot.person_id, slot.state) for slot in slots} == {
        vote.slot_id: (vote.task_id, vote.annotator.person_id, "done") for vote in votes.select_related("annotator")
    }
    assert set(tasks.values_list("state", "asking")) == {("resolved", False)}


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_it_works(overlap: int) -> None:
    project = make_project(overlap=overlap)
    for _ in range(6):
        make_sample(project)
    people = [make_member(project) for _ in range(PEOPLE)]

    def work(person: Person) -> None:
        while claims := next_claims(project, person, 3):
            assert annotate(claims[0].task, person, "A").standing == "vote"

    all_at_once([lambda person=person: work(person) for person in people])  # type: ignore[misc]

    assert_settled(project, overlap)
    assert not Annotation.objects.exclude(standing="vote").exists()


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_with_all_that_people_do(overlap: int) -> None:
    """Leases run out, pages are left, tasks skipped and asked for again, answers undone and sent twice or late."""
    project = make_project(overlap=overlap)
    for _ in range(6):
        make_sample(project)
    people = [make_member(project) for _ in range(PEOPLE)]
    said: list[tuple[int, str]] = []  # every (person, key) the server took

    def answer(person: Person, task: Task, token: uuid.UUID) -> Annotation | None:
        try:
            annotation = annotate(task, person, "A", idempotency_key=str(token))
        except AlreadyAnswered:
            return None
        said.append((person.pk, str(token)))
        return annotation

    def work(person: Person, dice: random.Random) -> None:
        late: list[tuple[Task, uuid.UUID]] = []
        for _ in range(40):
            claims = next_claims(project, person, dice.randint(1, 4))
            if not claims:
                break
            claim = dice.choice(claims)
            match dice.choices(
                ("answer", "twice", "undo", "release", "leave", "skip", "expire", "late", "first"),
                (40, 5, 5, 10, 5, 3, 12, 10, 1),
            )[0]:
                case "answer":
                    answer(person, claim.task, claim.lease_token)
                case "twice":
                    once = answer(person, claim.task, claim.lease_token)
                    assert once == answer(person, claim.task, claim.lease_token)
                case "undo":
                    annotation = answer(person, claim.task, claim.lease_token)
                    try:
                        if annotation is not None:
                            withdraw(annotation, person)
                    except AnnotationRefused:
                        pass  # surplus, or somebody has answered the task since
                case "release":
                    release(claim.slot_id, claim.lease_token)
                case "leave":
                    release_all(project, person, [one.lease_token for one in claims])
                case "skip":
                    flag(task=claim.task, person=person, reason="unclear", note="", skip=True)
                case "expire":
                    past = timezone.now() - timedelta(seconds=1)
                    Slot.objects.filter(pk=claim.slot_id, state="claimed").update(lease_expires_at=past)
                    late.append((claim.task, claim.lease_token))
                case "late" if late:
                    answer(person, *late.pop())
                case "first":
                    prioritise(project, [claim.task.pk], dice.randint(0, 2))
        for task, token in late:
            answer(person, task, token)
        release_all(project, person, [slot.lease_token for slot in Slot.objects.filter(person=person, state="claimed")])  # type: ignore[misc]

    all_at_once([lambda p=p, n=n: work(p, random.Random(n)) for n, p in enumerate(people)])  # type: ignore[misc]
    # Whatever is left, they finish: nothing may be out of everybody's reach.
    for task in Task.objects.filter(project=project):
        for person in people:
            unskip(task, person)

    def finish(person: Person) -> None:
        while claims := next_claims(project, person, 2):
            answer(person, claims[0].task, claims[0].lease_token)

    all_at_once([lambda person=person: finish(person) for person in people])  # type: ignore[misc]
    for person in people:
        finish(person)

    assert_settled(project, overlap)
    kept = set(Annotation.objects.values_list("annotator__person", "idempotency_key"))
    assert kept == set(said)


def test_one_person_in_many_tabs_holds_no_task_twice() -> None:
    project = make_project(overlap=3)
    for _ in range(5):
        make_sample(project)
    person = make_member(project)

    def ask() -> None:
        for _ in range(5):
            next_claims(project, person, 4)

    all_at_once([ask] * 8)

    assert Slot.objects.filter(person=person, state="claimed").count() == 4


def test_people_who_leave_and_people_who_begin_do_not_wait_for_each_other_for_ever() -> None:
    project = make_project()
    for _ in range(8):
        make_sample(project)
    people = [make_member(project) for _ in range(PEOPLE)]

    def come_and_go(person: Person) -> None:
        for _ in range(12):
            claims = next_claims(project, person, 2)
            release_all(project, person, [claim.lease_token for claim in claims])

    all_at_once([lambda person=person: come_and_go(person) for person in people])  # type: ignore[misc]

    assert set(Slot.objects.values_list("state", flat=True)) == {"open"}
    (claim,) = next_claims(project, people[0])
    assert claim.slot_id == Slot.objects.order_by("position").values_list("pk", flat=True)[0]


@pytest.mark.needs_postgresql
def test_a_slot_that_is_just_being_claimed_is_not_dropped() -> None:
    """On SQLite there is one writer at a time."""
    project = make_project()
    task = make_task(project)
    person = make_member(project)
    claimed, dropped = threading.Event(), threading.Event()

    def claim() -> None:
        with transaction.atomic():
            assert len(next_claims(project, person)) == 1
            claimed.set()
            dropped.wait(0.5)

    def drop() -> None:
        claimed.wait(5)
        with transaction.atomic():
            drop_open_slots([task.pk])
        dropped.set()

    all_at_once([claim, drop])

    assert Slot.objects.get().person == person


@pytest.mark.needs_postgresql
def test_a_slot_given_back_while_somebody_claims_past_it_is_theirs_next() -> None:
    project = make_project()
    tasks = [make_task(project) for _ in range(3)]
    slow, quick = make_member(project), make_member(project)
    (first,) = next_claims(project, slow)
    next_claims(project, quick)
    annotate(tasks[1], quick, "A")
    taken = threading.Event()

    def claim() -> None:
        with transaction.atomic():
            assert [claim.task for claim in next_claims(project, quick)] == [tasks[2]]
            taken.set()
            time.sleep(0.3)  # the release comes now, and must wait

    def give_back() -> None:
        taken.wait(5)
        assert release(first.slot_id, first.lease_token)

    all_at_once([claim, give_back])
    make_task(project)

    assert [claim.task for claim in next_claims(project, quick, 2)] == [tasks[2], tasks[0]]
