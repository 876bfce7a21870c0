"""The API about model annotation: endpoints and their tests, runs and what they cost. Only jobs call models."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404
from ninja import Field, Router, Schema

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.services import audit
from annotation_server.annotations.models import Approach
from annotation_server.errors import ApiError, invalid
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.projects.access import Access, Capability, access_to, may_name_keys, may_use_endpoints
from annotation_server.runs import services
from annotation_server.runs.batch_selectors import batch_progress
from annotation_server.runs.models import Endpoint, EndpointTest, Feature, Run
from annotation_server.runs.selection import Wanted
from annotation_server.runs.selectors import (
    Estimate,
    check_counts,
    estimate,
    refusals,
    run_progress,
    spent_on_tests,
)
from trainer.contract.dimensions import Dimension

router = Router(tags=["runs"])


class EndpointIn(Schema):
    name: str
    base_url: str
    model: str
    api_key_env: str = ""
    """The name of the environment variable that holds the key, never the key."""
    input_price: Decimal = Decimal(0)
    output_price: Decimal = Decimal(0)
    cached_input_price: Decimal | None = None
    """Null: as other input."""
    batch_price: Decimal = Field(Decimal("0.5"), ge=0, le=1)
    """What a request in a batch costs, as a share of these prices."""
    concurrency: int = Field(8, ge=1)
    requests_per_minute: int = Field(0, ge=0)
    """For all workers together; 0: no limit."""
    tokens_per_minute: int = Field(0, ge=0)
    timeout_seconds: int = Field(120, ge=1)
    image_side: int = Field(1024, ge=1)
    images_as: Endpoint.ImagesAs = Endpoint.ImagesAs.DATA_URI
    caveat: str = ""


class EndpointOut(EndpointIn):
    features: dict[str, bool]
    """What runs go by: what somebody said, else what the last test found."""
    found: dict[str, bool]
    overrides: dict[str, bool]
    tests_cost_usd: Decimal
    """Of all its connection tests; they belong to no run, and so to no budget."""

    @staticmethod
    def resolve_tests_cost_usd(endpoint: Endpoint) -> Decimal:
        return spent_on_tests(endpoint).cost_usd

    @staticmethod
    def resolve_features(endpoint: Endpoint) -> dict[str, bool]:
        return {feature.value: endpoint.can(feature) for feature in Feature}


class EndpointChange(Schema):
    """What is left out stays as it is."""

    input_price: Decimal | None = None
    output_price: Decimal | None = None
    cached_input_price: Decimal | None = None
    batch_price: Decimal | None = Field(None, ge=0, le=1)
    concurrency: int | None = Field(None, ge=1)
    requests_per_minute: int | None = Field(None, ge=0)
    tokens_per_minute: int | None = Field(None, ge=0)
    timeout_seconds: int | None = Field(None, ge=1)
    image_side: int | None = Field(None, ge=1)
    images_as: Endpoint.ImagesAs | None = None
    caveat: str | None = None
    overrides: dict[Feature, bool] | None = None
    """All of them: a feature that is not named is again what the last test found."""


class EndpointTestOut(Schema):
    id: int
    ok: bool | None
    """Null until the job has run."""
    report: dict[str, Any]
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    """At the endpoint's prices of then; what calls without an answer cost is in no sum."""
    job_id: int | None

    @staticmethod
    def resolve_job_id(test: EndpointTest, context: Any) -> int | None:
        job = latest_job(JobKind.TEST_ENDPOINT, test.pk)
        return job.pk if job else None


class WantedIn(Schema):
    endpoint: str
    approach: Approach
    dimensions: list[Dimension] = Field(default_factory=list)
    task_ids: list[int] | None = Field(None, max_length=500)
    resolved_too: bool = False
    limit: int | None = Field(None, ge=1)
    max_tokens: int = Field(512, ge=16, le=32_768)
    samples: int = Field(1, ge=1, le=services.MOST_SAMPLES)
    """Automated: completions per task; from two on their answers vote, and the share of votes is the confidence."""
    permute: bool = False
    """Every sample shows the candidates in another order."""
    batched: bool = False
    """Through the endpoint's Batch API, at its price for batches, where the endpoint has that feature."""


class RunIn(WantedIn):
    budget_usd: Decimal | None = Field(None, gt=0)
    budget_calls: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    max_attempts: int = Field(3, ge=1, le=10)
    logprobs: bool = False
    """Automated: confidence from the probabilities of the answer's tokens, where the endpoint has that feature."""
    json_answers: bool = False
    """Automated: completions in a JSON schema, where the endpoint has that feature."""


