"""The API about imports and stored images."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import Http404, HttpResponseBase
from ninja import Router, Schema

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.services import audit
from annotation_server.errors import check_form
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.projects.access import Capability, access_to
from annotation_server.samples.forms import ImportForm
from annotation_server.samples.models import ImportBatch
from annotation_server.samples.selectors import image_for, imports_of
from annotation_server.samples.services import start_import
from annotation_server.samples.views import image_response

router = Router(tags=["samples"])


class ImportIn(Schema):
    source: str
    """A path inside the server's `incoming` directory."""
    name: str = ""


class ImportOut(Schema):
    id: int
    name: str
    state: str
    created_samples: int
    unchanged_samples: int
    created_images: int
    imported_annotations: int
    gold_answers: int
    notes: str
    error: str
    created_at: datetime
    finished_at: datetime | None
    job_id: int | None

    @staticmethod
    def resolve_job_id(batch: ImportBatch, context: Any) -> int | None:
        job = latest_job(JobKind.IMPORT_BATCH, batch.pk)
        return job.pk if job else None


@router.post("/projects/{slug}/imports", response={202: ImportOut})
def new_import(request: AuthenticatedRequest, slug: str, payload: ImportIn) -> ImportBatch:
    access = access_to(request.user, slug, Capability.IMPORT)
    form = ImportForm(payload.model_dump())
    check_form(form)
    batch = start_import(access.project, form.cleaned_data["source"], form.source_name(), request.user)
    audit(person=request.user, verb="import.start", subject=batch, source=batch.source)
    return batch


@router.get("/projects/{slug}/imports", response=list[ImportOut])
def list_imports(request: AuthenticatedRequest, slug: str) -> list[ImportBatch]:
    return list(imports_of(access_to(request.user, slug, Capability.IMPORT).project))


@router.get("/projects/{slug}/imports/{import_id}", response=ImportOut)
def get_import(request: AuthenticatedRequest, slug: str, import_id: int) -> ImportBatch:
    access = access_to(request.user, slug, Capability.IMPORT)
    batch = access.project.import_batches.filter(pk=import_id).first()
    if batch is None:
        raise Http404("There is no such import in this project.")
    return batch


@router.get("/images/{sha256}")
def get_image(request: AuthenticatedRequest, sha256: str) -> HttpResponseBase:
    """The bytes of an image that a project of yours shows."""
    found = image_for(request.user, sha256)
    if found is None:
        raise Http404("There is no such image, or no project of yours shows it.")
    return image_response(found)
