"""Who may do what in a project: one table, and the one door that pages and API go through.

Not here: blindness, which depends on the task (annotations/selectors.py); managing people (Django's admin).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404

from annotation_server.accounts.models import Person
from annotation_server.prepared import PreparedQuery
from annotation_server.projects.models import Membership, Project

Role = Membership.Role


class Capability(StrEnum):
    """What a role may be allowed. Seeing the project, its progress and its images comes with any role."""

    ANNOTATE = "annotate"
    SEE_ANSWERS = "see_answers"
    """Others' answers and gold, on tasks where one's own vote can no longer be swayed."""
    REVIEW = "review"
    """Decide what is disputed."""
    IMPORT = "import"
    RUN_MODELS = "run_models"
    FREEZE = "freeze"
    EXPORT = "export"
    """Write and download exports of a frozen version."""
    MANAGE = "manage"
    """Settings and members."""


CAPABILITIES: dict[Role, frozenset[Capability]] = {
    Role.MANAGER: frozenset(Capability),
    Role.REVIEWER: frozenset({Capability.ANNOTATE, Capability.SEE_ANSWERS, Capability.REVIEW}),
    Role.ANNOTATOR: frozenset({Capability.ANNOTATE}),
    Role.ML_ENGINEER: frozenset({Capability.SEE_ANSWERS, Capability.RUN_MODELS, Capability.EXPORT}),
}


@dataclass(frozen=True, slots=True)
class Access:
    """A person in a project, and what they may do there."""

    project: Project
    person: Person
    role: Role | None
    """None for an administrator who is no member."""
    capabilities: frozenset[Capability]

    def allows(self, capability: Capability) -> bool:
        return capability in self.capabilities

    @property
    def may(self) -> dict[str, bool]:
        """For templates: ``{% if access.may.review %}``."""
        return {capability.value: capability in self.capabilities for capability in Capability}


def access_to(person: Person, slug: str, *needed: Capability) -> Access:
    """The door. A stranger learns nothing, not even that the project exists (Http404); a member without a needed
    capability is refused (PermissionDenied)."""
    # One query for a member: every request of an annotator comes through here.
    membership = _membership.first(slug=slug, person=person.pk)
    project = membership.project if membership else None
    if project is None and person.is_superuser:
        project = Project.objects.filter(slug=slug).first()
    access = _access(person, project, membership) if project else None
    if access is None:
        raise Http404("There is no such project, or you are not a member of it.")
    for capability in needed:
        if not access.allows(capability):
            raise PermissionDenied(f"Your role in this project does not include: {capability.value.replace('_', ' ')}.")
    return access


_membership = PreparedQuery(
    lambda p: Membership.objects.select_related("project").filter(project__slug=p("slug"), person=p("person"))
)


def projects_of(person: Person) -> QuerySet[Project]:
    """The projects a person sees."""
    projects = Project.objects.order_by("name", "id")
    return projects if person.is_superuser else projects.filter(memberships__person=person)


def may_create_projects(person: Person) -> bool:
    """Administrators, and whoever manages a project already."""
    return person.is_superuser or person.memberships.filter(role=Role.MANAGER).exists()


def may_use_endpoints(person: Person) -> bool:
    """Endpoints belong to no project: whoever runs models anywhere may see and register them."""
    roles = [role for role, capabilities in CAPABILITIES.items() if Capability.RUN_MODELS in capabilities]
    return person.is_superuser or person.memberships.filter(role__in=roles).exists()


def may_name_keys(person: Person) -> bool:
    """Administrators only: an endpoint sends the named environment variable to its address, so whoever pairs the two
    could have any secret of the server's environment sent anywhere."""
    return person.is_superuser


def _access(person: Person, project: Project, membership: Membership | None) -> Access | None:
    role = Role(membership.role) if membership else None
    if person.is_superuser:
        return Access(project, person, role, frozenset(Capability))
    return Access(project, person, role, CAPABILITIES[role]) if role else None
