"""The queue at work: making tasks and slots, claiming under a lease, keeping and giving back a lease, filling a slot.

Nothing here counts rows while claiming, and no claim walks past what the person has already done: it begins at their
cursor. Not here: what an annotation says and settles (annotations/services.py), gold (annotations/queue.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import (
    BigIntegerField,
    BooleanField,
    Case,
    Exists,
    F,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
    When,
)
from django.db.models.expressions import RawSQL
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.projects.models import Project
from annotation_server.samples.models import Sample
from annotation_server.tasks.models import Flag, QueueCursor, Slot, Task
from trainer.contract.dimensions import DIMENSIONS

MAX_HELD = 8
"""Most tasks one person holds at a time: those being shown and prepared on their page."""

_POSITIONS_PER_SAMPLE = 8
_POSITIONS_PER_DIMENSION = 1 << 48
_CLAIM_TRIES = 5
_ORDER = {dimension.value: place for place, dimension in enumerate(DIMENSIONS)}


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
    priority: int = 0,
) -> list[Task]:
    """Queue new samples: one task per dimension, one slot per wanted vote. Returns the tasks by sample.

    `candidate_counts` and `dimensions` are keyed by sample id. The project's queue order decides the slots' positions,
    samples by their ids.
    """
    tasks = Task.objects.bulk_create(
        [
            Task(project=project, sample=sample, dimension=dimension, candidate_count=candidate_counts[sample.pk])
            for sample in samples
            for dimension in sorted(dimensions[sample.pk], key=_ORDER.__getitem__)
        ],
        batch_size=2000,
    )
    slots = [
        Slot(task=task, project=project, ordinal=ordinal, priority=priority, position=_position(project, task))
        for task in tasks
        for ordinal in range(project.overlap)
    ]
    Slot.objects.bulk_create(slots, batch_size=2000)
    if slots:
        _move_cursors_back(project.pk, priority, min(slot.position for slot in slots))
    return tasks


def _position(project: Project, task: Task) -> int:
    place = _ORDER[task.dimension]
    if project.queue_order == Project.QueueOrder.DIMENSION:
        return place * _POSITIONS_PER_DIMENSION + task.sample_id
    return task.sample_id * _POSITIONS_PER_SAMPLE + place


def reorder_queue(project: Project) -> None:
    """Give what is still to be done the positions of the project's queue order, after a change of it."""
    place = Case(*(When(dimension=name, then=Value(place)) for name, place in _ORDER.items()))
    if project.queue_order == Project.QueueOrder.DIMENSION:
        position = place * Value(_POSITIONS_PER_DIMENSION, output_field=BigIntegerField()) + F("sample_id")
    else:
        position = F("sample_id") * _POSITIONS_PER_SAMPLE + place
    of_task = Task.objects.filter(pk=OuterRef("task")).values_list(position)
    with transaction.atomic():
        Slot.objects.filter(_IN_QUEUE, project=project).update(position=Subquery(of_task))
        QueueCursor.objects.filter(project=project).delete()


def prioritise(project: Project, task_ids: Sequence[int], priority: int) -> int:
    """Put what is still to be done of these tasks at a priority; higher comes first. Returns how many slots moved."""
    with transaction.atomic():
        moved = Slot.objects.filter(_IN_QUEUE, project=project, task__in=task_ids).update(priority=priority)
        QueueCursor.objects.filter(project=project).delete()
    return moved


def held(project: Project, person: Person) -> list[Claim]:
    """What the person holds, the oldest first, every lease renewed. One that ran out and that nobody took is theirs."""
    slots = list(_held(project, person).order_by("claimed_at", "pk"))
    if not slots:
        return []
    expires_at = timezone.now() + timedelta(seconds=project.lease_seconds)
    _held(project, person).filter(pk__in=[slot.pk for slot in slots]).update(lease_expires_at=expires_at)
    # Between the two statements a lease that had run out may have gone to somebody else: read what is left.
    kept = set(_held(project, person).values_list("pk", "lease_token"))
    return [_claim(slot, expires_at) for slot in slots if (slot.pk, slot.lease_token) in kept]


