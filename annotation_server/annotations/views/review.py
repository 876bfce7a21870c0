"""Reviewing: choose a queue, then one task at a time; accept, correct or reject what stands or what was said."""

from __future__ import annotations

from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.decisions import review as say
from annotation_server.annotations.forms import ReviewForm, ReviewQueueForm
from annotation_server.annotations.models import Annotation, Resolution
from annotation_server.annotations.review_queue import Item, annotators_to_review, next_item, queue_progress
from annotation_server.annotations.selectors import annotations_shown, pictures_of, shows_answers, task_in
from annotation_server.annotations.services import AnnotationRefused
from annotation_server.projects.access import Access, Capability, access_to

_VERDICTS = {
    "accepted": gettext_lazy("Accepted."),
    "corrected": gettext_lazy("Corrected."),
    "rejected": gettext_lazy("Rejected."),
}


@login_required
@require_http_methods(["GET", "POST"])
def review(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.REVIEW)
    chooser = ReviewQueueForm(request.GET if "kind" in request.GET else None, project=access.project)
    if not chooser.is_valid():
        return render(
            request,
            "annotations/review_choose.html",
            {"access": access, "form": chooser, "annotators": annotators_to_review(access.project)},
            status=422 if chooser.errors else 200,
        )
    queue, after = chooser.queue(), chooser.cleaned_data["after"] or 0
    here = f"{reverse('annotations:review', args=[slug])}?{urlencode(chooser.address())}"
    if request.method == "POST":
        item = _posted(access, request)
        form = ReviewForm(request.POST, task=item.task, before=_before(item))
        if form.is_valid() and _said(request, form, item):
            return redirect(f"{here}&after={chooser.cleaned_data['after'] or 0}")
    else:
        found = next_item(access, queue, after)
        if found is None:
            context = {"access": access, "progress": queue_progress(access, queue), "after": after, "queue": here}
            return render(request, "annotations/review_done.html", context)
        item = found
        form = ReviewForm.blank(task=item.task, before=_before(item))
    return render(
        request,
        "annotations/review.html",
        {
            "access": access,
            "task": item.task,
            "annotation": item.annotation,
            "resolution": Resolution.objects.select_related("rationale_from__annotator").filter(task=item.task).first(),
            "form": form,
            "pictures": pictures_of(item.task.sample),
            "annotations": annotations_shown(access, item.task),
            "progress": queue_progress(access, queue),
            "queue": here,
            "after": after,
            "next": f"{here}&after={item.after}",
        },
        status=422 if form.errors else 200,
    )


def _posted(access: Access, request: AuthenticatedRequest) -> Item:
    """What the posted verdict is about."""
    task_id, annotation_id = request.POST.get("task", ""), request.POST.get("annotation", "")
    task = task_in(access.project, int(task_id)) if task_id.isdecimal() else None
    if task is None:
        raise Http404
    if not shows_answers(access, task):
        raise PermissionDenied(_("You may still be asked to vote on this task: deciding it would show you the votes."))
    if not annotation_id:
        return Item(task, None, task.pk)
    annotation = task.annotations.filter(pk=int(annotation_id)).first() if annotation_id.isdecimal() else None
    if annotation is None:
        raise Http404
    return Item(task, annotation, annotation.pk)


def _before(item: Item) -> Annotation | Resolution | None:
    return item.annotation or Resolution.objects.select_related("rationale_from").filter(task=item.task).first()


def _said(request: AuthenticatedRequest, form: ReviewForm, item: Item) -> bool:
    try:
        say(
            task=item.task,
            annotation=item.annotation,
            verdict=form.cleaned_data["verdict"],
            person=request.user,
            reason=form.cleaned_data["reason"],
            answer=form.answer() if form.corrects else None,
            rationale=form.cleaned_data["rationale"],
            idempotency_key=form.cleaned_data["idempotency_key"],
        )
    except AnnotationRefused as refused:
        form.add_error(None, str(refused))
        return False
    messages.success(request, f"{item.task}: {_VERDICTS[form.cleaned_data['verdict']]}")
    return True
