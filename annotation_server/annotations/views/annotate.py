"""The annotating page: claim a task under a lease, judge it, submit, next.

Works as a plain form; htmx swaps the next task in, annotate.js keeps the lease and gives it back. The workbench (its
own issue) replaces what is inside `_judging.html`. Not here: claiming (tasks/services.py), recording (../services.py).
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.forms import AnswerForm, LeaseForm
from annotation_server.annotations.models import Annotation
from annotation_server.annotations.selectors import pictures_of, pre_annotations, queue_left, task_in
from annotation_server.annotations.services import AlreadyAnswered, AnnotationRefused, annotator_for, record_annotation
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.tasks.services import claim_next, extend_lease, release

BEATS_PER_LEASE = 4
"""The page says it is alive this often within one lease, so that two lost beats lose nothing."""


@login_required
@never_cache
@require_GET
def annotate(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.ANNOTATE)
    return render(request, "annotations/annotate.html", _next_task(access))


@login_required
@never_cache
@require_POST
def submit(request: AuthenticatedRequest, slug: str, task_id: int) -> HttpResponse:
    access = access_to(request.user, slug, Capability.ANNOTATE)
    task = task_in(access.project, task_id)
    if task is None:
        raise Http404
    form = AnswerForm(request.POST, task=task)
    if not form.is_valid():
        return _again(request, access, form)
    try:
        annotation = record_annotation(form.annotation(annotator_for(request.user)))
    except AlreadyAnswered:
        messages.warning(request, _("You had answered that task already; your first answer stands."))
    except AnnotationRefused as refused:
        form.add_error(None, str(refused))
        return _again(request, access, form)
    else:
        if annotation.standing == Annotation.Standing.SURPLUS:
            messages.warning(
                request,
                _(
                    "Your lease on that task had run out and its votes came from others: "
                    "your answer is kept as surplus and does not count."
                ),
            )
    if request.htmx:  # type: ignore[attr-defined]  # set by its middleware
        return render(request, "annotations/_judging.html", _next_task(access))
    return redirect("annotations:annotate", slug)


@login_required
@require_POST
def extend(request: AuthenticatedRequest, slot_id: int) -> HttpResponse:
    form = LeaseForm(request.POST)
    if form.is_valid() and extend_lease(slot_id, form.cleaned_data["lease_token"]):
        return HttpResponse(status=204)
    return HttpResponse(_("The lease is lost."), status=409, content_type="text/plain")


@login_required
@require_POST
def give_back(request: AuthenticatedRequest, slot_id: int) -> HttpResponse:
    form = LeaseForm(request.POST)
    if form.is_valid():
        # Not held any more is fine: leaving the page right after submitting says so too.
        release(slot_id, form.cleaned_data["lease_token"])
    return HttpResponse(status=204)


def _next_task(access: Access) -> dict[str, Any]:
    """What the page shows: the next task, or why there is none."""
    claim = claim_next(access.project, access.person)
    if claim is None:
        return {"access": access, "left": queue_left(access.project, access.person)}
    form = AnswerForm.blank(task=claim.task, slot_id=claim.slot_id, lease_token=claim.lease_token)
    return _shown(access, form) | {"slot_id": claim.slot_id}


def _again(request: AuthenticatedRequest, access: Access, form: AnswerForm) -> HttpResponse:
    """The same task with what was typed and what is wrong."""
    context = _shown(access, form) | {"slot_id": form.cleaned_data.get("slot_id")}
    template = "annotations/_judging.html" if request.htmx else "annotations/annotate.html"  # type: ignore[attr-defined]
    return render(request, template, context, status=422)


def _shown(access: Access, form: AnswerForm) -> dict[str, Any]:
    return {
        "access": access,
        "form": form,
        "task": form.task,
        "pictures": pictures_of(form.task.sample),
        "pre_annotations": pre_annotations(form.task),
        "beat_seconds": max(access.project.lease_seconds // BEATS_PER_LEASE, 1),
    }
