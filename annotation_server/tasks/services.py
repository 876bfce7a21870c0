"""The queue at work: making tasks and slots, claiming under a lease, keeping and giving back a lease, filling a slot.

Nothing here counts rows while claiming, and no claim walks past what the person has already done: it begins at their
cursor. Not here: skips and flags (flags.py), what an annotation says and settles (annotations/services.py), gold
(annotations/queue.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.db import IntegrityError, connection, transaction
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
from annotation_server.prepared import Param, Params, PreparedQuery, PreparedUpdate
from annotation_server.projects.models import Project
from annotation_server.samples.models import Sample
from annotation_server.tasks.models import Flag, QueueCursor, Slot, Task
from trainer.contract.dimensions import DIMENSIONS

MAX_HELD = 8
"""Most tasks one person holds at a time: those being shown and prepared on their page."""

_TRIES = 8
_LOOK_AGAIN = timedelta(minutes=1)
"""How soon somebody who got nothing has the whole queue walked for them again."""

_POSITIONS_PER_SAMPLE = 8
_POSITIONS_PER_DIMENSION = 1 << 48
_ORDER = {dimension.value: place for place, dimension in enumerate(DIMENSIONS)}


Unless = Callable[[Params], Exists]


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
        # Claims under way are not waited for (they would wait for the import in turn): one that moves on to the next
        # dimension at this moment finds these late.
        cursors = QueueCursor.objects.filter(project=project)
        _move_cursors_back(cursors, priority, min(slot.position for slot in slots))
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
        _lock_cursors(project.pk)
        Slot.objects.filter(_IN_QUEUE, project=project).update(position=Subquery(of_task))
        QueueCursor.objects.filter(project=project).update(**_AT_THE_START)


def prioritise(project: Project, task_ids: Sequence[int], priority: int) -> int:
    """Put what is still to be done of these tasks at a priority; higher comes first. Returns how many slots moved."""
    with transaction.atomic():
        _lock_cursors(project.pk)
        moved = Slot.objects.filter(_IN_QUEUE, project=project, task__in=task_ids).update(priority=priority)
        QueueCursor.objects.filter(project=project).update(**_AT_THE_START)
    return moved


def claims_of(
    project: Project, person: Person, count: int, *, at_least: int = 0, unless: Unless | None = None
) -> tuple[list[Claim], list[Claim]]:
    """What the person holds, the oldest first, every lease renewed; then free tasks in queue order, up to `count` in
    all but `at_least` that many. `unless` says of a slot that they are not to get it, beside those of tasks they met,
    in terms of ``p("person")``; it is one of a few functions, each of which gets SQL of its own.

    A lease of theirs that ran out and that nobody took is theirs again.
    """
    for _ in range(_TRIES):
        try:
            with transaction.atomic():
                found = _locked_cursor(project, person)
                if found is not None:
                    return _renew_and_take(project, person, *found, count, at_least, unless)
        except IntegrityError:
            # Another request of the same person has just got a slot of the same task: look again, and see it.
            continue
        # Committed before the search that begins at it: whoever frees a slot from now on sees and moves it.
        QueueCursor.objects.bulk_create(
            [QueueCursor(project=project, person=person, **_AT_THE_START)], ignore_conflicts=True
        )
    raise RuntimeError(f"{person} could not claim in {_TRIES} tries")


def claim_next(project: Project, person: Person) -> Claim | None:
    """The next free task in queue order, beside what the person holds; None when there is nothing for them."""
    _, taken = claims_of(project, person, 0, at_least=1)
    return taken[0] if taken else None


def _locked_cursor(project: Project, person: Person) -> tuple[QueueCursor, bool] | None:
    """The person's cursor, theirs alone until the transaction ends; and whether the project has leases that ran out."""
    cursor = _cursor_with_expired.first(project=project.pk, person=person.pk, now=timezone.now())
    return None if cursor is None else (cursor, cursor.expired)


@PreparedQuery
def _cursor_with_expired(p: Params) -> QuerySet[Any, Any]:
    ran_out = Slot.objects.filter(state=Slot.State.CLAIMED, lease_expires_at__lte=p("now"))
    expired = ran_out.filter(project=p("project"), ordinal__lt=Slot.EXTRA)
    mine = QueueCursor.objects.filter(project=p("project"), person=p("person")).annotate(expired=Exists(expired))
    return mine.select_for_update(of=("self",))


