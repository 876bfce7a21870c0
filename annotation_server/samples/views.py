"""Stored images by content, for members or by a signed address, and the imports page.

Not here: reading sources (importers.py), the import itself (a job; annotations/imports.py).
"""

from __future__ import annotations

from typing import TypeVar

from django.contrib.auth.decorators import login_required
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.services import audit
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.samples import signed_links, storage
from annotation_server.samples.forms import ImportForm, incoming
from annotation_server.samples.models import Image, ImportBatch
from annotation_server.samples.renditions import CONTENT_TYPES, PREVIEW_SIDE, fitting, rendition
from annotation_server.samples.selectors import image_for, imports_of
from annotation_server.samples.services import start_import

AnyResponse = TypeVar("AnyResponse", bound=HttpResponseBase)

IMAGE_POLICY = "default-src 'none'; sandbox"
"""An image opened by itself runs nothing and loads nothing, whatever its bytes say."""


@login_required
@require_GET
def image(request: AuthenticatedRequest, sha256: str) -> HttpResponseBase:
    found = image_for(request.user, sha256)
    if found is None:
        raise Http404
    return image_response(found)


def image_response(found: Image) -> HttpResponseBase:
    """The stored bytes with the headers every stored image gets, on pages and through the API."""
    try:
        stored = storage.open_stored(found.path)
    except FileNotFoundError:
        raise Http404 from None  # taken down since the row was read
    return _as_image(FileResponse(stored, content_type=CONTENT_TYPES[found.extension]))


@login_required
@require_GET
def preview(request: AuthenticatedRequest, sha256: str) -> HttpResponse:
    """The image small enough to be shown at once."""
    found = image_for(request.user, sha256)
    if found is None:
        raise Http404
    try:
        content_type, content = rendition(found, PREVIEW_SIDE)
    except FileNotFoundError:
        raise Http404 from None
    return _as_image(HttpResponse(content, content_type=content_type))


@require_GET
def signed_image(request: HttpRequest, token: str) -> HttpResponse:
    """For a model that fetches its images: whoever holds the address sees this one image, at this size, for a while."""
    link = signed_links.read(token)
    found = Image.objects.filter(sha256=link.sha256, withdrawn_at=None).first() if link else None
    if link is None or found is None:
        raise Http404
    try:
        content_type, content = fitting(found, link.side)
    except FileNotFoundError:
        raise Http404 from None
    response = _as_image(HttpResponse(content, content_type=content_type))
    response["Cache-Control"] = "private, no-store"  # the address expires, and with it the right to see the image
    return response


def _as_image(response: AnyResponse) -> AnyResponse:
    # Its address is its content, so it never changes; private, because a shared cache does not know the members.
    response["Cache-Control"] = "private, max-age=31536000, immutable"
    response["Content-Security-Policy"] = IMAGE_POLICY
    response["X-Content-Type-Options"] = "nosniff"
    return response


@login_required
@require_http_methods(["GET", "POST"])
def imports(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.IMPORT)
    form = ImportForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        batch = start_import(access.project, form.cleaned_data["source"], form.source_name(), request.user)
        audit(person=request.user, verb="import.start", subject=batch, source=batch.source)
        return redirect("samples:imports", slug)
    return render(
        request,
        "samples/imports.html",
        {
            "access": access,
            "form": form,
            "incoming": incoming(),
            "batches": [_shown(access, batch) for batch in imports_of(access.project)],
        },
        status=422 if form.errors else 200,
    )


@login_required
@require_GET
def import_row(request: AuthenticatedRequest, slug: str, batch_id: int) -> HttpResponse:
    """One row of the imports table, asked for again and again while its job lives."""
    access = access_to(request.user, slug, Capability.IMPORT)
    batch = access.project.import_batches.filter(pk=batch_id).first()
    if batch is None:
        raise Http404
    return render(request, "samples/_import.html", _shown(access, batch))


def _shown(access: Access, batch: ImportBatch) -> dict[str, object]:
    return {"access": access, "batch": batch, "job": latest_job(JobKind.IMPORT_BATCH, batch.pk)}
