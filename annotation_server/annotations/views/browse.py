"""The task browser: a filtered list by keyset, and a task with what this person may read about it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.csv_files import csv_response
from annotation_server.annotations.forms import TaskFilterForm
from annotation_server.annotations.models import GoldAnswer, Resolution
from annotation_server.annotations.quality import open_flags
from annotation_server.annotations.selectors import (
    PAGE_ROWS,
    TaskFilter,
    annotations_shown,
    pictures_of,
    shows_answers,
    task_in,
    task_rows,
    task_rows_shown,
    tasks_shown_to,
)
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.tasks.flags import close_flags
from annotation_server.tasks.services import prioritise

_CSV_AT_ONCE = 1000


@login_required
@require_GET
def task_list(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug)
    form = TaskFilterForm(request.GET, access=access)
    wanted, filters = form.wanted(), form.address()
    after, before = form.cleaned_data.get("after") or 0, form.cleaned_data.get("before") or 0
    rows = task_rows(access, wanted, after=after, before=before)
    more = len(rows) > PAGE_ROWS
    page = (rows[1:] if before else rows[:-1]) if more else rows
    tasks = [row.task for row in page]
    flags = open_flags(tasks) if access.allows(Capability.REVIEW) else {}
    context = {
        "access": access,
        "form": form,
        "rows": [{"row": row, "flags": flags.get(row.task.pk, [])} for row in page],
        "filtered": bool(filters),
        "query": urlencode(filters),
        "next": urlencode(filters | {"after": tasks[-1].pk}) if tasks and (more or before) else "",
        "previous": urlencode(filters | {"before": tasks[0].pk}) if tasks and (after or (before and more)) else "",
    }
    return render(request, "annotations/tasks.html", context)


@login_required
@require_GET
def task_csv(request: AuthenticatedRequest, slug: str) -> StreamingHttpResponse:
    """Every task that the browser would show under the same filters, as one table."""
    access = access_to(request.user, slug)
    wanted = TaskFilterForm(request.GET, access=access).wanted()
    header = ("task", "sample", "dimension", "candidates", "state", "answer", "answered by", "agreement")
    return csv_response(f"{slug}-tasks.csv", header, _task_lines(access, wanted))


def _task_lines(access: Access, wanted: TaskFilter) -> Iterator[tuple[object, ...]]:
    after = 0
    while True:
        rows = task_rows(access, wanted, after=after, rows=_CSV_AT_ONCE)
        page = rows[:_CSV_AT_ONCE]
        shown = tasks_shown_to(access, [row.task.pk for row in page])
        found = {each.task_id: each for each in Resolution.objects.filter(task__in=shown)}
        for row in page:
            said = found.get(row.task.pk)
            known = ("".join(sorted(said.answer)) or "none", said.source, said.agreement) if said else ("", "", None)
            task = row.task
            yield (task.pk, task.sample.external_id, task.dimension, task.candidate_count, row.state, *known)
        if len(rows) <= _CSV_AT_ONCE:
            return
        after = page[-1].task.pk


@login_required
@require_POST
def put_first(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    """Give what is still to be done of the ticked tasks a priority above everything else, or the ordinary one again."""
    access = access_to(request.user, slug, Capability.MANAGE)
    ids = [int(value) for value in request.POST.getlist("task") if value.isdecimal()]
    moved = prioritise(access.project, ids, 0 if "ordinary" in request.POST else 1)
    messages.success(request, _("%(number)d wanted votes moved.") % {"number": moved})
    return redirect(f"{reverse('annotations:tasks', args=[slug])}?{request.POST.get('query', '')}")


@login_required
@require_POST
def close(request: AuthenticatedRequest, slug: str, task_id: int) -> HttpResponse:
    """Somebody has dealt with what was said about a task."""
    access = access_to(request.user, slug, Capability.REVIEW)
    task = task_in(access.project, task_id)
    if task is None:
        raise Http404
    close_flags(task, request.user)
    messages.success(request, _("Closed."))
    return redirect("annotations:task", slug, task_id)


@login_required
@require_GET
def task_page(request: AuthenticatedRequest, slug: str, task_id: int) -> HttpResponse:
    access = access_to(request.user, slug)
    task = task_in(access.project, task_id)
    if task is None:
        raise Http404
    shown = shows_answers(access, task)
    return render(
        request,
        "annotations/task.html",
        {
            "access": access,
            "task": task,
            "state": task_rows_shown(access, [task])[0].state,
            "pictures": pictures_of(task.sample),
            "annotations": annotations_shown(access, task),
            "flags": open_flags([task])[task.pk] if access.allows(Capability.REVIEW) else [],
            "shown": shown,
            "resolution": Resolution.objects.filter(task=task).first() if shown else None,
            "gold": GoldAnswer.objects.filter(task=task).first() if shown else None,
        },
    )
