"""Endpoints and runs: making them, starting, pausing, resuming, ending. State changes are conditional updates.

A run is worked chunk by chunk: a few of its chunks have a job at any time, so that a run of half a million tasks does
not stand before everybody else's work; the end of one job makes the next (on_job_settled).
Not here: what a call writes (ledger.py), which tasks (selection.py), writing them down (preparation.py), calling
(annotation_workers/annotate.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import model_annotator
from annotation_server.jobs import services as jobs_services
from annotation_server.jobs.models import Job, JobKind
from annotation_server.runs.costs import Spent
from annotation_server.runs.models import Endpoint, EndpointTest, Feature, RequestBatch, Run, RunChunk
from annotation_server.runs.selection import Wanted, as_stored, select_tasks
from trainer.contract.prompts import PROMPT_VERSIONS, PromptKind

CHUNKS_AT_ONCE = 4
BATCHED_CHUNKS_AT_ONCE = 100
"""No worker is held while a batch is out: what bounds them is how much the endpoint takes into its queue."""
MOST_SAMPLES = 15

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
    cached_input_price: Decimal | None = None,
    batch_price: Decimal = Decimal("0.5"),
    concurrency: int = 8,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
    timeout_seconds: int = 120,
    image_side: int = 1024,
    images_as: str = Endpoint.ImagesAs.DATA_URI,
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
        cached_input_price=cached_input_price,
        batch_price=batch_price,
        concurrency=concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        timeout_seconds=timeout_seconds,
        image_side=image_side,
        images_as=images_as,
        caveat=caveat,
    )
    _check_endpoint(endpoint)
    with transaction.atomic():
        endpoint.annotator = model_annotator(name)
        endpoint.save()
    return endpoint


CHANGEABLE = (
    "input_price",
    "output_price",
    "cached_input_price",
    "batch_price",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "timeout_seconds",
    "image_side",
    "images_as",
    "caveat",
    "overrides",
)
"""Of an endpoint. Its name, address, model and key stay: what was said and paid would otherwise be another's."""


def change_endpoint(endpoint: Endpoint, fields: Mapping[str, Any]) -> None:
    """Other prices, limits or abilities. Runs that go take limits at once, and prices with their next job."""
    for name, value in fields.items():
        if name not in CHANGEABLE:
            raise EndpointRefused(f"{name}: cannot be changed; expected one of {', '.join(CHANGEABLE)}")
        setattr(endpoint, name, value)
    _check_endpoint(endpoint)
    endpoint.save(update_fields=[*fields])


def _check_endpoint(endpoint: Endpoint) -> None:
    for feature, said in endpoint.overrides.items():
        if feature not in Feature.values or not isinstance(said, bool):
            raise EndpointRefused(
                f"overrides: {feature!r}: expected one of {', '.join(Feature.values)}, with yes or no"
            )
    try:
        endpoint.full_clean(exclude={"annotator", "found", "overrides"})
    except ValidationError as error:
        field, lines = next(iter(error.message_dict.items()))
        raise EndpointRefused(f"{field}: {lines[0]}") from None
    if endpoint.images_as == Endpoint.ImagesAs.URL and not settings.PUBLIC_URL:
        raise EndpointRefused(
            "images_as: images go by address only where the setting PUBLIC_URL says under which address this server "
            "can be reached"
        )


def start_endpoint_test(endpoint: Endpoint) -> EndpointTest:
    """Ask the workers to call the endpoint once; the answer appears on the returned row."""
    with transaction.atomic():
        test = EndpointTest.objects.create(endpoint=endpoint)
        jobs_services.enqueue(JobKind.TEST_ENDPOINT, test.pk)
    return test


def record_endpoint_test(
    test_id: int,
    *,
    ok: bool,
    report: dict[str, object],
    found: Mapping[str, bool] | None = None,
    spent: Spent | None = None,
) -> None:
    """What the endpoint answered, what that took, and what it shows of its features; what it does not show stays as it
    was."""
    with transaction.atomic():
        EndpointTest.objects.filter(pk=test_id).update(ok=ok, report=report, **asdict(spent or Spent()))
        if found:
            endpoint = Endpoint.objects.select_for_update().get(tests=test_id)
            Endpoint.objects.filter(pk=endpoint.pk).update(found=endpoint.found | dict(found))


