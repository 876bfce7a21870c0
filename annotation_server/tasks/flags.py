"""What people say about a task beside an answer (a flag) or instead of one (a skip), taken back and dealt with.

A skip also gives the task back; that nobody is asked again about what they skipped is the queue's search (services.py).
Not here: what managers and reviewers see of them (annotations/selectors.py).
"""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.tasks.models import Flag, Slot, Task
from annotation_server.tasks.services import release, search_anew


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
            search_anew(task.project_id, person)
    return bool(gone)


def close_flags(task: Task, person: Person) -> int:
    """Somebody has dealt with what was said about a task. Returns how many flags that closes."""
    return task.flags.filter(closed_at=None).update(closed_at=timezone.now(), closed_by=person)
