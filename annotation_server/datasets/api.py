"""The API about dataset versions and exports. Both are made by jobs; the directory stays on the server."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import Http404
from ninja import Router, Schema

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.services import audit
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.selectors import versions_of
from annotation_server.datasets.services import start_export, start_freeze
from annotation_server.errors import ApiError
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.projects.access import Access, Capability, access_to

router = Router(tags=["datasets"])


class VersionIn(Schema):
    name: str


class VersionOut(Schema):
    id: int
    name: str
    state: str
    version_id: str
    """The sha256 of its content; empty until it is frozen."""
    polarity: str
    prompt_versions: dict[str, str]
    splits: dict[str, int]
    summary: dict[str, Any]
    error: str
    created_at: datetime
    frozen_at: datetime | None
    job_id: int | None

    @staticmethod
    def resolve_job_id(version: DatasetVersion, context: Any) -> int | None:
        job = latest_job(JobKind.FREEZE_VERSION, version.pk)
        return job.pk if job else None


class ExportOut(Schema):
    id: int
    format: str
    state: str
    directory: str
    """On the server; complete once the state is done."""
    error: str
    created_at: datetime
    job_id: int | None

    @staticmethod
    def resolve_job_id(export: Export, context: Any) -> int | None:
        job = latest_job(JobKind.EXPORT_VERSION, export.pk)
        return job.pk if job else None


@router.get("/projects/{slug}/versions", response=list[VersionOut])
def list_versions(request: AuthenticatedRequest, slug: str) -> list[DatasetVersion]:
    return list(versions_of(access_to(request.user, slug, Capability.EXPORT).project))


@router.post("/projects/{slug}/versions", response={202: VersionOut})
def new_version(request: AuthenticatedRequest, slug: str, payload: VersionIn) -> DatasetVersion:
    """Freeze what is resolved now."""
    access = access_to(request.user, slug, Capability.FREEZE)
    version = start_freeze(access.project, payload.name, request.user)
    audit(person=request.user, verb="version.freeze", subject=version, name=version.name)
    return version


@router.get("/projects/{slug}/versions/{version_pk}", response=VersionOut)
def get_version(request: AuthenticatedRequest, slug: str, version_pk: int) -> DatasetVersion:
    return _version_in(access_to(request.user, slug, Capability.EXPORT), version_pk)


@router.post("/projects/{slug}/versions/{version_pk}/exports", response={202: ExportOut})
def new_export(request: AuthenticatedRequest, slug: str, version_pk: int) -> Export:
    version = _version_in(access_to(request.user, slug, Capability.EXPORT), version_pk)
    if version.state != DatasetVersion.State.FROZEN:
        raise ApiError(409, "not_frozen", f"The version is {version.state}: only a frozen one can be exported.")
    export = start_export(version, request.user)
    audit(person=request.user, verb="version.export", subject=version, export=export.pk)
    return export


@router.get("/projects/{slug}/exports/{export_id}", response=ExportOut)
def get_export(request: AuthenticatedRequest, slug: str, export_id: int) -> Export:
    access = access_to(request.user, slug, Capability.EXPORT)
    export = Export.objects.filter(pk=export_id, version__project=access.project).first()
    if export is None:
        raise Http404("There is no such export in this project.")
    return export


def _version_in(access: Access, version_pk: int) -> DatasetVersion:
    version = versions_of(access.project).filter(pk=version_pk).first()
    if version is None:
        raise Http404("There is no such version in this project.")
    return version