class EstimateOut(Schema):
    tasks: int
    input_tokens: int
    cost_usd: Decimal
    resolve_calls: int
    """Blind re-solves, where the project wants them and the run is answer-driven: at most one a task."""
    resolve_cost_usd: Decimal
    """Of the cost."""


class ProgressOut(Schema):
    tasks: int
    accepted: int
    rejected: int
    failed: int
    calls: int
    input_tokens: int
    cached_tokens: int
    """Of the input tokens."""
    output_tokens: int
    cost_usd: Decimal
    tasks_per_second: float
    """While workers were on it."""
    seconds_left: float | None
    """At this rate; null while there is none."""


class BatchesOut(Schema):
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
    ignored: dict[str, int]
    """Lines of results that were left out, by reason."""


class RunOut(Schema):
    id: int
    endpoint: str
    caveat: str
    approach: str
    prompt_version: str
    state: str
    error: str
    samples: int
    permute: bool
    logprobs: bool
    json_answers: bool
    batched: bool
    batches: BatchesOut | None
    """Null where it is asked call by call."""
    budget_usd: Decimal | None
    budget_calls: int | None
    created_at: datetime
    prepared_at: datetime | None
    """When the last of its tasks was written down: until then `progress.tasks` grows."""
    finished_at: datetime | None
    progress: ProgressOut
    refusals: dict[str, int]
    """Refused attempts by reason."""
    checks: dict[str, int]
    """Every check of the run's approach, in its order, and how many completions it has refused."""


class ResumeIn(Schema):
    budget_usd: Decimal | None = Field(None, gt=0)
    """Another budget; null keeps the run's."""
    budget_calls: int | None = Field(None, ge=1)


@router.get("/endpoints", response=list[EndpointOut])
def list_endpoints(request: AuthenticatedRequest) -> list[Endpoint]:
    _require_endpoints(request)
    return list(Endpoint.objects.order_by("name"))


@router.post("/endpoints", response={201: EndpointOut})
def new_endpoint(request: AuthenticatedRequest, payload: EndpointIn) -> Endpoint:
    _require_endpoints(request)
    if payload.api_key_env and not may_name_keys(request.user):
        raise ApiError(403, "forbidden", "Only an administrator makes an endpoint that sends a key.", "api_key_env")
    endpoint = services.create_endpoint(**payload.model_dump())
    audit(person=request.user, verb="endpoint.create", subject=endpoint, base_url=endpoint.base_url)
    return endpoint


@router.get("/endpoints/{name}", response=EndpointOut)
def get_endpoint(request: AuthenticatedRequest, name: str) -> Endpoint:
    _require_endpoints(request)
    return _endpoint(name)


@router.patch("/endpoints/{name}", response=EndpointOut)
def change_endpoint(request: AuthenticatedRequest, name: str, payload: EndpointChange) -> Endpoint:
    """Other prices, limits or abilities; name, address, model and key stay."""
    _require_endpoints(request)
    endpoint = _endpoint(name)
    fields = payload.model_dump(exclude_unset=True)
    may_be_null = {"cached_input_price"}
    if nothing := next((field for field, value in fields.items() if value is None and field not in may_be_null), None):
        raise invalid("This cannot be null.", nothing)
    services.change_endpoint(endpoint, fields)
    audit(person=request.user, verb="endpoint.change", subject=endpoint, fields=sorted(fields))
    return endpoint


@router.post("/endpoints/{name}/tests", response={202: EndpointTestOut})
def new_endpoint_test(request: AuthenticatedRequest, name: str) -> EndpointTest:
    """Have a worker call the endpoint once."""
    _require_endpoints(request)
    return services.start_endpoint_test(_endpoint(name))


@router.get("/endpoint-tests/{test_id}", response=EndpointTestOut)
def get_endpoint_test(request: AuthenticatedRequest, test_id: int) -> EndpointTest:
    _require_endpoints(request)
    test = EndpointTest.objects.filter(pk=test_id).first()
    if test is None:
        raise Http404("There is no such connection test.")
    return test


@router.post("/projects/{slug}/runs/estimate", response=EstimateOut)
def estimate_run(request: AuthenticatedRequest, slug: str, payload: WantedIn) -> Estimate:
    """How many tasks a run would work on, and what it would cost at most if nothing had to be asked again."""
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    sizes = payload.model_dump(include={"max_tokens", "samples", "permute", "batched"})
    return estimate(_wanted(access, payload), **sizes)


