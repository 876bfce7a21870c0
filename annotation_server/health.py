"""What a machine asks: is the process up (/healthz), can it work (/readyz), how much work waits (/metrics).

Counts and states only: none of it needs a sign-in, and none of it names a person, a project or an address.
"""

import logging

from django.db import Error as DatabaseError
from django.db import connection
from django.db.migrations.exceptions import MigrationSchemaMissing
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, Min
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from annotation_server.jobs.broker import broker_error
from annotation_server.jobs.models import Job

logger = logging.getLogger(__name__)


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok", content_type="text/plain")


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """One word per part; the reasons, which may hold addresses, go to the log."""
    parts = {
        "database": database_state(),
        "migrations": migrations_state(),
        "broker": broker_state(),
    }
    return JsonResponse(parts, status=200 if set(parts.values()) == {"ok"} else 503)


def database_state() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        logger.warning("Not ready: the database does not answer: %s", error)
        return "down"
    return "ok"


def migrations_state() -> str:
    try:
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except (DatabaseError, MigrationSchemaMissing):
        return "unknown"
    return "pending" if plan else "ok"


def broker_state() -> str:
    if error := broker_error():
        logger.warning("Not ready: the broker does not answer: %s", error)
        return "down"
    return "ok"


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text format."""
    lines = [
        "# HELP winnow_jobs Background jobs, by kind and state.",
        "# TYPE winnow_jobs gauge",
    ]
    counts = Job.objects.values("kind", "state").annotate(jobs=Count("id")).order_by("kind", "state")
    lines += [f'winnow_jobs{{kind="{row["kind"]}",state="{row["state"]}"}} {row["jobs"]}' for row in counts]
    now = timezone.now()
    oldest = Job.objects.filter(state=Job.State.QUEUED, due_at__lte=now).aggregate(due_at=Min("due_at"))["due_at"]
    lines += [
        "# HELP winnow_oldest_due_job_seconds How long the oldest due job has waited for a worker.",
        "# TYPE winnow_oldest_due_job_seconds gauge",
        f"winnow_oldest_due_job_seconds {(now - oldest).total_seconds() if oldest else 0:.1f}",
    ]
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")
