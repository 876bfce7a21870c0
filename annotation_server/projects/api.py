"""The API about projects, and about whoever asks."""

from __future__ import annotations

from decimal import Decimal

from django.core.exceptions import PermissionDenied
from ninja import Field, Router, Schema

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.projects.access import access_to, may_create_projects, projects_of
from annotation_server.projects.models import Project
from annotation_server.projects.services import create_project
from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity

router = Router(tags=["projects"])


class MembershipOut(Schema):
    project: str
    role: str


class MeOut(Schema):
    username: str
    name: str
    administrator: bool
    memberships: list[MembershipOut]


class ProjectOut(Schema):
    slug: str
    name: str
    dimensions: list[str]
    polarity: str
    guidelines: str
    overlap: int
    resolution_rule: str
    rationale_required: bool
    queue_order: str
    shuffle_candidates: bool
    gold_rate: float
    gold_floor: float | None
    """Null: nobody is paused."""
    gold_window: int
    lease_seconds: int
    rationale_min_words: int
    rationale_max_words: int | None
    near_copy: float | None
    """Null or 0: near-copies are not looked for."""
    blind_resolve: bool


class ProjectIn(Schema):
    """The settings that matter at the start; the rest has defaults and is changed on the project's page."""

    slug: str
    name: str
    dimensions: list[Dimension] = Field(list(DIMENSIONS), min_length=1)
    polarity: Polarity = Polarity.ACCEPTABLE
    guidelines: str = ""
    overlap: int = Field(1, ge=1, le=25)
    resolution_rule: Project.ResolutionRule = Project.ResolutionRule.UNANIMITY
    rationale_required: bool = False
    queue_order: Project.QueueOrder = Project.QueueOrder.SAMPLE
    shuffle_candidates: bool = False
    gold_rate: float = Field(0.05, ge=0, le=0.5)
    gold_floor: float | None = Field(None, ge=0, le=1)
    gold_window: int = Field(20, ge=5, le=1000)
    lease_seconds: int = Field(300, ge=10)
    model_confidence: float | None = Field(None, ge=0, le=1)
    rationale_min_words: int = Field(8, ge=0, le=32_767)
    rationale_max_words: int | None = Field(600, ge=1, le=1_000_000)
    near_copy: float | None = Field(0.8, ge=0, le=1)
    blind_resolve: bool = False
    hourly_wage: Decimal | None = Field(None, ge=0, max_digits=8, decimal_places=2)
    """USD; said where approaches are compared, not to annotators."""
    validation_share: float = Field(0.05, ge=0, le=1)
    test_share: float = Field(0.05, ge=0, le=1)


@router.get("/me", response=MeOut)
def me(request: AuthenticatedRequest) -> MeOut:
    person = request.user
    memberships = person.memberships.select_related("project").order_by("project__slug")
    return MeOut(
        username=person.username,
        name=str(person),
        administrator=person.is_superuser,
        memberships=[MembershipOut(project=row.project.slug, role=row.role) for row in memberships],
    )


@router.get("/projects", response=list[ProjectOut])
def list_projects(request: AuthenticatedRequest) -> list[Project]:
    return list(projects_of(request.user))


@router.post("/projects", response={201: ProjectOut})
def new_project(request: AuthenticatedRequest, payload: ProjectIn) -> Project:
    if not may_create_projects(request.user):
        raise PermissionDenied("Only administrators and managers of a project create projects.")
    fields = payload.model_dump(mode="json", exclude={"slug"})
    return create_project(person=request.user, slug=payload.slug, fields=fields)


@router.get("/projects/{slug}", response=ProjectOut)
def get_project(request: AuthenticatedRequest, slug: str) -> Project:
    return access_to(request.user, slug).project
