"""Writing down a run's tasks, chunk by chunk: a job, since half a million of them are no work for a request.

Idempotent: each batch is one transaction and begins after the last task that is written, so whoever is killed in
between leaves whole chunks from which the next worker goes on. It makes no call: a pause does not stop it.
Not here: which tasks (selection.py), what happens to the run then (services.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Count, Max

from annotation_server.jobs.working import HeldJob
from annotation_server.runs import services
from annotation_server.runs.models import Run, RunChunk, RunTask
from annotation_server.runs.selection import Selected, next_selected, select_tasks, wanted_by

CHUNK_TASKS = 1000
CHUNKS_PER_TRANSACTION = 1
"""While a transaction writes, everybody else waits, on SQLite: a tenth of a second at most is what nobody notices."""


def prepare_run(run: Run, job: HeldJob) -> None:
    """Write what is missing, and let the run go."""
    wanted = wanted_by(run)
    written = RunTask.objects.filter(run=run).aggregate(tasks=Count("pk"), last=Max("task"))
    done: int = written["tasks"]
    last: int = written["last"] or 0
    expected = done + select_tasks(wanted, after=last, but=done).count()
    ordinal = run.chunks.count()
    most = CHUNK_TASKS * CHUNKS_PER_TRANSACTION
    while batch := next_selected(wanted, after=last, but=done, most=most):
        parts = [batch[at : at + CHUNK_TASKS] for at in range(0, len(batch), CHUNK_TASKS)]
        with transaction.atomic():
            job.fence()
            if not Run.objects.filter(pk=run.pk, state__in=Run.LIVE).exists():
                job.outcome = "The run has ended."
                return
            _write(run, ordinal, parts)
        ordinal += len(parts)
        done, last = done + len(batch), batch[-1].task_id
        job.progress(done, max(done, expected))
    with transaction.atomic():
        job.fence()
        services.prepared(run.pk)


def _write(run: Run, ordinal: int, parts: Sequence[Sequence[Selected]]) -> None:
    chunks = RunChunk.objects.bulk_create(
        [RunChunk(run=run, ordinal=ordinal + place, tasks=len(part)) for place, part in enumerate(parts)]
    )
    RunTask.objects.bulk_create(
        [
            RunTask(  # type: ignore[misc]  # the plugin does not see that given_answer may be null
                run=run,
                chunk=chunk,
                task_id=row.task_id,
                given_answer=row.given_answer,
                given_from_id=row.given_from_id,
            )
            for chunk, part in zip(chunks, parts, strict=True)
            for row in part
        ],
        batch_size=500,
    )
