"""The task browser: a filtered list by keyset, and a task with what this person may read about it."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import render
from django.views.decorators.http import require_GET

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.forms import TaskFilterForm
from annotation_server.annotations.models import GoldAnswer, Resolution
from annotation_server.annotations.selectors import (
    PAGE_ROWS,
    annotations_shown,
    pictures_of,
    shows_answers,
    task_in,
    task_rows,
    task_rows_shown,
)
from annotation_server.projects.access import access_to


@login_required
@require_GET
def task_list(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug)
    form = TaskFilterForm(request.GET)
    filters = form.filters()
    rows = task_rows(access, **filters)
    page = rows[:PAGE_ROWS]
    next_page = QueryDict(mutable=True)
    if len(rows) > PAGE_ROWS:
        next_page.update({**filters, "after": str(page[-1].task.pk)})
    context = {"access": access, "form": form, "rows": page, "filters": filters, "next_page": next_page.urlencode()}
    return render(request, "annotations/tasks.html", context)


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
            "shown": shown,
            "resolution": Resolution.objects.filter(task=task).first() if shown else None,
            "gold": GoldAnswer.objects.filter(task=task).first() if shown else None,
        },
    )