def _renew_and_take(
    project: Project,
    person: Person,
    cursor: QueueCursor,
    expired: bool,
    count: int,
    at_least: int,
    unless: Unless | None,
) -> tuple[list[Claim], list[Claim]]:
    now = timezone.now()
    expires_at = now + timedelta(seconds=project.lease_seconds)
    holding = _renew(project=project.pk, person=person.pk, expires_at=expires_at)
    wanted = max(count - holding, at_least)
    taken: set[uuid.UUID] = set()
    for number in range(wanted):
        # Apart, so that gold can be said to have been claimed between them (claim_extra); less than a claim takes, so
        # that what is claimed next was claimed later.
        claimed_at = now + timedelta(microseconds=20 * number)
        token = _take_first(project, person, _searches(cursor, expired, now), unless, now, claimed_at)
        if token is None:
            break
        taken.add(token)
    slots = _held_in_order(project=project.pk, person=person.pk)
    if wanted > 0:
        _keep_cursor(cursor, slots, now, empty=len(taken) < wanted)
    for slot in slots:
        slot.task.project = project  # read once for all of them: it is wide
    claims = [_claim(slot, slot.lease_expires_at) for slot in slots]
    return [one for one in claims if one.lease_token not in taken], [one for one in claims if one.lease_token in taken]


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


def _take_first(
    project: Project,
    person: Person,
    searches: Iterator[tuple[_Search, Mapping[str, object]]],
    unless: Unless | None,
    now: datetime,
    claimed_at: datetime,
) -> uuid.UUID | None:
    """Claim the first slot that is free for the person, wherever a search finds one; its token."""
    token = uuid.uuid4()
    for search, values in searches:
        won = _take(search, unless)(
            **values,
            project=project.pk,
            person=person.pk,
            now=now,
            token=token,
            expires_at=now + timedelta(seconds=project.lease_seconds),
            claimed_at=claimed_at,
        )
        if won:
            return token
    return None


_Search = Callable[[Params], QuerySet[Slot]]
"""Which slots to look among, in terms of the values it is asked with."""


def _searches(cursor: QueueCursor, expired: bool, now: datetime) -> Iterator[tuple[_Search, Mapping[str, object]]]:
    """Where to look, in order: leases that ran out before the cursor, from the cursor on, then everything once.

    The last finds what was passed over while another transaction, which then came to nothing, had its row: rare, late,
    never lost. Who got nothing from it asks for it again only after a while: it walks the whole queue.
    """
    at = {"priority": cursor.priority, "position": cursor.position}
    if expired:
        yield _expired_before, at
    yield _from_here, at
    yield _of_lower_priority, {"priority": cursor.priority}
    if cursor.empty_until is None or cursor.empty_until <= now:
        yield _anywhere, {}


def _expired_before(p: Params) -> QuerySet[Slot]:
    before = Q(priority__gt=p("priority")) | Q(priority=p("priority"), position__lt=p("position"))
    return Slot.objects.filter(before, state=Slot.State.CLAIMED, lease_expires_at__lte=p("now"))


def _from_here(p: Params) -> QuerySet[Slot]:
    return Slot.objects.filter(_IN_QUEUE, priority=p("priority"), position__gte=p("position"))


def _of_lower_priority(p: Params) -> QuerySet[Slot]:
    return Slot.objects.filter(_IN_QUEUE, priority__lt=p("priority"))


def _anywhere(p: Params) -> QuerySet[Slot]:
    return Slot.objects.filter(_IN_QUEUE)


@cache
def _take(search: _Search, unless: Unless | None) -> PreparedUpdate:
    """Claim the first slot in queue order that nobody holds, on a task the person neither has a slot of nor skipped.

    One UPDATE with a subquery takes the slot, so that no two people ever hold it. On SQLite there is one writer at a
    time. On PostgreSQL the subquery runs once, before the update (it depends on nothing in it): it skips rows that
    others are taking, locks the newest version of the one it picks and checks its conditions on that version, so that
    the update, which follows the key alone, meets the very row that was checked (docs/design.md, decision 3).
    """

    def build(p: Params) -> tuple[QuerySet[Slot], dict[str, Any]]:
        mine = Slot.objects.filter(task=OuterRef("task"), person=p("person")).exclude(pk=OuterRef("pk"))
        skipped = Flag.objects.filter(task=OuterRef("task"), person=p("person"), skipped=True)
        met = [~Exists(mine), ~Exists(skipped), *([] if unless is None else [~unless(p)])]
        first = (
            search(p)
            .select_for_update(skip_locked=True, of=("self",))
            .filter(_free(p("now")), *met, project=p("project"), ordinal__lt=Slot.EXTRA)
            .order_by("-priority", "position", "ordinal")
            .values_list("pk", flat=True)[:1]
        )
        return Slot.objects.filter(pk=Subquery(first)), {
            "state": Slot.State.CLAIMED,
            "person": p("person"),
            "lease_token": p("token"),
            "lease_expires_at": p("expires_at"),
            "claimed_at": p("claimed_at"),
        }

    return PreparedUpdate(build)


