"""Pages of dataset versions: the list, freezing one, what it holds, its exports and their small files.

Freezing and exporting are jobs. Not here: what a version is made of (freeze.py), writing a directory (exports.py).
"""

from __future__ import annotations

from pathlib import Path

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import FileResponse, Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.accounts.services import audit
from annotation_server.datasets.forms import FreezeForm
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.selectors import downloadable_files, exports_of, versions_of
from annotation_server.datasets.services import FreezeRefused, start_export, start_freeze
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.selectors import latest_job
from annotation_server.projects.access import Access, Capability, access_to


@login_required
@require_http_methods(["GET", "POST"])
def version_list(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    """The versions; posting a name freezes another one."""
    access = access_to(request.user, slug, Capability.EXPORT)
    form = FreezeForm(request.POST or None)
    if request.method == "POST":
        if not access.allows(Capability.FREEZE):
            raise PermissionDenied(_("Your role in this project does not include freezing versions."))
        if form.is_valid():
            try:
                version = start_freeze(access.project, form.cleaned_data["name"], request.user)
            except FreezeRefused as refused:
                form.add_error("name", str(refused))
            else:
                audit(person=request.user, verb="version.freeze", subject=version, name=version.name)
                return redirect("datasets:version", slug, version.pk)
    context = {"access": access, "form": form, "versions": versions_of(access.project)}
    return render(request, "datasets/list.html", context, status=422 if form.errors else 200)


@login_required
@require_GET
def version(request: AuthenticatedRequest, slug: str, version_pk: int) -> HttpResponse:
    """A version's page; asked for by htmx, the part that changes while jobs run."""
    access = access_to(request.user, slug, Capability.EXPORT)
    found = _version_in(access, version_pk)
    exports = list(exports_of(found))
    jobs = {export.pk: latest_job(JobKind.EXPORT_VERSION, export.pk) for export in exports}
    template = "datasets/_version.html" if request.htmx else "datasets/version.html"  # type: ignore[attr-defined]
    return render(
        request,
        template,
        {
            "access": access,
            "version": found,
            "counts": _counts(found),
            "job": latest_job(JobKind.FREEZE_VERSION, found.pk),
            "exports": [
                {"export": export, "job": jobs[export.pk], "files": downloadable_files(export)} for export in exports
            ],
            "live": found.state == DatasetVersion.State.FREEZING
            or any(export.state == Export.State.WAITING for export in exports),
        },
    )


@login_required
@require_POST
def export_version(request: AuthenticatedRequest, slug: str, version_pk: int) -> HttpResponse:
    access = access_to(request.user, slug, Capability.EXPORT)
    found = _version_in(access, version_pk)
    if found.state != DatasetVersion.State.FROZEN:
        raise Http404
    export = start_export(found, request.user)
    audit(person=request.user, verb="version.export", subject=found, export=export.pk)
    return redirect("datasets:version", slug, version_pk)


@login_required
@require_GET
def export_file(request: AuthenticatedRequest, slug: str, export_id: int, name: str) -> FileResponse:
    """One of an export's small files, as a download."""
    access = access_to(request.user, slug, Capability.EXPORT)
    export = Export.objects.filter(pk=export_id, version__project=access.project).first()
    if export is None or name not in downloadable_files(export):
        raise Http404
    return FileResponse((Path(export.directory) / name).open("rb"), as_attachment=True, filename=name)


def _version_in(access: Access, version_pk: int) -> DatasetVersion:
    found = versions_of(access.project).filter(pk=version_pk).first()
    if found is None:
        raise Http404
    return found


def _counts(version: DatasetVersion) -> list[tuple[str, dict[str, int]]]:
    """Records per split, dimension, approach and answer source, for four small tables."""
    names = (
        (_("Dimension"), "dimensions"),
        (_("Approach of the rationale"), "approaches"),
        (_("Source of the answer"), "answer_sources"),
    )
    return [(_("Split"), version.splits), *((title, version.summary.get(name, {})) for title, name in names)]
