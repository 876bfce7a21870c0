"""Changing batches: writing one down with its attempts, splitting it, and each step that it takes at an endpoint.

Every step is committed before the next is taken: a batch that might have been made is looked for, never made again.
All of these are called in a transaction that the batch's one holder has fenced. Not here: what a call writes
(ledger.py), the endpoint's side of it (annotation_workers/batches.py), reading (batch_selectors.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.utils import timezone

from annotation_server.runs import ledger
from annotation_server.runs.ledger import BudgetReached, Intent, RunStopped
from annotation_server.runs.models import Attempt, RequestBatch, RunChunk

State = RequestBatch.State
_PLACES = Decimal("0.00000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBatch:
    """What an endpoint says of a batch."""

    batch_id: str
    file_id: str
    """Of its requests."""
    key: str
    """The metadata it was made with."""
    status: str
    answered: int
    failed: int
    created_at: datetime
    expires_at: datetime | None
    output_file_id: str
    error_file_id: str
    error_code: str
    """Why the whole of it failed."""
    error: str


def write_down(chunk: RunChunk, intents: Sequence[Intent]) -> RequestBatch | None:
    """A batch of as many of these requests as the budget allows; None where it is held by others on their way.

    Raises RunStopped and BudgetReached as the ledger does.
    """
    batch = RequestBatch.objects.create(chunk=chunk)
    opened = ledger.write(chunk, (), intents, batch=batch)
    if isinstance(opened, RunStopped | BudgetReached):
        raise opened
    granted = [intent.reserve.usd for intent, row in zip(intents, opened, strict=True) if isinstance(row, Attempt)]
    if not granted:
        batch.delete()
        return None
    _save(batch, requests=len(granted), reserved_usd=sum(granted, Decimal(0)))
    return batch


def split(batch: RequestBatch, moved: Sequence[Attempt]) -> None:
    """What the endpoint would not take in one file goes into a batch of its own, with its share of what is held."""
    share = (batch.reserved_usd * len(moved) / batch.requests).quantize(_PLACES)
    other = RequestBatch.objects.create(chunk_id=batch.chunk_id, requests=len(moved), reserved_usd=share)
    Attempt.objects.filter(pk__in=[attempt.pk for attempt in moved]).update(batch=other)
    _save(batch, requests=batch.requests - len(moved), reserved_usd=batch.reserved_usd - share)


def uploaded(batch: RequestBatch, file_id: str) -> None:
    """Its file is at the endpoint; nothing is charged for that."""
    _save(batch, state=State.UPLOADED, file_id=file_id, trouble="")


def about_to_create(batch: RequestBatch) -> None:
    """The endpoint is going to be asked to make it: from now on it may exist."""
    _save(batch, create_asked_at=timezone.now())


def surely_not_created(batch: RequestBatch, trouble: str) -> None:
    """The endpoint refused, or was never reached: it may be asked again without looking."""
    _save(batch, create_asked_at=None, trouble=trouble)


def created(batch: RequestBatch, told: RemoteBatch) -> None:
    """The endpoint has made it."""
    _save(
        batch, state=State.OUT, batch_id=told.batch_id, created_at=told.created_at, looks=0, **_as_told(told)
    )  # fmt: skip


def looked_at(batch: RequestBatch, told: RemoteBatch) -> None:
    """How far it is."""
    _save(batch, looks=batch.looks + 1, **_as_told(told))


def refused_for_now(batch: RequestBatch, trouble: str) -> None:
    """Its queue was full, so the endpoint gave up the whole of it: to be made again from the same file."""
    _save(batch, state=State.UPLOADED, batch_id="", create_asked_at=None, looks=0, trouble=trouble)


def in_trouble(batch: RequestBatch, trouble: str) -> None:
    """Why it does not get on just now."""
    _save(batch, trouble=trouble)


def cancel_asked(batch: RequestBatch) -> None:
    """The endpoint was asked to end it; what it has answered till then will come."""
    _save(batch, cancel_asked_at=timezone.now())


def home(chunk: RunChunk, batch: RequestBatch, ignored: Mapping[str, int]) -> None:
    """Each of its attempts knows what came of it: what was held for them is free."""
    ledger.give_back(chunk, batch.reserved_usd)
    answered = batch.attempts.filter(outcome=Attempt.Outcome.ANSWERED).count()
    _save(
        batch,
        state=State.HOME,
        reserved_usd=Decimal(0),
        answered=answered,
        failed=batch.requests - answered,
        ignored=dict(ignored),
        trouble="",
        home_at=timezone.now(),
    )


def _as_told(told: RemoteBatch) -> dict[str, object]:
    return {
        "status": told.status[:20],
        "answered": told.answered,
        "failed": told.failed,
        "expires_at": told.expires_at,
        "trouble": "",
    }


def _save(batch: RequestBatch, **fields: object) -> None:
    for name, value in fields.items():
        setattr(batch, name, str(value)[:500] if name == "trouble" else value)
    batch.save(update_fields=list(fields))