_IN_QUEUE = RawSQL("state IN ('open', 'claimed')", (), output_field=BooleanField())
"""The condition of the index slot_queue in its own words: SQLite uses a partial index only where it meets them."""


def _held(project: Project | Any, person: Person | Any) -> QuerySet[Slot]:
    return _with_task(Slot.objects.filter(person=person, project=project, state=Slot.State.CLAIMED))


_renew = PreparedUpdate(
    lambda p: (
        Slot.objects.filter(person=p("person"), project=p("project"), state=Slot.State.CLAIMED),
        {"lease_expires_at": p("expires_at")},
    )
)
_held_in_order = PreparedQuery(lambda p: _held(p("project"), p("person")).order_by("claimed_at", "pk"))


def _with_task(slots: QuerySet[Slot]) -> QuerySet[Slot]:
    return slots.select_related("task__sample__original")


def _free(now: datetime | Param) -> Q:
    return Q(state=Slot.State.OPEN) | Q(state=Slot.State.CLAIMED, lease_expires_at__lte=now)


_AT_THE_START = {"priority": 2**31 - 1, "position": 0}
_AT_THE_END = {"priority": -(2**31), "position": 2**63 - 1}


def _keep_cursor(cursor: QueueCursor, holding: Sequence[Slot], now: datetime, *, empty: bool) -> None:
    """Move the person's cursor to the first of what they hold, after a search: nothing before it is free for them.

    Not past what they hold: should they lose its lease, the task's other slots are free for them. `empty`: there was
    nothing more for them, in the whole queue where it was looked through.
    """
    first = min(holding, key=lambda slot: (-slot.priority, slot.position), default=None)
    at = _AT_THE_END if first is None else {"priority": first.priority, "position": first.position}
    looked_through = cursor.empty_until is None or cursor.empty_until <= now
    empty_until = None if not empty else now + _LOOK_AGAIN if looked_through else cursor.empty_until
    if (cursor.priority, cursor.position, cursor.empty_until) != (at["priority"], at["position"], empty_until):
        _move_cursor(cursor=cursor.pk, **at, empty_until=empty_until)


_move_cursor = PreparedUpdate(
    lambda p: (
        QueueCursor.objects.filter(pk=p("cursor")),
        {name: p(name) for name in ("priority", "position", "empty_until")},
    )
)


def _lock_cursors(project_id: int) -> None:
    """Let claims under way end first and later ones wait, so that none moves its cursor past what becomes free.

    Always before a lock on tasks or slots and in one order, so that no two transactions wait for each other. Nothing to
    do where there is one writer at a time.
    """
    if connection.features.has_select_for_update:
        list(QueueCursor.objects.select_for_update().filter(project=project_id).order_by("pk").values_list("pk"))


def _move_cursors_back(cursors: QuerySet[QueueCursor], priority: int, position: int) -> None:
    """A slot at this place is free again, or new: those of whom it may be one and who search behind it begin there."""
    behind = Q(priority__lt=priority) | Q(priority=priority, position__gt=position)
    cursors.filter(behind).update(priority=priority, position=position)


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
    return _release(_claimed(slot_id, lease_token)) > 0


def release_all(project: Project, person: Person, lease_tokens: Sequence[uuid.UUID]) -> int:
    """Give back what the person holds under these tokens. Returns how many tasks that were."""
    return _release(_held(project, person).filter(lease_token__in=lease_tokens))