def claim_next(project: Project, person: Person) -> Claim | None:
    """The next free task in queue order, beside what the person holds; None when there is nothing for them.

    One UPDATE with a subquery takes the slot, so that no two people ever hold it: on PostgreSQL the subquery locks the
    row it picks and skips those others are picking; SQLite runs one writer at a time (docs/design.md, decision 3).
    """
    for _ in range(_CLAIM_TRIES):
        try:
            with transaction.atomic():
                slot = _take_first(project, person)
                if slot is not None:
                    _keep_cursor(slot, person)
        except IntegrityError:
            # Another request of the same person has just claimed a slot of the same task: pick again.
            continue
        return None if slot is None else _claim(slot, slot.lease_expires_at)
    return None


def claim_extra(task: Task, person: Person, *, before: int, earlier: timedelta) -> Claim | None:
    """A slot beyond the wanted votes, for this person alone: a check by gold. None when they have one of the task.

    It takes the place of slot `before`, which the person has just claimed, and counts as claimed `earlier` than that:
    nothing about the queue gives it away.
    """
    after = Slot.objects.get(pk=before)
    last = Slot.objects.filter(task=task).aggregate(last=Max("ordinal"))["last"]
    try:
        with transaction.atomic():
            slot = Slot.objects.create(
                task=task,
                project_id=task.project_id,
                ordinal=Slot.EXTRA if last is None else max(Slot.EXTRA, last + 1),
                priority=after.priority,
                position=after.position,
                state=Slot.State.CLAIMED,
                person=person,
                lease_token=uuid.uuid4(),
                lease_expires_at=after.lease_expires_at,
                claimed_at=(after.claimed_at or timezone.now()) - earlier,
            )
    except IntegrityError:
        return None
    return _claim(slot, slot.lease_expires_at)


def _claim(slot: Slot, expires_at: datetime | None) -> Claim:
    if slot.lease_token is None or expires_at is None:
        raise ValueError(f"slot {slot.pk} is not claimed")
    return Claim(slot.pk, slot.task, slot.lease_token, expires_at)


def _take_first(project: Project, person: Person) -> Slot | None:
    """Claim the first slot that is free for the person, wherever the search finds one."""
    now, token = timezone.now(), uuid.uuid4()
    for candidates in _searches(project, person, now):
        won = Slot.objects.filter(pk=Subquery(candidates)).update(
            state=Slot.State.CLAIMED,
            person=person,
            lease_token=token,
            lease_expires_at=now + timedelta(seconds=project.lease_seconds),
            claimed_at=now,
        )
        if won:
            return _held(project, person).get(lease_token=token)
    return None


def _searches(project: Project, person: Person, now: datetime) -> Iterator[QuerySet[Slot, int]]:
    """Where to look, in order: leases that ran out, from the cursor on, then everything once.

    The last finds what came free before the cursor while the cursor was being moved: rare, late, never lost.
    """
    cursor = QueueCursor.objects.filter(project=project, person=person).first()
    if cursor is not None:
        expired = Slot.objects.filter(state=Slot.State.CLAIMED, lease_expires_at__lte=now, ordinal__lt=Slot.EXTRA)
        if expired.filter(project=project).exists():
            yield _first_free(expired, project, person, now)
        at_once = Slot.objects.filter(_IN_QUEUE)
        yield _first_free(at_once.filter(priority=cursor.priority, position__gte=cursor.position), project, person, now)
        yield _first_free(at_once.filter(priority__lt=cursor.priority), project, person, now)
    yield _first_free(Slot.objects.filter(_IN_QUEUE), project, person, now)


def _first_free(among: QuerySet[Slot], project: Project, person: Person, now: datetime) -> QuerySet[Slot, int]:
    """The first slot in queue order that nobody holds, on a task the person neither has a slot of nor skipped."""
    mine = Slot.objects.filter(task=OuterRef("task"), person=person).exclude(pk=OuterRef("pk"))
    skipped = Flag.objects.filter(task=OuterRef("task"), person=person, skipped=True)
    return (
        among.select_for_update(skip_locked=True, of=("self",))
        .filter(_free(now), ~Exists(mine), ~Exists(skipped), project=project, ordinal__lt=Slot.EXTRA)
        .order_by("-priority", "position", "ordinal")
        .values_list("pk", flat=True)[:1]
    )


_IN_QUEUE = RawSQL("state IN ('open', 'claimed')", (), output_field=BooleanField())
"""The condition of the index slot_queue in its own words: SQLite uses a partial index only where it meets them."""


