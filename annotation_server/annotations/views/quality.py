"""Pages about the quality of what comes in: who does how much and how well, and how far people agree.

Everybody's figures are for those who manage or review. An annotator sees their own work, without what compares it with
gold or with others: that would tell which tasks were checks. Not here: the figures (../quality.py, ../agreement.py).
"""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_POST

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.accuracy import pause, resume
from annotation_server.annotations.csv_files import csv_response
from annotation_server.annotations.quality import PersonLine, coefficients, pairs, people, said_by_task
from annotation_server.projects.access import Access, Capability, access_to

COEFFICIENT_LABELS = {
    "percent": gettext_lazy("Same answer, share of pairs"),
    "percent_candidate": gettext_lazy("Same per candidate, share of pairs"),
    "fleiss": gettext_lazy("Fleiss’ kappa, per candidate"),
    "alpha": gettext_lazy("Krippendorff’s alpha, per candidate"),
    "alpha_masi": gettext_lazy("Krippendorff’s alpha, whole answers (MASI)"),
}


@login_required
@require_GET
def people_page(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    access = access_to(request.user, slug)
    context = {"access": access, "lines": _people(access), "everybody": _sees_everybody(access)}
    return render(request, "annotations/people.html", context)


@login_required
@require_GET
def people_csv(request: AuthenticatedRequest, slug: str) -> StreamingHttpResponse:
    access = access_to(request.user, slug)
    dimensions = access.project.dimensions
    header = ["person", "role", "answered", "median seconds", "skips", "flags", "paused"]
    if _sees_everybody(access):
        header += ["gold answers", "gold exact", *(f"gold exact, {name}" for name in dimensions), "same as others"]
    return csv_response(f"{slug}-people.csv", header, [_person_row(line, dimensions) for line in _people(access)])


def _person_row(line: PersonLine, dimensions: list[str]) -> list[object]:
    member = line.membership
    row: list[object] = [line.person.username, member.role if member else "", line.answered, line.seconds]
    row += [line.skips, line.flags, "yes" if member and member.paused_at else ""]
    if line.gold is not None and line.with_others is not None:
        row += [line.gold.overall.answers, line.gold.overall.share]
        checked = line.gold.dimensions
        row += [checked[name].share if name in checked else None for name in dimensions]
        row.append(line.with_others.share)
    return row


@login_required
@require_POST
def pause_or_resume(request: AuthenticatedRequest, slug: str, person_id: int, verb: str) -> HttpResponse:
    """Give somebody no more tasks, or tasks again."""
    access = access_to(request.user, slug, Capability.REVIEW)
    membership = get_object_or_404(access.project.memberships.select_related("person"), person=person_id)
    match verb:
        case "pause":
            changed = pause(access.project, membership.person, request.POST.get("why", "").strip(), by=request.user)
        case "resume":
            changed = resume(access.project, membership.person, by=request.user)
        case _other:
            raise Http404
    if changed:
        said = _("%(person)s is paused.") if verb == "pause" else _("%(person)s gets tasks again.")
        messages.success(request, said % {"person": membership.person})
    return redirect("annotations:people", slug)


@login_required
@require_GET
def agreement_page(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    """All dimensions, each with its coefficients; the pairs of the dimension that was asked for."""
    access = access_to(request.user, slug, Capability.SEE_ANSWERS)
    asked = request.GET.get("dimension", "")
    sections, shown = [], []
    for dimension in access.project.dimensions:
        said = said_by_task(access.project, dimension)
        lines = [{"label": COEFFICIENT_LABELS[line.name], "estimate": line.estimate} for line in coefficients(said)]
        sections.append({"dimension": dimension, "lines": lines, "tasks": sum(said.values())})
        if dimension == asked:
            shown = pairs(said)
    context = {"access": access, "sections": sections, "asked": asked, "pairs": shown}
    return render(request, "annotations/agreement.html", context)


@login_required
@require_GET
def agreement_csv(request: AuthenticatedRequest, slug: str) -> StreamingHttpResponse:
    access = access_to(request.user, slug, Capability.SEE_ANSWERS)
    rows: list[tuple[object, ...]] = []
    for dimension in access.project.dimensions:
        said = said_by_task(access.project, dimension)
        found = [(line.name, "", "", line.estimate) for line in coefficients(said)]
        found += [("cohen", pair.first.name, pair.second.name, pair.estimate) for pair in pairs(said)]
        for name, first, second, estimate in found:
            rows.append(
                (dimension, name, first, second, estimate.value, estimate.low, estimate.high, estimate.clusters)
            )
    header = ("dimension", "coefficient", "first", "second", "value", "low", "high", "tasks")
    return csv_response(f"{slug}-agreement.csv", header, rows)


def _people(access: Access) -> list[PersonLine]:
    if _sees_everybody(access):
        return people(access.project, checked=True)
    if not access.allows(Capability.ANNOTATE):
        raise PermissionDenied(_("Your role in this project does not include this."))
    return people(access.project, access.person, checked=False)


def _sees_everybody(access: Access) -> bool:
    return access.allows(Capability.MANAGE) or access.allows(Capability.REVIEW)