def start_run(
    wanted: Wanted,
    *,
    person: Person | None = None,
    budget_usd: Decimal | None = None,
    budget_calls: int | None = None,
    temperature: float = 0.0,
    max_tokens: int = 512,
    max_attempts: int = 3,
    samples: int = 1,
    permute: bool = False,
    logprobs: bool = False,
    json_answers: bool = False,
    batched: bool = False,
) -> Run:
    """Write down what is wanted; a job then writes down its tasks. RunRefused when there are none."""
    if wanted.approach not in PROMPT_OF:
        raise RunRefused(f"a run is automated or answer_driven, not {wanted.approach}")
    if budget_usd is not None and budget_usd <= 0:
        raise RunRefused(f"a budget is more than 0 USD, got {budget_usd}")
    if budget_calls is not None and budget_calls < 1:
        raise RunRefused(f"a budget is at least 1 call, got {budget_calls}")
    if batched:
        _check_batches(wanted.endpoint)
    if json_answers:
        _check_feature(wanted, Feature.JSON_SCHEMA)
    if logprobs:
        _check_feature(wanted, Feature.LOGPROBS)
    _check_samples(wanted, samples, temperature, permute=permute, logprobs=logprobs)
    if not select_tasks(wanted).exists():
        raise RunRefused(_nothing_to_do(wanted))
    with transaction.atomic():
        run = Run.objects.create(
            project=wanted.project,
            endpoint=wanted.endpoint,
            approach=wanted.approach,
            prompt_version=PROMPT_VERSIONS[PROMPT_OF[wanted.approach]],
            temperature=temperature,
            max_tokens=max_tokens,
            max_attempts=max_attempts,
            samples=samples,
            permute=permute,
            logprobs=logprobs,
            json_answers=json_answers,
            batched=batched,
            budget_usd=budget_usd,
            budget_calls=budget_calls,
            wanted=as_stored(wanted),
            person=person,
        )
        jobs_services.enqueue(JobKind.PREPARE_RUN, run.pk)
    return run


def _check_feature(wanted: Wanted, feature: Feature) -> None:
    if wanted.approach != Approach.AUTOMATED:
        raise RunRefused(f"{feature.value}: for automated runs only")
    _check_known(wanted.endpoint, feature)


def _check_known(endpoint: Endpoint, feature: Feature) -> None:
    if not endpoint.can(feature):
        raise RunRefused(
            f"{feature.value}: {endpoint} is not known to have that feature: test its connection, or say on "
            "its page that it does"
        )


def _check_batches(endpoint: Endpoint) -> None:
    _check_known(endpoint, Feature.BATCHES)
    # A signed address is good for an hour, a batch may take a day.
    _check_known(endpoint, Feature.DATA_URI)


def _check_samples(wanted: Wanted, samples: int, temperature: float, *, permute: bool, logprobs: bool) -> None:
    if not 1 <= samples <= MOST_SAMPLES:
        raise RunRefused(f"samples per task: expected 1 to {MOST_SAMPLES}, got {samples}")
    if permute and samples == 1:
        raise RunRefused("candidates change their order between samples: expected two samples per task or more")
    if samples == 1:
        return
    if wanted.approach != Approach.AUTOMATED:
        raise RunRefused("several samples per task are for automated runs: the answers vote")
    if temperature == 0 and not permute:
        raise RunRefused("at temperature 0 all samples are the same: set one above 0, such as 0.7")
    if logprobs:
        raise RunRefused("confidence comes from the samples' votes or from log-probabilities: choose one")


def _nothing_to_do(wanted: Wanted) -> str:
    if wanted.approach == Approach.ANSWER_DRIVEN:
        return (
            f"nothing to explain in {wanted.project.slug}: no task has an answer without a rationale "
            f"that {wanted.endpoint} has not explained already"
        )
    return f"nothing to annotate in {wanted.project.slug}: {wanted.endpoint} has answered every open task already"


def prepared(run_id: int) -> None:
    """The last of its tasks is written down: a run that goes gets its first jobs. Call it in a transaction."""
    Run.objects.filter(pk=run_id, prepared_at=None).update(prepared_at=timezone.now())
    _move(run_id, (Run.State.PREPARING,), Run.State.WAITING)
    dispatch(run_id)


