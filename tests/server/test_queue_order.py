"""Whatever people do one after the other, everybody gets the first slot that is free for them, or learns there is none.

The reference is the obvious one: read all slots, leave out what the person may not have, sort. Not here: what happens
when they do it at the same moment (test_queue_races.py).
"""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import timedelta

import pytest
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation
from annotation_server.annotations.queue import next_claims
from annotation_server.annotations.services import AnnotationRefused, withdraw
from annotation_server.projects.models import Project
from annotation_server.tasks.flags import flag, unskip
from annotation_server.tasks.models import Flag, QueueCursor, Slot, Task
from annotation_server.tasks.services import MAX_HELD, claim_next, prioritise, release, release_all, reorder_queue
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db


def first_free(project: Project, person: Person) -> int | None:
    """The naive queue."""
    slots = list(Slot.objects.filter(project=project))
    met = {slot.task_id for slot in slots if slot.person_id == person.pk}
    met |= set(Flag.objects.filter(person=person, skipped=True).values_list("task_id", flat=True))
    met |= set(
        Annotation.objects.filter(annotator__person=person, standing="surplus").values_list("task_id", flat=True)
    )
    now = timezone.now()
    free = [
        slot
        for slot in slots
        if (slot.state == "open" or (slot.state == "claimed" and slot.lease_expires_at <= now))  # type: ignore[operator]
        and slot.task_id not in met
    ]
    first = min(free, key=lambda slot: (-slot.priority, slot.position, slot.ordinal), default=None)
    return None if first is None else first.pk


def holds(project: Project, person: Person) -> list[Slot]:
    return list(Slot.objects.filter(project=project, person=person, state="claimed").order_by("claimed_at", "pk"))


def ask(project: Project, person: Person) -> None:
    """Ask for one more than is held, and compare with the reference."""
    before = [slot.pk for slot in holds(project, person)]
    if len(before) == MAX_HELD:
        return
    expected = first_free(project, person)
    got = [claim.slot_id for claim in next_claims(project, person, len(before) + 1)]
    assert got == before + ([] if expected is None else [expected])


def act(dice: random.Random, project: Project, people: list[Person]) -> None:
    person = dice.choice(people)
    mine = holds(project, person)
    tasks = list(Task.objects.filter(project=project).order_by("pk"))
    match dice.choices(
        ("ask", "submit", "late", "release", "leave", "skip", "unskip", "expire", "undo", "import", "first", "reorder"),
        (30, 20, 6, 6, 3, 5, 3, 8, 8, 2, 2, 1),
    )[0]:
        case "ask":
            ask(project, person)
        case "submit" if mine:
            slot = dice.choice(mine)
            annotate(slot.task, person, dice.choice(("A", "B")))
        case "late":
            task = dice.choice(tasks)
            if not Annotation.objects.filter(task=task, annotator__person=person).exists():
                annotate(task, person, "A")
        case "release" if mine:
            slot = dice.choice(mine)
            assert slot.lease_token is not None
            assert release(slot.pk, slot.lease_token)
        case "leave" if mine:
            tokens = [slot.lease_token for slot in mine if slot.lease_token is not None]
            assert release_all(project, person, tokens) == len(mine)
        case "skip" if mine:
            flag(task=dice.choice(mine).task, person=person, reason="unclear", note="", skip=True)
        case "unskip":
            for skipped in Flag.objects.filter(person=person, skipped=True)[:1]:
                assert unskip(skipped.task, person)
        case "expire":
            claimed = list(Slot.objects.filter(project=project, state="claimed").values_list("pk", flat=True))
            past = timezone.now() - timedelta(seconds=1)
            Slot.objects.filter(pk__in=dice.sample(claimed, len(claimed) // 2)).update(lease_expires_at=past)
        case "undo":
            said = Annotation.objects.filter(annotator__person=person).select_related("task").order_by("pk").last()
            if said is not None:
                with suppress(AnnotationRefused):  # somebody acted on it, or it was undone before
                    withdraw(said, person)
        case "import":
            make_sample(project)
        case "first":
            prioritise(project, [task.pk for task in dice.sample(tasks, 2)], dice.randint(-1, 2))
        case "reorder":
            project.queue_order = dice.choice(Project.QueueOrder.values)
            project.save()
            reorder_queue(project)


@pytest.mark.parametrize("seed", range(16))
def test_it_works(seed: int) -> None:
    dice = random.Random(seed)
    project = make_project(
        overlap=dice.randint(1, 3), queue_order=dice.choice(Project.QueueOrder.values), resolution_rule="adjudication"
    )
    for _ in range(3):
        make_sample(project)
    people = [make_member(project) for _ in range(4)]

    for _ in range(120):
        act(dice, project, people)
    for person in people:
        for _ in range(3):
            ask(project, person)


def test_a_lease_that_ran_out_far_ahead_waits_for_its_turn() -> None:
    project = make_project()
    tasks = [make_task(project) for _ in range(5)]
    quick, slow = make_member(project), make_member(project)
    claims = [claim_next(project, quick) for _ in range(4)]
    for claim in claims[:3]:
        assert claim is not None
        assert release(claim.slot_id, claim.lease_token)
    assert (first := claim_next(project, slow)) is not None
    Slot.objects.filter(task=tasks[3]).update(lease_expires_at=timezone.now() - timedelta(seconds=1))

    got = [claim_next(project, slow) for _ in range(4)]

    assert [first.task, *(claim.task for claim in got if claim)] == tasks


def test_who_answered_too_late_is_not_asked_again_when_a_slot_comes_free() -> None:
    project = make_project()
    task = make_task(project)
    late, holder = make_member(project), make_member(project)
    (claim,) = next_claims(project, holder)
    assert annotate(task, late, "A").standing == "surplus"

    assert release(claim.slot_id, claim.lease_token)

    assert next_claims(project, late) == []
    assert len(next_claims(project, holder)) == 1


def test_a_task_given_back_moves_only_the_cursors_of_those_who_may_get_it() -> None:
    project = make_project(overlap=2)
    task = make_task(project)
    make_task(project)
    done, waiting, holder = (make_member(project) for _ in range(3))
    claim_next(project, done)
    annotate(task, done, "A")
    (claim,) = next_claims(project, holder)
    for person in (done, waiting):
        claim_next(project, person)
    places = {cursor.person_id: cursor.position for cursor in QueueCursor.objects.all()}
    assert places[done.pk] == places[waiting.pk] > places[holder.pk]

    release(claim.slot_id, claim.lease_token)

    moved = {cursor.person_id: cursor.position for cursor in QueueCursor.objects.all()}
    assert moved == places | {waiting.pk: places[holder.pk]}
