"""The API about quality: agreement per dimension, everybody's work, pausing and resuming.

The same figures and the same doors as the pages (views/quality.py).
"""

from __future__ import annotations

from django.http import Http404
from ninja import Field, Router, Schema

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.accuracy import Checked, pause, resume
from annotation_server.annotations.agreement import Estimate
from annotation_server.annotations.quality import coefficients, pairs, people, said_by_task
from annotation_server.projects.access import Capability, access_to

router = Router(tags=["quality"])


class CoefficientOut(Schema):
    dimension: str
    coefficient: str
    """percent, percent_candidate, fleiss, alpha, alpha_masi; cohen for a pair."""
    annotators: list[str]
    """Of a pair; empty: everybody."""
    value: float | None
    """Null where it is undefined."""
    low: float | None
    high: float | None
    tasks: int


class PersonOut(Schema):
    username: str
    role: str
    answered: int
    median_seconds: float | None
    skips: int
    flags: int
    paused: str
    """Why; empty for who is not paused."""
    gold_answers: int
    gold_exact: float | None
    gold_exact_by_dimension: dict[str, float | None]
    same_as_others: float | None


class PauseIn(Schema):
    why: str = Field("", max_length=200)


class ChangedOut(Schema):
    changed: bool
    """False when it was so already."""


@router.get("/projects/{slug}/agreement", response=list[CoefficientOut])
def get_agreement(request: AuthenticatedRequest, slug: str) -> list[CoefficientOut]:
    """Every coefficient of every dimension, and Cohen's kappa of the busiest pairs."""
    project = access_to(request.user, slug, Capability.SEE_ANSWERS).project
    found = []
    for dimension in project.dimensions:
        said = said_by_task(project, dimension)
        found += [_coefficient(dimension, line.name, [], line.estimate) for line in coefficients(said)]
        for pair in pairs(said):
            found.append(_coefficient(dimension, "cohen", [pair.first.name, pair.second.name], pair.estimate))
    return found


@router.get("/projects/{slug}/people", response=list[PersonOut])
def get_people(request: AuthenticatedRequest, slug: str) -> list[PersonOut]:
    """Everybody's work in the project, for those who review."""
    project = access_to(request.user, slug, Capability.REVIEW).project
    found = []
    for line in people(project, checked=True):
        member = line.membership
        gold = line.gold.overall if line.gold else Checked()
        dimensions = line.gold.dimensions if line.gold else {}
        found.append(
            PersonOut(
                username=line.person.username,
                role=member.role if member else "",
                answered=line.answered,
                median_seconds=line.seconds,
                skips=line.skips,
                flags=line.flags,
                paused=(member.paused_why or "paused") if member and member.paused_at else "",
                gold_answers=gold.answers,
                gold_exact=gold.share,
                gold_exact_by_dimension={name: checked.share for name, checked in dimensions.items()},
                same_as_others=line.with_others.share if line.with_others else None,
            )
        )
    return found


@router.post("/projects/{slug}/people/{username}/pause", response=ChangedOut)
def pause_person(request: AuthenticatedRequest, slug: str, username: str, payload: PauseIn) -> ChangedOut:
    """Give somebody no more tasks."""
    project = access_to(request.user, slug, Capability.REVIEW).project
    membership = project.memberships.select_related("person").filter(person__username=username).first()
    if membership is None:
        raise Http404("Nobody of this name is a member of the project.")
    return ChangedOut(changed=pause(project, membership.person, payload.why, by=request.user))


@router.post("/projects/{slug}/people/{username}/resume", response=ChangedOut)
def resume_person(request: AuthenticatedRequest, slug: str, username: str) -> ChangedOut:
    """Give somebody tasks again."""
    project = access_to(request.user, slug, Capability.REVIEW).project
    membership = project.memberships.select_related("person").filter(person__username=username).first()
    if membership is None:
        raise Http404("Nobody of this name is a member of the project.")
    return ChangedOut(changed=resume(project, membership.person, by=request.user))


def _coefficient(dimension: str, name: str, annotators: list[str], estimate: Estimate) -> CoefficientOut:
    return CoefficientOut(
        dimension=dimension,
        coefficient=name,
        annotators=annotators,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        tasks=estimate.clusters,
    )