def dispatch(run_id: int) -> None:
    """See to it that a run that goes has jobs for its next chunks; DONE once every task of every chunk is settled."""
    with transaction.atomic():
        # Of two jobs that end together, the second must see what the first wrote.
        run = Run.objects.select_for_update().get(pk=run_id)
        if run.state not in (Run.State.WAITING, Run.State.RUNNING):
            return
        unfinished = RunChunk.objects.filter(run=run, tasks__gt=F("accepted") + F("rejected") + F("failed"))
        at_once = BATCHED_CHUNKS_AT_ONCE if run.batched else CHUNKS_AT_ONCE
        next_chunks = list(unfinished.order_by("ordinal")[:at_once])
        if not next_chunks:
            _move(run_id, Run.GOING, Run.State.DONE)
        for chunk in next_chunks:
            jobs_services.enqueue(JobKind.BATCH_CHUNK if run.batched else JobKind.ANNOTATE_CHUNK, chunk.pk)


def begin(run_id: int) -> bool:
    """A worker has come to the run; False when the run is paused or has ended, so that there is nothing to do."""
    _move(run_id, (Run.State.WAITING,), Run.State.RUNNING)
    return Run.objects.filter(pk=run_id, state=Run.State.RUNNING).exists()


def pause(run: Run, *, reason: str = "") -> bool:
    """Make no further call; calls on their way are still recorded. False when the run was not going."""
    return _move(run.pk, Run.GOING, Run.State.PAUSED, error=reason[:500])


def resume(run: Run, *, budget_usd: Decimal | None = None, budget_calls: int | None = None) -> bool:
    """Go on with a paused run, with other budgets if they are given. False when it was not paused."""
    budgets = {"budget_usd": budget_usd, "budget_calls": budget_calls}
    given = {name: budget for name, budget in budgets.items() if budget is not None}
    with transaction.atomic():
        # Locked: its tasks may be written down to the last at this very moment (prepared).
        was_prepared = Run.objects.select_for_update().get(pk=run.pk).prepared_at is not None
        state = Run.State.RUNNING if was_prepared else Run.State.PREPARING
        won = _move(run.pk, (Run.State.PAUSED,), state, error="", **given)
        if won and was_prepared:
            dispatch(run.pk)
            _see_to_batches(run.pk)
        elif won:
            jobs_services.enqueue(JobKind.PREPARE_RUN, run.pk)
    return won


def cancel(run: Run) -> bool:
    """End a run for good; what was accepted stays. False when it had ended already.

    Batches that are out are cancelled by their jobs, which keep what was answered before.
    """
    with transaction.atomic():
        won = _move(run.pk, Run.LIVE, Run.State.CANCELLED)
        if won:
            _see_to_batches(run.pk)
    return won


def fail(run: Run, error: str) -> bool:
    """End a run for a reason that no retry mends."""
    with transaction.atomic():
        won = _move(run.pk, Run.LIVE, Run.State.FAILED, error=error[:500])
        if won:
            _see_to_batches(run.pk)
    return won


def _see_to_batches(run_id: int) -> None:
    """Whoever waits for the endpoint's batches sees at once what became of their run."""
    chunks = RunChunk.objects.filter(run=run_id, run__batched=True)
    for chunk in chunks.filter(batches__state__in=RequestBatch.UNDER_WAY).distinct():
        jobs_services.enqueue(JobKind.BATCH_CHUNK, chunk.pk)
    jobs_services.hasten(JobKind.BATCH_CHUNK, chunks.values_list("pk", flat=True))


def _move(run_id: int, before: Collection[str], after: Run.State, **fields: object) -> bool:
    """The one place that changes a run's state, and keeps how long it has been going. False where it is in no state
    of `before`."""
    with transaction.atomic():
        run = Run.objects.select_for_update().filter(pk=run_id, state__in=before).first()
        if run is None:
            return False
        now = timezone.now()
        if run.going_since is not None:
            fields["went_seconds"] = run.went_seconds + (now - run.going_since).total_seconds()
        fields["going_since"] = now if after == Run.State.RUNNING else None
        if after not in Run.LIVE:
            fields["finished_at"] = now
        Run.objects.filter(pk=run_id).update(state=after, **fields)
    return True


def on_job_settled(sender: type[Job], job: Job, **kwargs: object) -> None:
    """Receives jobs.services.job_settled, in its transaction: the run goes on with its next chunk, or ends."""
    if job.kind == JobKind.TEST_ENDPOINT and job.state == Job.State.FAILED:
        record_endpoint_test(job.object_id, ok=False, report={"detail": job.error})
    if job.kind == JobKind.PREPARE_RUN and job.state == Job.State.FAILED:
        _move(job.object_id, Run.LIVE, Run.State.FAILED, error=job.error[:500])
    if job.kind not in (JobKind.ANNOTATE_CHUNK, JobKind.BATCH_CHUNK):
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
