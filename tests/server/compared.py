"""Rows of runs for tests that compare approaches: what a worker would have left in the ledger, without the calls.

Not here: that workers leave exactly this (tests/workers).
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from decimal import Decimal

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.projects.models import Project
from annotation_server.runs.models import Attempt, Endpoint, Run, RunChunk, RunTask
from annotation_server.runs.services import create_endpoint
from annotation_server.tasks.models import Task
from tests.server.factories import annotate

_numbers = itertools.count(1)


def make_run(project: Project, approach: str = Approach.AUTOMATED, endpoint: Endpoint | None = None) -> Run:
    """A run that somebody started; by an endpoint of its own unless told."""
    endpoint = endpoint or create_endpoint(
        name=f"endpoint-{next(_numbers)}",
        base_url="http://127.0.0.1:9/v1",
        model="m",
        caveat="Knows drawn scenes only.",
    )
    run = Run.objects.create(project=project, endpoint=endpoint, approach=approach, prompt_version="ask-1")
    RunChunk.objects.create(run=run, ordinal=0, tasks=1)
    return run


def settle(
    run: Run,
    task: Task,
    answer: str | None,
    rationale: str = "",
    *,
    calls: Sequence[tuple[str, int | None]] = (("0.01", 1000),),
    confidence: float | None = None,
    given_from: Annotation | None = None,
) -> RunTask:
    """What came of a task: accepted with `answer`, or, without one, refused. `calls`: USD and milliseconds of each."""
    chunk = run.chunks.get()
    annotation = None
    if answer is not None:
        annotation = annotate(
            task,
            run.endpoint.annotator,
            answer,
            approach=run.approach,
            rationale=rationale,
            confidence=confidence,
            copied_from=given_from,
        )
    run_task = RunTask.objects.create(  # type: ignore[misc]  # the plugin does not see that given_answer may be null
        run=run,
        chunk=chunk,
        task=task,
        given_answer=frozenset(answer or "") if run.approach == Approach.ANSWER_DRIVEN else None,
        given_from=given_from,
        state=RunTask.State.REJECTED if annotation is None else RunTask.State.ACCEPTED,
        annotation=annotation,
    )
    last = len(calls) - (annotation is not None)
    for place, (usd, latency_ms) in enumerate(calls):
        Attempt.objects.create(
            run_task=run_task,
            number=place + 1,
            request_id=uuid.uuid4(),
            outcome=Attempt.Outcome.REJECTED if place < last else Attempt.Outcome.ACCEPTED,
            cost_usd=Decimal(usd),
            latency_ms=latency_ms,
        )
    return run_task
