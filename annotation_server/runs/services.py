"""Endpoints and runs: making them, starting, pausing, resuming, ending. State changes are conditional updates.

A run is worked chunk by chunk: a few of its chunks have a job at any time, so that a run of half a million tasks does
not stand before everybody else's work; the end of one job makes the next (on_job_settled).
Not here: what a call writes (ledger.py), which tasks (selection.py), calling (annotation_workers/annotate.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from itertools import islice

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import model_annotator
from annotation_server.jobs import services as jobs_services
from annotation_server.jobs.models import Job, JobKind
from annotation_server.runs.models import Endpoint, EndpointTest, Run, RunChunk, RunTask
from annotation_server.runs.selection import Selected, Wanted, select_tasks, with_given_answers
from trainer.contract.prompts import PROMPT_VERSIONS, PromptKind

CHUNK_TASKS = 200
CHUNKS_AT_ONCE = 4
_CHUNKS_PER_TRANSACTION = 10
"""A start of half a million tasks must not lock everybody else out of the database while it is written."""

PROMPT_OF: dict[str, PromptKind] = {
    Approach.AUTOMATED: PromptKind.ASK,
    Approach.ANSWER_DRIVEN: PromptKind.EXPLAIN,
}


class EndpointRefused(ValueError):
    """An endpoint that cannot be; the message names the field."""


class RunRefused(ValueError):
    """A run that cannot start or change so; the message is one line for whoever asked."""


def create_endpoint(
    *,
    name: str,
    base_url: str,
    model: str,
    api_key_env: str = "",
    input_price: Decimal = Decimal(0),
    output_price: Decimal = Decimal(0),
    concurrency: int = 8,
    timeout_seconds: int = 120,
    image_side: int = 1024,
    caveat: str = "",
) -> Endpoint:
    """A new endpoint, and the annotator that answers behind it. Nothing is called: start_endpoint_test does."""
    endpoint = Endpoint(
        name=name,
        base_url=base_url.rstrip("/"),
        model=model,
        api_key_env=api_key_env,
        input_price=input_price,
        output_price=output_price,
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        image_side=image_side,
        caveat=caveat,
    )
    try:
        endpoint.full_clean(exclude={"annotator"})
    except ValidationError as error:
        field, lines = next(iter(error.message_dict.items()))
        raise EndpointRefused(f"{field}: {lines[0]}") from None
    with transaction.atomic():
        endpoint.annotator = model_annotator(name)
        endpoint.save()
    return endpoint


def start_endpoint_test(endpoint: Endpoint) -> EndpointTest:
    """Ask the workers to call the endpoint once; the answer appears on the returned row."""
    with transaction.atomic():
        test = EndpointTest.objects.create(endpoint=endpoint)
        jobs_services.enqueue(JobKind.TEST_ENDPOINT, test.pk)
    return test


def record_endpoint_test(test_id: int, *, ok: bool, report: dict[str, object]) -> None:
    """What the endpoint answered."""
    EndpointTest.objects.filter(pk=test_id).update(ok=ok, report=report)


def start_run(
    wanted: Wanted,
    *,
    person: Person | None = None,
    budget_usd: Decimal | None = None,
    temperature: float = 0.0,
    max_tokens: int = 512,
    max_attempts: int = 3,
) -> Run:
    """Choose the tasks, write the run down and wake the workers. RunRefused when there is nothing to do."""
    if wanted.approach not in PROMPT_OF:
        raise RunRefused(f"a run is automated or answer_driven, not {wanted.approach}")
    if budget_usd is not None and budget_usd <= 0:
        raise RunRefused(f"a budget is more than 0 USD, got {budget_usd}")
    tasks = select_tasks(wanted)
    if not tasks.exists():
        raise RunRefused(_nothing_to_do(wanted))
    run = Run.objects.create(
        project=wanted.project,
        endpoint=wanted.endpoint,
        approach=wanted.approach,
        prompt_version=PROMPT_VERSIONS[PROMPT_OF[wanted.approach]],
        temperature=temperature,
        max_tokens=max_tokens,
        max_attempts=max_attempts,
        budget_usd=budget_usd,
        person=person,
    )
    _write_chunks(run, with_given_answers(wanted, tasks))
    dispatch(run.pk)
    run.refresh_from_db()
    return run


def _nothing_to_do(wanted: Wanted) -> str:
    if wanted.approach == Approach.ANSWER_DRIVEN:
        return (
            f"nothing to explain in {wanted.project.slug}: no task has an answer without a rationale "
            f"that {wanted.endpoint} has not explained already"
        )
    return f"nothing to annotate in {wanted.project.slug}: {wanted.endpoint} has answered every open task already"


def _write_chunks(run: Run, selected: Iterable[Selected]) -> None:
    rows = iter(selected)
    ordinal = 0
    while batch := list(islice(rows, CHUNK_TASKS * _CHUNKS_PER_TRANSACTION)):
        parts = [batch[at : at + CHUNK_TASKS] for at in range(0, len(batch), CHUNK_TASKS)]
        with transaction.atomic():
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
        ordinal += len(parts)


def dispatch(run_id: int) -> None:
    """See to it that a run that goes has jobs for its next chunks; DONE once every task of every chunk is settled."""
    with transaction.atomic():
        # Of two jobs that end together, the second must see what the first wrote.
        run = Run.objects.select_for_update().get(pk=run_id)
        if run.state not in Run.GOING:
            return
        unfinished = RunChunk.objects.filter(run=run, tasks__gt=F("accepted") + F("rejected") + F("failed"))
        next_chunks = list(unfinished.order_by("ordinal")[:CHUNKS_AT_ONCE])
        if not next_chunks:
            Run.objects.filter(pk=run_id, state__in=Run.GOING).update(state=Run.State.DONE, finished_at=timezone.now())
        for chunk in next_chunks:
            jobs_services.enqueue(JobKind.ANNOTATE_CHUNK, chunk.pk)


def begin(run_id: int) -> bool:
    """A worker has come to the run; False when the run is paused or has ended, so that there is nothing to do."""
    Run.objects.filter(pk=run_id, state=Run.State.WAITING).update(state=Run.State.RUNNING)
    return Run.objects.filter(pk=run_id, state=Run.State.RUNNING).exists()


def pause(run: Run, *, reason: str = "") -> bool:
    """Make no further call; calls on their way are still recorded. False when the run was not going."""
    return bool(Run.objects.filter(pk=run.pk, state__in=Run.GOING).update(state=Run.State.PAUSED, error=reason[:500]))


def resume(run: Run, *, budget_usd: Decimal | None = None) -> bool:
    """Go on with a paused run, with another budget if one is given. False when it was not paused."""
    budget = {} if budget_usd is None else {"budget_usd": budget_usd}
    with transaction.atomic():
        won = Run.objects.filter(pk=run.pk, state=Run.State.PAUSED).update(state=Run.State.RUNNING, error="", **budget)
        if won:
            dispatch(run.pk)
    return bool(won)


def cancel(run: Run) -> bool:
    """End a run for good; what was accepted stays. False when it had ended already."""
    return _end(run.pk, Run.State.CANCELLED)


def fail(run: Run, error: str) -> bool:
    """End a run for a reason that no retry mends."""
    return _end(run.pk, Run.State.FAILED, error)


def _end(run_id: int, state: Run.State, error: str = "") -> bool:
    return bool(
        Run.objects.filter(pk=run_id, state__in=Run.LIVE).update(
            state=state, error=error[:500], finished_at=timezone.now()
        )
    )


def on_job_settled(sender: type[Job], job: Job, **kwargs: object) -> None:
    """Receives jobs.services.job_settled, in its transaction: the run goes on with its next chunk, or ends."""
    if job.kind == JobKind.TEST_ENDPOINT and job.state == Job.State.FAILED:
        record_endpoint_test(job.object_id, ok=False, report={"detail": job.error})
    if job.kind != JobKind.ANNOTATE_CHUNK:
        return
    chunk = RunChunk.objects.select_related("run").filter(pk=job.object_id).first()
    if chunk is None:
        return  # the project was deleted meanwhile
    if job.state == Job.State.FAILED:
        # Where the worker knew better it has paused or ended the run before, and this changes nothing.
        if Run.objects.filter(pk=chunk.run_id, state__in=Run.GOING).exists():
            fail(chunk.run, job.error)
    else:
        dispatch(chunk.run_id)