def _held(project: Project, person: Person) -> QuerySet[Slot]:
    return Slot.objects.select_related("task__sample__original", "task__project").filter(
        person=person, project=project, state=Slot.State.CLAIMED
    )


def _free(now: datetime) -> Q:
    return Q(state=Slot.State.OPEN) | Q(state=Slot.State.CLAIMED, lease_expires_at__lte=now)


def _keep_cursor(slot: Slot, person: Person) -> None:
    at = {"priority": slot.priority, "position": slot.position}
    mine = QueueCursor.objects.filter(project=slot.project_id, person=person)
    if not mine.update(**at):
        QueueCursor.objects.bulk_create(
            [QueueCursor(project_id=slot.project_id, person=person, **at)], ignore_conflicts=True
        )


def _move_cursors_back(project_id: int, priority: int, position: int) -> None:
    """A slot at this place is free again, or new: whoever searches behind it must begin there."""
    behind = Q(priority__lt=priority) | Q(priority=priority, position__gt=position)
    QueueCursor.objects.filter(behind, project=project_id).update(priority=priority, position=position)


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
    with transaction.atomic():
        slot = _claimed(slot_id, lease_token).select_for_update().first()
        if slot is None:
            return False
        if slot.ordinal >= Slot.EXTRA:
            slot.delete()
        else:
            _claimed(slot_id, lease_token).update(**_NOBODY, state=Slot.State.OPEN)
            _move_cursors_back(slot.project_id, slot.priority, slot.position)
    return True


def release_all(project: Project, person: Person, lease_tokens: Sequence[uuid.UUID]) -> int:
    """Give back what the person holds under these tokens. Returns how many tasks that were."""
    mine = _held(project, person).filter(lease_token__in=lease_tokens).values_list("pk", "lease_token")
    return sum(release(slot_id, token) for slot_id, token in mine if token is not None)


def reopen(slot_id: int, person: Person) -> Claim:
    """Take the vote out of a filled slot and put the task back into the hands of who gave it.

    It counts as claimed when it was, so that it comes before what they claimed ahead since.
    """
    slot = Slot.objects.select_related("task__sample__original", "task__project").get(pk=slot_id)
    slot.state, slot.person, slot.lease_token = Slot.State.CLAIMED, person, uuid.uuid4()
    slot.lease_expires_at = timezone.now() + timedelta(seconds=slot.task.project.lease_seconds)
    slot.save(update_fields=["state", "person", "lease_token", "lease_expires_at"])
    _move_cursors_back(slot.project_id, slot.priority, slot.position)
    return _claim(slot, slot.lease_expires_at)


def drop_open_slots(task_ids: Sequence[int]) -> None:
    """No more votes are wanted on these tasks. What is held or done stays."""
    Slot.objects.filter(task__in=task_ids, state=Slot.State.OPEN).delete()


def flag(*, task: Task, person: Person, reason: str, note: str, skip: bool) -> Flag:
    """Say that something is wrong with a task; with `skip` also give it back, never to be asked again.

    Saying it again changes what was said. ValueError for a reason that is not one of Flag.Reason.
    """
    if reason not in Flag.Reason.values:
        raise ValueError(f"{reason!r} is no reason: expected one of {', '.join(Flag.Reason.values)}")
    with transaction.atomic():
        said, _created = Flag.objects.update_or_create(
            task=task,
            person=person,
            skipped=skip,
            defaults={"reason": reason, "note": note.strip()[:500], "closed_at": None, "closed_by": None},
        )
        if skip:
            mine = Slot.objects.filter(task=task, person=person, state=Slot.State.CLAIMED).first()
            if mine is not None and mine.lease_token is not None:
                release(mine.pk, mine.lease_token)
    return said


def unskip(task: Task, person: Person) -> bool:
    """Ask the person again after all; False when they had not skipped it."""
    with transaction.atomic():
        gone, _ = Flag.objects.filter(task=task, person=person, skipped=True).delete()
        if gone:
            QueueCursor.objects.filter(project=task.project_id, person=person).delete()
    return bool(gone)


def close_flags(task: Task, person: Person) -> int:
    """Somebody has dealt with what was said about a task. Returns how many flags that closes."""
    return task.flags.filter(closed_at=None).update(closed_at=timezone.now(), closed_by=person)


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
    free = Slot.objects.filter(_free(now), task=task, ordinal__lt=Slot.EXTRA).order_by("ordinal")
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
