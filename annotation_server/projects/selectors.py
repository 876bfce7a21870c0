"""Reading projects and their members. Progress is read where annotations are (annotations/selectors.py)."""

from __future__ import annotations

from django.db.models import Count, Q, QuerySet

from annotation_server.accounts.models import Person
from annotation_server.projects.access import projects_of
from annotation_server.projects.models import Membership, Project


def projects_with_counts(person: Person) -> QuerySet[Project]:
    """The person's projects, each with `task_count`, `resolved_count` and `disputed_count`."""
    return projects_of(person).annotate(
        task_count=Count("tasks"),
        resolved_count=Count("tasks", filter=Q(tasks__state="resolved")),
        disputed_count=Count("tasks", filter=Q(tasks__state="disputed")),
    )


def members_of(project: Project) -> QuerySet[Membership]:
    """Its members by name."""
    return project.memberships.select_related("person").order_by("person__username")
