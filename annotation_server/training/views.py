"""The list of model versions: what training brought back. Launching training has its own issue."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.projects.access import may_use_endpoints
from annotation_server.training.models import ModelVersion


@login_required
@require_GET
def models(request: AuthenticatedRequest) -> HttpResponse:
    if not may_use_endpoints(request.user):
        raise PermissionDenied
    versions = ModelVersion.objects.select_related("dataset_version__project", "endpoint").order_by("-pk")
    return render(request, "training/models.html", {"models": versions})
