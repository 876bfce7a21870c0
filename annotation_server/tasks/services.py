"""The queue at work: making tasks and slots, claiming under a lease, keeping and giving back a lease, filling a slot.

Nothing here counts rows while claiming. Not here: what an annotation says and settles (annotations/services.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import BooleanField, Exists, OuterRef, Q, QuerySet, Subquery
from django.db.models.expressions import RawSQL
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.projects.models import Project
from annotation_server.samples.models import Sample
from annotation_server.tasks.models import Slot, Task
from trainer.contract.dimensions import DIMENSIONS

_POSITIONS_PER_SAMPLE = 8
_CLAIM_TRIES = 5


@dataclass(frozen=True, slots=True)
class Claim:
    """A task in somebody's hands until `expires_at`; the token proves it."""

    slot_id: int
    task: Task
    lease_token: uuid.UUID
    expires_at: datetime


def create_tasks(
    samples: Sequence[Sample],
    *,
    project: Project,
    candidate_counts: Mapping[int, int],
    dimensions: Mapping[int, Sequence[str]],
) -> list[Task]:
    """Queue new samples: one task per dimension, one slot per wanted vote. Returns the tasks in queue order.

    `candidate_counts` and `dimensions` are keyed by sample id. Slots are ordered so that all dimensions of a sample
    come in a row, samples in the order of their ids.
    """
    order = {dimension.value: place for place, dimension in enumerate(DIMENSIONS)}
    tasks = Task.objects.bulk_create(
        [
            Task(project=project, sample=sample, dimension=dimension, candidate_count=candidate_counts[sample.pk])
            for sample in samples
            for dimension in sorted(dimensions[sample.pk], key=order.__getitem__)
        ],
        batch_size=2000,
    )
    Slot.objects.bulk_create(
        [
            Slot(
                task=task,
                project=project,
                ordinal=ordinal,
                position=task.sample_id * _POSITIONS_PER_SAMPLE + order[task.dimension],
            )
            for task in tasks
            for ordinal in range(project.overlap)
        ],
        batch_size=2000,
    )
    return tasks


def claim_next(project: Project, person: Person) -> Claim | None:
    """The task the person already holds, else the next free one; None when there is nothing left for them.

    One UPDATE with a subquery takes the slot, so that no two people ever hold it: on PostgreSQL the subquery locks the
    row it picks and skips those others are picking; SQLite runs one writer at a time (docs/design.md, decision 3).
    """
    held = _held(project, person).order_by("claimed_at").first()
    if held is not None and held.lease_token is not None:
        expires_at = extend_lease(held.pk, held.lease_token)
        if expires_at is not None:
            return Claim(held.pk, held.task, held.lease_token, expires_at)
    for _ in range(_CLAIM_TRIES):
        token, now = uuid.uuid4(), timezone.now()
        expires_at = now + timedelta(seconds=project.lease_seconds)
        try:
            with transaction.atomic():
                won = Slot.objects.filter(pk=Subquery(_next_free(project, person, now))).update(
                    state=Slot.State.CLAIMED,
                    person=person,
                    lease_token=token,
                    lease_expires_at=expires_at,
                    claimed_at=now,
                )
        except IntegrityError:
            # Another request of the same person has just claimed a slot of the same task: pick again.
            continue
        if not won:
            return None
        slot = _held(project, person).get(lease_token=token)
        return Claim(slot.pk, slot.task, token, expires_at)
    return None


def _held(project: Project, person: Person) -> QuerySet[Slot]:
    return Slot.objects.select_related("task__sample", "task__project").filter(
        person=person, project=project, state=Slot.State.CLAIMED
    )


def _next_free(project: Project, person: Person, now: datetime) -> QuerySet[Slot, int]:
    """The first slot in queue order that nobody holds, on a task the person has no other slot of."""
    another_of_mine = Slot.objects.filter(task=OuterRef("task"), person=person).exclude(pk=OuterRef("pk"))
    return (
        Slot.objects.select_for_update(skip_locked=True, of=("self",))
        .filter(_IN_QUEUE, _free(now), ~Exists(another_of_mine), project=project)
        .order_by("-priority", "position", "ordinal")
        .values_list("pk", flat=True)[:1]
    )


_IN_QUEUE = RawSQL("state IN ('open', 'claimed')", (), output_field=BooleanField())
"""The condition of the index slot_queue in its own words: SQLite uses a partial index only where it meets them."""


def _free(now: datetime) -> Q:
    return Q(state=Slot.State.OPEN) | Q(state=Slot.State.CLAIMED, lease_expires_at__lte=now)


def extend_lease(slot_id: int, lease_token: uuid.UUID) -> datetime | None:
    """Keep a claim alive; its new expiry, or None when somebody else has the slot by now.

    A lease that has expired but was not given to anybody else is simply alive again.
    """
    lease_seconds = Project.objects.filter(slots__pk=slot_id).values_list("lease_seconds", flat=True).first()
    if lease_seconds is None:
        return None
    expires_at = timezone.now() + timedelta(seconds=lease_seconds)
    kept = _claimed(slot_id, lease_token).update(lease_expires_at=expires_at)
    return expires_at if kept else None


def release(slot_id: int, lease_token: uuid.UUID) -> bool:
    """Give a claimed task back to the queue at once. False when the lease was no longer held."""
    return bool(_claimed(slot_id, lease_token).update(**_NOBODY, state=Slot.State.OPEN))


def _claimed(slot_id: int, lease_token: uuid.UUID) -> QuerySet[Slot]:
    return Slot.objects.filter(pk=slot_id, lease_token=lease_token, state=Slot.State.CLAIMED)


_NOBODY = {"person": None, "lease_token": None, "lease_expires_at": None, "claimed_at": None}


def fill_slot(task: Task, person: Person | None, lease_token: uuid.UUID | None) -> int | None:
    """Put a vote into a slot of the task and return the slot's id, or None when no slot is free any more.

    The slot whose lease is `lease_token` is taken if it still is the person's; else any slot nobody holds. Call it in
    the transaction that saves the vote. `person` is None for an import.
    """
    if lease_token is not None:
        mine = Slot.objects.filter(task=task, person=person, lease_token=lease_token, state=Slot.State.CLAIMED)
        slot_id = mine.values_list("pk", flat=True).first()
        if slot_id is not None and mine.update(state=Slot.State.DONE, lease_token=None, lease_expires_at=None):
            return slot_id
    if person is not None:
        # A second claim of the same task by the same person cannot be: it is theirs without the token (another tab).
        own = Slot.objects.filter(task=task, person=person, state=Slot.State.CLAIMED)
        slot_id = own.values_list("pk", flat=True).first()
        if slot_id is not None and own.update(state=Slot.State.DONE, lease_token=None, lease_expires_at=None):
            return slot_id
    now = timezone.now()
    free = Slot.objects.filter(_free(now), task=task).order_by("ordinal")
    for slot_id in free.values_list("pk", flat=True):
        taken = Slot.objects.filter(_free(now), pk=slot_id).update(
            state=Slot.State.DONE, person=person, lease_token=None, lease_expires_at=None, claimed_at=now
        )
        if taken:
            return slot_id
    return None


def has_voted(task: Task, person: Person) -> bool:
    """Whether one of the task's votes is the person's already."""
    return Slot.objects.filter(task=task, person=person, state=Slot.State.DONE).exists()
