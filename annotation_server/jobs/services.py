"""Recording jobs, waking workers for them, and holding one under a lease: every change is one conditional update.

The row decides, the broker only wakes: a message that is lost, late or doubled changes nothing (docs/design.md,
decision 1). Not here: what a job does (annotation_workers/jobs.py), keeping a lease alive meanwhile (working.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.db import IntegrityError, transaction
from django.db.models import Case, F, PositiveIntegerField, Q, QuerySet, Value, When
from django.dispatch import Signal
from django.utils import timezone

from annotation_server.jobs import broker
from annotation_server.jobs.models import Job, JobKind
from annotation_server.prepared import PreparedQuery

LEASE = timedelta(seconds=15)
"""How long a worker that stopped beating keeps its job."""
RESEND_AFTER = timedelta(seconds=10)
"""A job nobody claimed for so long after a worker was woken is sent again; a second claim of it simply fails."""
FIRST_RETRY = timedelta(seconds=2)
LAST_RETRY = timedelta(minutes=5)
_PER_PASS = 500

job_settled = Signal()
"""Sent as job_settled(job=…) in the transaction that makes a job DONE, FAILED or CANCELLED.

So that the app whose work it was learns of the end even where no worker is left to tell: a worker killed once too
often never comes to its own last line.
"""


class LeaseLost(Exception):
    """The job is no longer held: it was cancelled, or taken back after the heartbeat fell silent."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What one pass of the reconciler did."""

    sent: int
    taken_back: int
    given_up: int


def enqueue(kind: JobKind, object_id: int, *, due_at: datetime | None = None) -> Job:
    """Record a job, and wake a worker once the transaction has committed; the reconciler does it where that fails.

    An object has one live job of a kind: enqueueing it again returns that one.
    """
    now = timezone.now()
    due = due_at or now
    at_once = due <= now
    # Looking first is more than a shortcut: inserting beside a live job that is just ending would wait for that end,
    # which may itself wait for a row that the caller has locked.
    live = _live(kind, object_id)
    if live is not None:
        return live
    try:
        with transaction.atomic():
            job = Job.objects.create(kind=kind, object_id=object_id, due_at=due, sent_at=now if at_once else None)
    except IntegrityError:
        # Somebody else enqueued it since. That one may even have ended by now: then ask once more.
        return _live(kind, object_id) or enqueue(kind, object_id, due_at=due_at)
    if at_once:
        transaction.on_commit(partial(_wake, job.pk, kind), robust=True)
    return job


def _live(kind: JobKind, object_id: int) -> Job | None:
    return Job.objects.filter(kind=kind, object_id=object_id, state__in=Job.LIVE).first()


def _wake(job_id: int, kind: JobKind) -> bool:
    if broker.send(kind, job_id):
        return True
    # Not sent: due at the reconciler's next pass, rather than when RESEND_AFTER has gone by.
    Job.objects.filter(pk=job_id, state=Job.State.QUEUED).update(sent_at=None)
    return False


def claim(job_id: int) -> Job | None:
    """Take a queued job that is due; None when somebody else has it, or it has ended."""
    now = timezone.now()
    token = uuid.uuid4()
    won = Job.objects.filter(pk=job_id, state=Job.State.QUEUED, due_at__lte=now).update(
        state=Job.State.RUNNING,
        lease_token=token,
        lease_expires_at=now + LEASE,
        started_at=now,
        tries=F("tries") + 1,
        error="",
    )
    return Job.objects.filter(pk=job_id, lease_token=token).first() if won else None


def beat(job_id: int, token: uuid.UUID) -> bool:
    """Keep the lease for another while; False when it is lost."""
    return bool(_held(job_id, token).update(lease_expires_at=timezone.now() + LEASE))


def fence(job_id: int, token: uuid.UUID) -> None:
    """Call inside a transaction: what it writes is committed only while the job is held. Raises LeaseLost.

    The row stays locked until the commit, so the job cannot be taken back between this check and the write.
    """
    if not _locked(job=job_id, token=token):
        raise LeaseLost(f"job {job_id} was taken back or cancelled")


def progress(job_id: int, token: uuid.UUID, *, done: int, total: int, message: str = "") -> bool:
    """Say how far the job is; False when the lease is lost.

    A job that gets on is not failing: going forward forgets earlier tries, so that only starts in a row which
    achieved nothing count towards max_tries.
    """
    return bool(
        _held(job_id, token).update(
            tries=Case(
                When(progress_done__lt=done, then=Value(1)), default=F("tries"), output_field=PositiveIntegerField()
            ),
            progress_done=done,
            progress_total=total,
            message=message[:500],
        )
    )


def finish(job_id: int, token: uuid.UUID, *, message: str | None = None) -> bool:
    """The job is done; False when the lease was lost before."""
    said = {} if message is None else {"message": message[:500]}
    return _settle(_is_held(job_id, token), job_id, state=Job.State.DONE, **said)


