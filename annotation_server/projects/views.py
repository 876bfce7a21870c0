"""Pages about projects themselves: the list, settings, members.

Not here: the overview with its progress (annotations/views/overview.py, which may read tasks and annotations).
"""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.projects.access import Capability, access_to, may_create_projects, may_use_endpoints
from annotation_server.projects.forms import MemberForm, ProjectForm
from annotation_server.projects.selectors import members_of, projects_with_counts
from annotation_server.projects.services import create_project, edit_project, remove_member, set_member


@login_required
@require_GET
def project_list(request: AuthenticatedRequest) -> HttpResponse:
    return render(
        request,
        "projects/list.html",
        {
            "projects": projects_with_counts(request.user),
            "may_create": may_create_projects(request.user),
            "may_use_endpoints": may_use_endpoints(request.user),
        },
    )


@login_required
@require_http_methods(["GET", "POST"])
def create(request: AuthenticatedRequest) -> HttpResponse:
    if not may_create_projects(request.user):
        raise PermissionDenied(_("Only administrators and managers of a project create projects."))
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            project = create_project(person=request.user, slug=form.cleaned_data["slug"], fields=form.cleaned_data)
        except ValidationError as refused:
            form.add_error(None, refused)
        else:
            return redirect("annotations:overview", project.slug)
    return render(request, "projects/create.html", {"form": form}, status=422 if form.errors else 200)


@login_required
@require_http_methods(["GET", "POST"])
def settings(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.MANAGE)
    form = ProjectForm(request.POST or None, instance=access.project)
    if request.method == "POST" and form.is_valid():
        try:
            edit_project(person=request.user, project=access.project, fields=form.cleaned_data)
        except ValidationError as refused:
            form.add_error(None, refused)
        else:
            messages.success(request, _("Saved."))
            return redirect("projects:settings", slug)
    return render(
        request, "projects/settings.html", {"access": access, "form": form}, status=422 if form.errors else 200
    )


@login_required
@require_http_methods(["GET", "POST"])
def members(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug, Capability.MANAGE)
    form = MemberForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        set_member(person=request.user, project=access.project, member=form.member, role=form.cleaned_data["role"])
        return redirect("projects:members", slug)
    return render(
        request,
        "projects/members.html",
        {"access": access, "form": form, "members": members_of(access.project)},
        status=422 if form.errors else 200,
    )


@login_required
@require_POST
def remove(request: AuthenticatedRequest, slug: str, member_id: int) -> HttpResponse:
    access = access_to(request.user, slug, Capability.MANAGE)
    if not remove_member(person=request.user, project=access.project, member_id=member_id):
        raise Http404
    return redirect("projects:members", slug)
