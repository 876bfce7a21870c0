"""The administrators' page of background jobs. What a job does for a project is shown on that project's pages."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from annotation_server.jobs.selectors import newest_jobs

JOBS_SHOWN = 100


@login_required
@require_GET
def job_list(request: HttpRequest) -> HttpResponse:
    if not request.user.is_superuser:
        raise PermissionDenied
    template = "jobs/_jobs.html" if request.htmx else "jobs/list.html"  # type: ignore[attr-defined]  # its middleware's
    return render(request, template, {"jobs": newest_jobs(JOBS_SHOWN), "limit": JOBS_SHOWN})
