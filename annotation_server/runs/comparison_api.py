"""The API about the three approaches: the figures of the page that compares them, for those who may see answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

from ninja import Field, Query, Router, Schema

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.errors import invalid
from annotation_server.projects.access import Capability, access_to
from annotation_server.runs.comparison import Measure, Reference, choose, compare
from annotation_server.runs.comparison_forms import WANTED
from annotation_server.runs.comparison_table import choice_figures, figures
from annotation_server.runs.models import Endpoint

router = Router(tags=["runs"])


class Asked(Schema):
    tasks: Literal["shared", "all"] = "shared"
    """Shared: those that all approaches worked on."""
    endpoint: str = ""
    """Empty: all of them."""
    quality: float = Field(WANTED, ge=0, le=1)
    reference: Reference | None = None
    """Null: gold where any answer can be held against it, else others."""
    measure: Measure = Measure.EXACT


class LineOut(Schema):
    """One approach in one dimension, or in all. Null is what is not known; costs are per accepted record."""

    dimension: str
    """`all`: of all together."""
    approach: str
    asked: int
    accepted: int
    acceptance: float | None
    cost_usd: float | None
    people_usd: float | None
    token_usd: float | None
    unknown_calls: int
    gold_answers: int
    gold_tasks: int
    gold_exact: float | None
    gold_exact_low: float | None
    gold_exact_high: float | None
    gold_credit: float | None
    gold_credit_low: float | None
    gold_credit_high: float | None
    others_answers: int
    others_tasks: int
    others_exact: float | None
    others_exact_low: float | None
    others_exact_high: float | None
    others_credit: float | None
    others_credit_low: float | None
    others_credit_high: float | None
    given_gold: int
    person_seconds: float | None
    median_person_seconds: float | None
    model_seconds: float | None
    median_model_seconds: float | None
    with_rationale: float | None
    words_low: float | None
    words_median: float | None
    words_high: float | None
    rationales_read: int
    variety: float | None
    variety_of: int
    nearly_the_same: float | None


class OptionOut(Schema):
    dimension: str
    approach: str
    then: str
    """What the first pass leaves goes on to this approach; empty: nothing does."""
    confidence: float | None
    left: float
    cost_usd: float
    quality: float
    borrowed: bool
    """Its quality is that of the people's answers which it copies."""


class MixOut(Schema):
    cost_usd: float
    quality: float
    choices: list[OptionOut]


class ChoiceOut(Schema):
    reference: str
    measure: str
    wanted: float
    chosen: MixOut | None
    """Null: no mix reaches it."""
    frontier: list[MixOut]
    left_out: list[str]
    """Dimensions of which no approach has both a cost and a quality."""


class ComparisonOut(Schema):
    shared: bool
    tasks: dict[str, int]
    looked_at: int
    """Of more than 50,000 tasks so many are drawn."""
    hourly_wage: Decimal | None
    tried: list[str]
    lines: list[LineOut]
    mix: ChoiceOut


@router.get("/projects/{slug}/approaches", response=ComparisonOut)
def compare_approaches(request: AuthenticatedRequest, slug: str, filters: Query[Asked]) -> dict[str, Any]:
    """What the approaches cost and achieve per dimension, and the cheapest mix that reaches a quality."""
    project = access_to(request.user, slug, Capability.SEE_ANSWERS).project
    endpoint = Endpoint.objects.filter(name=filters.endpoint, runs__project=project).first()
    if filters.endpoint and endpoint is None:
        raise invalid(f"No endpoint {filters.endpoint!r} has a run in this project.", "endpoint")
    found = compare(project, shared=filters.tasks == "shared", endpoint=endpoint)
    reference = filters.reference or found.best_reference
    return {
        "shared": found.shared,
        "tasks": dict(found.tasks),
        "looked_at": found.looked_at,
        "hourly_wage": found.hourly_wage,
        "tried": list(found.tried),
        "lines": [figures(line) for line in found.lines],
        "mix": choice_figures(choose(found, filters.quality, reference, filters.measure)),
    }