def refuse(job_id: int, token: uuid.UUID, error: str) -> bool:
    """The job cannot be done and trying again would not help: FAILED with one line."""
    return _settle(_is_held(job_id, token), job_id, state=Job.State.FAILED, error=error)


def fail(job_id: int, token: uuid.UUID, error: str) -> bool:
    """This try failed: due again after a pause that doubles, FAILED after max_tries. False when the lease was lost."""
    job = Job.objects.filter(_is_held(job_id, token)).first()
    if job is None:
        return False
    if job.tries >= job.max_tries:
        return refuse(job_id, token, error)
    pause = min(FIRST_RETRY * 2 ** (job.tries - 1), LAST_RETRY)
    return bool(
        _held(job_id, token).update(
            state=Job.State.QUEUED,
            lease_token=None,
            lease_expires_at=None,
            due_at=timezone.now() + pause,
            sent_at=None,
            error=error,
        )
    )


def put_off(job_id: int, token: uuid.UUID, *, seconds: float, message: str | None = None) -> bool:
    """All that can be done for now is done: due again in so long, and no try of it counts. False when the lease was
    lost before."""
    said = {} if message is None else {"message": message[:500]}
    return bool(
        _held(job_id, token).update(
            state=Job.State.QUEUED,
            lease_token=None,
            lease_expires_at=None,
            due_at=timezone.now() + timedelta(seconds=seconds),
            sent_at=None,
            tries=0,
            **said,
        )
    )


def hasten(kind: JobKind, object_ids: Iterable[int]) -> int:
    """Jobs of these objects that wait for their time are due now. Returns how many."""
    now = timezone.now()
    waiting = Job.objects.filter(kind=kind, object_id__in=object_ids, state=Job.State.QUEUED, due_at__gt=now)
    return waiting.update(due_at=now, sent_at=None)


def cancel(job: Job) -> bool:
    """End a live job; a worker that holds it notices within a heartbeat. False when it had ended already."""
    return _settle(Q(pk=job.pk, state__in=Job.LIVE), job.pk, state=Job.State.CANCELLED)


def reconcile() -> Reconciled:
    """One pass: take back jobs whose worker fell silent, and wake a worker for those that wait unclaimed."""
    taken_back, given_up = take_back_silent()
    return Reconciled(sent=_send_waiting(timezone.now()), taken_back=taken_back, given_up=given_up)


def take_back_silent() -> tuple[int, int]:
    """Queue jobs again whose lease ran out, or fail those that are out of tries. Returns how many of each."""
    now = timezone.now()
    taken_back = given_up = 0
    silent = Job.objects.filter(state=Job.State.RUNNING, lease_expires_at__lt=now).order_by("pk")[:_PER_PASS]
    for job in silent:
        # The worker may beat again at this very moment: believe the row, not what was just read.
        still_silent = Q(pk=job.pk, state=Job.State.RUNNING, lease_token=job.lease_token, lease_expires_at__lt=now)
        if job.tries >= job.max_tries:
            error = f"{job.get_kind_display()}: its worker died {job.tries} times in a row"
            given_up += _settle(still_silent, job.pk, state=Job.State.FAILED, error=error)
        else:
            taken_back += Job.objects.filter(still_silent).update(
                state=Job.State.QUEUED, lease_token=None, lease_expires_at=None, due_at=now, sent_at=None
            )
    return taken_back, given_up


def _send_waiting(now: datetime) -> int:
    sent = 0
    unheard = Q(sent_at=None) | Q(sent_at__lt=now - RESEND_AFTER)
    waiting = Job.objects.filter(unheard, state=Job.State.QUEUED, due_at__lte=now).order_by("due_at", "pk")
    for job in waiting[:_PER_PASS]:
        # By condition: of two schedulers, one sends.
        if Job.objects.filter(pk=job.pk, state=Job.State.QUEUED, sent_at=job.sent_at).update(sent_at=now):
            if not _wake(job.pk, JobKind(job.kind)):
                break  # the broker is away: the next pass tries again, rather than this one 500 times
            sent += 1
    return sent


def _settle(condition: Q, job_id: int, **fields: object) -> bool:
    with transaction.atomic():
        won = Job.objects.filter(condition).update(
            lease_token=None, lease_expires_at=None, finished_at=timezone.now(), **fields
        )
        if won:
            job_settled.send(sender=Job, job=Job.objects.get(pk=job_id))
    return bool(won)


def _is_held(job_id: int, token: uuid.UUID) -> Q:
    return Q(pk=job_id, lease_token=token, state=Job.State.RUNNING)


def _held(job_id: int, token: uuid.UUID) -> QuerySet[Job]:
    return Job.objects.filter(_is_held(job_id, token))


_locked = PreparedQuery(
    lambda p: Job.objects.select_for_update().filter(_is_held(p("job"), p("token"))).values_list("pk", flat=True)
)
