"""Disputed tasks, and the page on which an adjudicator decides one with every vote side by side."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.decisions import adjudicate as decide
from annotation_server.annotations.forms import DecisionForm
from annotation_server.annotations.selectors import (
    PAGE_ROWS,
    annotations_shown,
    disputed_tasks,
    next_disputed,
    pictures_of,
    shows_answers,
    task_in,
    votes_by_task,
)
from annotation_server.annotations.services import AnnotationRefused
from annotation_server.projects.access import Capability, access_to
from annotation_server.tasks.models import Task


@login_required
@require_GET
def disputed(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.REVIEW)
    asked = request.GET.get("after", "")
    after = int(asked) if asked.isdecimal() else 0
    found = list(disputed_tasks(access.project, after)[: PAGE_ROWS + 1])
    tasks = found[:PAGE_ROWS]
    votes = votes_by_task(access, tasks)
    context = {
        "access": access,
        "rows": [{"task": task, "votes": votes[task.pk]} for task in tasks],
        "after": after,
        "next": tasks[-1].pk if len(found) > PAGE_ROWS else None,
    }
    return render(request, "annotations/disputed.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def adjudicate(request: AuthenticatedRequest, slug: str, task_id: int) -> HttpResponse:
    access = access_to(request.user, slug, Capability.REVIEW)
    task = task_in(access.project, task_id)
    if task is None:
        raise Http404
    if not shows_answers(access, task):
        raise PermissionDenied(_("You may still be asked to vote on this task: deciding it would show you the votes."))
    form = DecisionForm(request.POST, task=task) if request.method == "POST" else DecisionForm.blank(task=task)
    if form.is_bound and form.is_valid():
        try:
            decide(
                task=task,
                answer=form.answer(),
                rationale=form.cleaned_data["rationale"],
                person=request.user,
                idempotency_key=form.cleaned_data["idempotency_key"],
            )
        except AnnotationRefused as refused:
            form.add_error(None, str(refused))
        else:
            messages.success(request, _("%(task)s is decided.") % {"task": task})
            following = next_disputed(access, task.pk)
            if following is None:
                return redirect("annotations:disputed", slug)
            return redirect("annotations:adjudicate", slug, following.pk)
    return render(
        request,
        "annotations/adjudicate.html",
        {
            "access": access,
            "task": task,
            "disputed": task.state == Task.State.DISPUTED,
            "form": form,
            "pictures": pictures_of(task.sample),
            "annotations": annotations_shown(access, task),
            "following": next_disputed(access, task.pk),
        },
        status=422 if form.errors else 200,
    )
