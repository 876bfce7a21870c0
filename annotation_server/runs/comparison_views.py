"""The page that compares the three approaches, and its table as CSV. For those who may see answers.

It shows sums and shares, never what anybody said about a task. Not here: the figures (comparison.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.csv_files import csv_response
from annotation_server.annotations.models import Approach
from annotation_server.projects.access import Capability, access_to
from annotation_server.runs.comparison import ALL, Choice, Comparison, Line, Measure, Reference, choose, compare
from annotation_server.runs.comparison_forms import ComparisonForm
from annotation_server.runs.comparison_table import COLUMNS, row
from annotation_server.runs.correctness import NOTHING

COUNTED_AT_ONCE = 50_000
"""Tasks; more of them take longer than anybody waits before a blank page (seconds: docs/log.md)."""

Point = dict[str, object]
"""What the plot is given: a name, a class of the stylesheet, where it is, how far it may be off."""


@login_required
@require_GET
def approaches_page(request: AuthenticatedRequest, slug: str) -> HttpResponse:
    """All at once; of a large project first the frame, whose figures htmx asks for."""
    access = access_to(request.user, slug, Capability.SEE_ANSWERS)
    query = request.GET.urlencode()
    in_parts = request.htmx  # type: ignore[attr-defined]  # its middleware's
    number = access.project.tasks.count()
    if number > COUNTED_AT_ONCE and not in_parts:
        return render(request, "runs/approaches.html", {"access": access, "number": number, "query": query})
    form = ComparisonForm(request.GET, project=access.project)
    comparison = compare(access.project, shared=form.shared, endpoint=form.chosen_endpoint)
    reference, measure = form.reference_for(comparison), form.chosen_measure
    choice = choose(comparison, form.wanted, reference, measure)
    shown = [ALL, *comparison.dimensions] if len(comparison.dimensions) > 1 else comparison.dimensions
    context = {
        "access": access,
        "form": form,
        "comparison": comparison,
        "sections": [_section(comparison, dimension, reference, measure) for dimension in shown],
        "tasks": sum(comparison.tasks.values()),
        "untried": [label for name, label in Approach.choices if name not in comparison.tried],
        "gold": comparison.measured(Reference.GOLD),
        "choice": choice,
        "frontier": _frontier(comparison, choice),
        "caveats": sorted({endpoint.caveat for endpoint in comparison.endpoints} - {""}),
        "query": query,
    }
    template = "runs/_approaches.html" if in_parts else "runs/approaches.html"
    return render(request, template, context, status=200 if form.is_valid() else 422)


@login_required
@require_GET
def approaches_csv(request: AuthenticatedRequest, slug: str) -> StreamingHttpResponse:
    """The table under the same choices as the page."""
    access = access_to(request.user, slug, Capability.SEE_ANSWERS)
    form = ComparisonForm(request.GET, project=access.project)
    comparison = compare(access.project, shared=form.shared, endpoint=form.chosen_endpoint)
    return csv_response(f"{slug}-approaches.csv", COLUMNS, (row(line) for line in comparison.lines))


def _section(
    comparison: Comparison, dimension: str, reference: Reference, measure: Measure
) -> dict[str, str | int | Sequence[object]]:
    lines = comparison.of(dimension)
    number = sum(comparison.tasks.values()) if dimension == ALL else comparison.tasks.get(dimension, 0)
    points = list(_points(lines, reference, measure))
    return {"dimension": dimension, "lines": lines, "tasks": number, "points": points}


def _points(lines: Sequence[Line], reference: Reference, measure: Measure) -> Iterator[Point]:
    """Approaches whose cost and quality are known. What copies people's answers is as right as they are."""
    of_people = next((line.right(reference, measure) for line in lines if line.approach == Approach.MANUAL), NOTHING)
    for line in lines:
        right, name = line.right(reference, measure), str(Approach(line.approach).label)
        if right.value is None and line.approach == Approach.ANSWER_DRIVEN:
            right, name = of_people, f"{name} *"
        if line.cost_usd is not None and right.value is not None:
            place: Point = {"x": line.cost_usd, "y": right.value, "low": right.low, "high": right.high}
            yield place | {"name": name, "kind": line.approach}


def _frontier(comparison: Comparison, choice: Choice) -> list[Point]:
    """The mixes worth choosing, the chosen one marked."""
    return [
        {"x": mix.cost, "y": mix.quality, "name": "", "kind": "chosen" if mix is choice.chosen else "mix"}
        for mix in choice.mixes
    ]
