"""A project's first page: how far each dimension is, and what to do next."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.models import Approach
from annotation_server.annotations.quality import per_day
from annotation_server.annotations.selectors import progress, resolution_sources
from annotation_server.projects.access import access_to


@login_required
@require_GET
def overview(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug)
    lines = progress(access.project)
    return render(
        request,
        "annotations/overview.html",
        {
            "access": access,
            "lines": lines,
            "tasks": sum(line.tasks for line in lines),
            "resolved": sum(line.resolved for line in lines),
            "disputed": sum(line.disputed for line in lines),
            "samples": access.project.samples.count(),
            "sources": sorted(resolution_sources(access.project).items()),
            "approaches": Approach.labels,
            "approach_choices": Approach.choices,
            "days": per_day(access.project),
        },
    )
