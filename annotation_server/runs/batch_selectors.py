"""Reading batches: how many of a run's are out and until when, what a worker needs of a chunk's.

Not here: what changes them (batches.py), the endpoint's side (annotation_workers/batches.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, Max, Min, Q, QuerySet, Sum

from annotation_server.runs.models import Attempt, RequestBatch, Run, RunChunk

_UNDER_WAY = Q(state__in=RequestBatch.UNDER_WAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """A run's batches."""

    batches: int
    out: int
    """At the endpoint, or about to be."""
    requests: int
    """In those that are out."""
    answered: int
    """Of them, as the endpoint last said."""
    created_at: datetime | None
    """The oldest that is out."""
    expires_at: datetime | None
    """When the last of them is home at the latest."""
    trouble: str
    """Why one of them does not get on just now."""
    ignored: dict[str, int]
    """Lines of results that were left out, by reason."""

    def __str__(self) -> str:
        """For a terminal."""
        batches = "batch" if self.batches == 1 else "batches"
        if not self.out:
            return f"{self.batches} {batches}, home"
        said = f"{self.out} of {self.batches} {batches} out, {self.answered} of {self.requests} requests answered"
        return said + (f", at the latest {self.expires_at:%Y-%m-%d %H:%M} UTC" if self.expires_at else "")


def batch_progress(run: Run) -> BatchProgress | None:
    """None where a run is asked call by call. As many rows as there are batches, not calls."""
    if not run.batched:
        return None
    batches = RequestBatch.objects.filter(chunk__run=run)
    sums = batches.aggregate(
        batches=Count("pk"),
        out=Count("pk", filter=_UNDER_WAY),
        requests=Sum("requests", filter=_UNDER_WAY),
        answered=Sum("answered", filter=_UNDER_WAY),
        created_at=Min("created_at", filter=_UNDER_WAY),
        expires_at=Max("expires_at", filter=_UNDER_WAY),
    )
    troubled = batches.filter(_UNDER_WAY).exclude(trouble="").order_by("-pk")
    ignored: Counter[str] = Counter()
    for of_batch in batches.exclude(ignored={}).values_list("ignored", flat=True):
        ignored.update(of_batch)
    return BatchProgress(
        batches=sums["batches"],
        out=sums["out"],
        requests=sums["requests"] or 0,
        answered=sums["answered"] or 0,
        created_at=sums["created_at"],
        expires_at=sums["expires_at"],
        trouble=troubled.values_list("trouble", flat=True).first() or "",
        ignored=dict(ignored),
    )


def batches_not_home(chunk: RunChunk) -> list[RequestBatch]:
    """A chunk's batches of which something is still to come, the oldest first."""
    return list(RequestBatch.objects.filter(_UNDER_WAY, chunk=chunk).order_by("pk"))


def attempts_on_their_way(batch: RequestBatch) -> QuerySet[Attempt]:
    """Those of a batch of which nothing is known yet, in the order in which they were written down."""
    return batch.attempts.filter(outcome=Attempt.Outcome.SENT).order_by("pk")


def newest_home(chunk: RunChunk, number: int) -> list[RequestBatch]:
    """A chunk's batches that came home since its run was last started or resumed, the newest first."""
    home = RequestBatch.objects.filter(chunk=chunk, state=RequestBatch.State.HOME)
    since = chunk.run.going_since
    return list((home.filter(home_at__gte=since) if since else home).order_by("-home_at", "-pk")[:number])
