"""The API, assembled from the apps' own parts: who is asking, one shape for every error, and the state of jobs.

Not here: what an operation does (each app's api.py), errors that Django answers by itself (errors.py).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError
from ninja.errors import ValidationError as PayloadRefused

from annotation_server.accounts.api import AUTHENTICATION
from annotation_server.accounts.api import router as accounts_router
from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.api import router as annotations_router
from annotation_server.annotations.quality_api import router as quality_router
from annotation_server.annotations.services import AlreadyAnswered, AnnotationRefused
from annotation_server.datasets.api import router as datasets_router
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.services import FreezeRefused
from annotation_server.errors import ApiError, invalid
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.access import projects_of
from annotation_server.projects.api import router as projects_router
from annotation_server.runs.api import router as runs_router
from annotation_server.runs.comparison_api import router as comparison_router
from annotation_server.runs.models import EndpointTest, RunChunk
from annotation_server.runs.services import EndpointRefused, RunRefused
from annotation_server.samples.api import router as samples_router
from annotation_server.samples.models import ImportBatch

api = NinjaAPI(
    title="Winnow",
    version="1",
    urls_namespace="api",
    docs_url=None,  # its page needs scripts from elsewhere; docs/api.md describes the API
    auth=AUTHENTICATION,
    description='Every error is `{"error": {"code", "message", "field"?}}`. Send `Authorization: Bearer TOKEN`.',
)
for router in (
    accounts_router,
    projects_router,
    samples_router,
    annotations_router,
    quality_router,
    runs_router,
    comparison_router,
    datasets_router,
):
    api.add_router("", router)


class JobOut(Schema):
    id: int
    kind: str
    state: str
    progress_done: int
    progress_total: int
    """0 while unknown."""
    message: str
    error: str
    created_at: datetime
    finished_at: datetime | None


@api.get("/jobs/{job_id}", response=JobOut, tags=["jobs"])
def get_job(request: AuthenticatedRequest, job_id: int) -> Job:
    """Background work of a project of yours."""
    job = Job.objects.filter(pk=job_id).first()
    if job is None or not _may_see(request, job):
        raise Http404("There is no such job, or it belongs to a project you are not a member of.")
    return job


def _may_see(request: AuthenticatedRequest, job: Job) -> bool:
    if request.user.is_superuser:
        return True
    projects = projects_of(request.user).order_by().values("pk")
    match job.kind:
        case JobKind.IMPORT_BATCH:
            return ImportBatch.objects.filter(pk=job.object_id, project__in=projects).exists()
        case JobKind.ANNOTATE_CHUNK:
            return RunChunk.objects.filter(pk=job.object_id, run__project__in=projects).exists()
        case JobKind.FREEZE_VERSION:
            return DatasetVersion.objects.filter(pk=job.object_id, project__in=projects).exists()
        case JobKind.EXPORT_VERSION:
            return Export.objects.filter(pk=job.object_id, version__project__in=projects).exists()
        case JobKind.TEST_ENDPOINT:
            # Endpoints belong to no project; a test says no more than whether one answers.
            return EndpointTest.objects.filter(pk=job.object_id).exists()
    return False


# Errors. The more special class comes with the more special code; ninja picks by the exception's own class order.


@api.exception_handler(ApiError)
def _api_error(request: HttpRequest, error: ApiError) -> HttpResponse:
    return error.response()


@api.exception_handler(AuthenticationError)
def _unauthorised(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    message = "Sign in, or send a valid token as “Authorization: Bearer TOKEN”."
    response = ApiError(401, "unauthorised", message).response()
    response["WWW-Authenticate"] = "Bearer"
    return response


@api.exception_handler(HttpError)
def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return ApiError(error.status_code, "refused", error.message).response()


@api.exception_handler(Http404)
def _not_found(request: HttpRequest, error: Http404) -> HttpResponse:
    return ApiError(404, "not_found", str(error) or "Not found.").response()


@api.exception_handler(PermissionDenied)
def _forbidden(request: HttpRequest, error: PermissionDenied) -> HttpResponse:
    return ApiError(403, "forbidden", str(error) or "Your role does not include this.").response()


@api.exception_handler(PayloadRefused)
def _payload_refused(request: HttpRequest, error: PayloadRefused) -> HttpResponse:
    first: dict[str, Any] = error.errors[0]
    # loc is ("body", "payload", "answer", 0): where it came from and our parameter's name are of no use to the sender.
    names = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "payload", "filters")]
    return invalid(str(first["msg"]), ".".join(names)).response()


@api.exception_handler(ValidationError)
def _model_refused(request: HttpRequest, error: ValidationError) -> HttpResponse:
    if hasattr(error, "error_dict"):
        field, messages = next(iter(error.message_dict.items()))
        return invalid(messages[0], "" if field == "__all__" else field).response()
    return invalid(error.messages[0]).response()


@api.exception_handler(AlreadyAnswered)
def _already_answered(request: HttpRequest, error: AlreadyAnswered) -> HttpResponse:
    return ApiError(409, "already_answered", str(error)).response()


@api.exception_handler(AnnotationRefused)
@api.exception_handler(RunRefused)
@api.exception_handler(FreezeRefused)
@api.exception_handler(EndpointRefused)
def _refused(request: HttpRequest, error: ValueError) -> HttpResponse:
    return invalid(str(error)).response()
