"""Reading jobs: the newest of an object, and what is still alive."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import QuerySet
from django.utils import timezone

from annotation_server.jobs.models import Job, JobKind


def latest_job(kind: JobKind, object_id: int) -> Job | None:
    """The newest job of an object, whatever became of it."""
    return Job.objects.filter(kind=kind, object_id=object_id).order_by("-pk").first()


def live_jobs(kind: JobKind, object_ids: Iterable[int]) -> QuerySet[Job]:
    """Jobs of these objects that wait or run."""
    return Job.objects.filter(kind=kind, object_id__in=object_ids, state__in=Job.LIVE)


def next_due_job() -> Job | None:
    """The job that a worker could claim now and that has been due longest."""
    due = Job.objects.filter(state=Job.State.QUEUED, due_at__lte=timezone.now())
    return due.order_by("due_at", "pk").first()


def any_live_job() -> bool:
    """Whether any job waits or runs."""
    return Job.objects.filter(state__in=Job.LIVE).exists()


def newest_jobs(number: int) -> QuerySet[Job]:
    """For the administrators' page."""
    return Job.objects.order_by("-pk")[:number]