@router.post("/projects/{slug}/runs", response={202: RunOut})
def new_run(request: AuthenticatedRequest, slug: str, payload: RunIn) -> RunOut:
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    run = services.start_run(
        _wanted(access, payload),
        person=request.user,
        budget_usd=payload.budget_usd,
        budget_calls=payload.budget_calls,
        samples=payload.samples,
        permute=payload.permute,
        logprobs=payload.logprobs,
        json_answers=payload.json_answers,
        batched=payload.batched,
        temperature=payload.temperature,
        max_tokens=payload.max_tokens,
        max_attempts=payload.max_attempts,
    )
    audit(person=request.user, verb="run.start", subject=run, approach=run.approach)
    return _shown(run)


@router.get("/projects/{slug}/runs", response=list[RunOut])
def list_runs(request: AuthenticatedRequest, slug: str) -> list[RunOut]:
    access = access_to(request.user, slug, Capability.RUN_MODELS)
    return [_shown(run) for run in access.project.runs.select_related("endpoint").order_by("-pk")[:50]]


@router.get("/projects/{slug}/runs/{run_id}", response=RunOut)
def get_run(request: AuthenticatedRequest, slug: str, run_id: int) -> RunOut:
    return _shown(_run_in(access_to(request.user, slug, Capability.RUN_MODELS), run_id))


@router.post("/projects/{slug}/runs/{run_id}/pause", response=RunOut)
def pause_run(request: AuthenticatedRequest, slug: str, run_id: int) -> RunOut:
    run = _run_in(access_to(request.user, slug, Capability.RUN_MODELS), run_id)
    return _changed(request, run, "pause", services.pause(run))


@router.post("/projects/{slug}/runs/{run_id}/resume", response=RunOut)
def resume_run(request: AuthenticatedRequest, slug: str, run_id: int, payload: ResumeIn | None = None) -> RunOut:
    run = _run_in(access_to(request.user, slug, Capability.RUN_MODELS), run_id)
    budgets = payload.model_dump() if payload else {}
    return _changed(request, run, "resume", services.resume(run, **budgets))


@router.post("/projects/{slug}/runs/{run_id}/cancel", response=RunOut)
def cancel_run(request: AuthenticatedRequest, slug: str, run_id: int) -> RunOut:
    run = _run_in(access_to(request.user, slug, Capability.RUN_MODELS), run_id)
    return _changed(request, run, "cancel", services.cancel(run))


def _require_endpoints(request: AuthenticatedRequest) -> None:
    if not may_use_endpoints(request.user):
        raise PermissionDenied("Endpoints are for those who run models in some project.")


def _endpoint(name: str) -> Endpoint:
    endpoint = Endpoint.objects.filter(name=name).first()
    if endpoint is None:
        raise Http404("There is no such endpoint.")
    return endpoint


def _wanted(access: Access, payload: WantedIn) -> Wanted:
    endpoint = Endpoint.objects.filter(name=payload.endpoint).first()
    if endpoint is None:
        raise invalid(f"There is no endpoint {payload.endpoint!r}.", "endpoint")
    return Wanted(
        project=access.project,
        endpoint=endpoint,
        approach=payload.approach,
        dimensions=[dimension.value for dimension in payload.dimensions],
        task_ids=payload.task_ids,
        resolved_too=payload.resolved_too,
        limit=payload.limit,
    )


def _run_in(access: Access, run_id: int) -> Run:
    run = access.project.runs.select_related("endpoint").filter(pk=run_id).first()
    if run is None:
        raise Http404("There is no such run in this project.")
    return run


def _changed(request: AuthenticatedRequest, run: Run, verb: str, won: bool) -> RunOut:
    run.refresh_from_db()
    if not won:
        raise ApiError(409, "run_moved_on", f"The run is {run.state}: it cannot {verb} now.")
    audit(person=request.user, verb=f"run.{verb}", subject=run)
    return _shown(run)


def _shown(run: Run) -> RunOut:
    progress = run_progress(run)
    counted = refusals(run)
    batches = batch_progress(run)
    return RunOut(
        id=run.pk,
        endpoint=run.endpoint.name,
        caveat=run.endpoint.caveat,
        approach=run.approach,
        prompt_version=run.prompt_version,
        state=run.state,
        error=run.error,
        samples=run.samples,
        permute=run.permute,
        logprobs=run.logprobs,
        json_answers=run.json_answers,
        batched=run.batched,
        batches=BatchesOut.model_validate(batches, from_attributes=True) if batches else None,
        budget_usd=run.budget_usd,
        budget_calls=run.budget_calls,
        created_at=run.created_at,
        prepared_at=run.prepared_at,
        finished_at=run.finished_at,
        progress=ProgressOut.model_validate(progress, from_attributes=True),
        refusals=counted,
        checks={check.objection.value: check.times for check in check_counts(run, counted)},
    )