def _release(claimed: QuerySet[Slot]) -> int:
    claimed = claimed.select_related(None).order_by("pk")
    with transaction.atomic():
        for project_id in set(claimed.order_by().values_list("project_id", flat=True)):
            _lock_cursors(project_id)
        slots = list(claimed.select_for_update())
        Slot.objects.filter(pk__in=[slot.pk for slot in slots if slot.ordinal >= Slot.EXTRA]).delete()
        wanted = [slot for slot in slots if slot.ordinal < Slot.EXTRA]
        Slot.objects.filter(pk__in=[slot.pk for slot in wanted]).update(**_NOBODY, state=Slot.State.OPEN)
        for slot in wanted:
            met = Slot.objects.filter(task=slot.task_id, person=OuterRef("person"))
            skipped = Flag.objects.filter(task=slot.task_id, person=OuterRef("person"), skipped=True)
            asked = QueueCursor.objects.filter(~Exists(met), ~Exists(skipped), project=slot.project_id)
            _move_cursors_back(asked, slot.priority, slot.position)
    return len(slots)


def reopen(slot_id: int, person: Person) -> Claim:
    """Take the vote out of a filled slot and put the task back into the hands of who gave it. Call it in the
    transaction that takes back the vote, after `lock_cursor`.

    It counts as claimed when it was, so that it comes before what they claimed ahead since.
    """
    slot = _with_task(Slot.objects.all()).get(pk=slot_id)
    slot.state, slot.person, slot.lease_token = Slot.State.CLAIMED, person, uuid.uuid4()
    slot.lease_expires_at = timezone.now() + timedelta(seconds=slot.task.project.lease_seconds)
    slot.save(update_fields=["state", "person", "lease_token", "lease_expires_at"])
    mine = QueueCursor.objects.filter(project=slot.project_id, person=person)
    _move_cursors_back(mine, slot.priority, slot.position)
    return _claim(slot, slot.lease_expires_at)


def search_anew(project_id: int, person: Person) -> None:
    """Let the person's search begin at the front: something that was passed over may be theirs again."""
    QueueCursor.objects.filter(project=project_id, person=person).update(**_AT_THE_START)


def lock_cursor(project_id: int, person: Person) -> None:
    """Let the person's own claims wait until the transaction ends: before the locks it takes on tasks and slots."""
    if connection.features.has_select_for_update:
        mine = QueueCursor.objects.select_for_update().filter(project=project_id, person=person)
        list(mine.values_list("pk"))


def drop_open_slots(task_ids: Sequence[int]) -> None:
    """No more votes are wanted on these tasks. What is held or done stays, and so does what is being claimed."""
    with transaction.atomic():
        # Locked first: a delete works by key, and would not see that a slot has been claimed since it was chosen.
        open_now = Slot.objects.select_for_update(skip_locked=True).filter(task__in=task_ids, state=Slot.State.OPEN)
        Slot.objects.filter(pk__in=list(open_now.values_list("pk", flat=True))).delete()


def _claimed(slot_id: int, lease_token: uuid.UUID) -> QuerySet[Slot]:
    return Slot.objects.filter(pk=slot_id, lease_token=lease_token, state=Slot.State.CLAIMED)


_NOBODY = {"person": None, "lease_token": None, "lease_expires_at": None, "claimed_at": None}


def fill_slot(task: Task, person: Person | None) -> int | None:
    """Put a vote into a slot of the task and return the slot's id, or None when no slot is free any more.

    The slot that the person holds is taken, whichever tab claimed it, else any that nobody holds. Call it in the
    transaction that saves the vote, with the task locked. `person` is None for an import. Raises SlotFilled when one of
    the task's votes is the person's already.
    """
    slots = _slots_of(task=task.pk)
    if person is not None:
        mine = [slot for slot in slots if slot.person_id == person.pk]
        if any(slot.state == Slot.State.DONE for slot in mine):
            raise SlotFilled
        for slot in mine:
            if _fill_held(slot=slot.pk, person=person.pk):
                return slot.pk
    now = timezone.now()
    for slot in slots:
        if slot.ordinal >= Slot.EXTRA:
            break  # somebody's check, not a wanted vote
        if slot.state == Slot.State.OPEN or (slot.lease_expires_at is not None and slot.lease_expires_at <= now):
            free = Slot.objects.filter(_free(now), pk=slot.pk)
            if free.update(**_FILLED, person=person, claimed_at=now):
                return slot.pk
    return None


_FILLED = {"state": Slot.State.DONE, "lease_token": None, "lease_expires_at": None}
_fill_held = PreparedUpdate(
    lambda p: (Slot.objects.filter(pk=p("slot"), person=p("person"), state=Slot.State.CLAIMED), _FILLED)
)
_slots_of = PreparedQuery(lambda p: Slot.objects.filter(task=p("task")).order_by("ordinal"))


class SlotFilled(Exception):
    """One of the task's votes is the person's already."""
