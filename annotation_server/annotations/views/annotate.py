"""The annotating page: the workbench's shell and everything it needs to know; tasks come and go through the API.

Not here: what happens in the browser (static/js/workbench.js), what comes next (../queue.py).
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.projects.guidelines import phrases_of
from annotation_server.projects.wording import DIMENSION_HINTS, DIMENSION_LABELS
from annotation_server.tasks.models import Flag

BEATS_PER_LEASE = 4
"""The page says it is alive this often within one lease, so that two lost beats lose nothing."""

HELD_AHEAD = 4
"""Tasks the page holds: the one that is shown, and those it prepares. A sample's dimensions, as a rule."""


@login_required
@never_cache
@require_GET
def annotate(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.ANNOTATE)
    return render(
        request, "annotations/annotate.html", {"access": access, "setup": _setup(access), "reasons": Flag.Reason}
    )


def _setup(access: Access) -> dict[str, Any]:
    """What the page's script reads once."""
    project = access.project
    return {
        "project": project.slug,
        "person": access.person.pk,
        "username": access.person.username,
        "api": "/api/v1",
        "images": reverse("samples:image", args=["0" * 64]),
        "previews": reverse("samples:preview", args=["0" * 64]),
        "sign_in": reverse("accounts:sign_in"),
        "polarity": project.polarity,
        "rationale_required": project.rationale_required,
        "hold": HELD_AHEAD,
        "beat_seconds": max(project.lease_seconds // BEATS_PER_LEASE, 1),
        "keys": access.person.preferences.get("keys", {}),
        "dimensions": {
            dimension.value: {
                "label": str(DIMENSION_LABELS[dimension]),
                "hint": str(DIMENSION_HINTS[dimension]),
                "guidelines": reverse("annotations:guidelines_of", args=[project.slug, dimension.value]),
                "phrases": phrases_of(project, dimension),
            }
            for dimension in project.judged
        },
    }
