"""Writing projects and memberships.

Not here: samples and tasks (samples/services.py, tasks/services.py); who may call these (access.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import audit
from annotation_server.projects.models import Membership, Project
from trainer.contract.dimensions import Dimension

EDITABLE = (
    "name",
    "dimensions",
    "polarity",
    "guidelines",
    "overlap",
    "resolution_rule",
    "rationale_required",
    "queue_order",
    "shuffle_candidates",
    "gold_rate",
    "gold_floor",
    "gold_window",
    "lease_seconds",
    "show_pre_annotations",
    "model_confidence",
    "rationale_min_words",
    "rationale_max_words",
    "near_copy",
    "blind_resolve",
    "hourly_wage",
    "validation_share",
    "test_share",
)


_queue_order_changed: list[Callable[[Project], None]] = []


def on_queue_order(act: Callable[[Project], None]) -> None:
    """What is to happen in the transaction that changes a project's queue order.

    The queue stands above this app, which therefore cannot call it: it registers itself (tasks/apps.py).
    """
    _queue_order_changed.append(act)


def create_project(*, person: Person, slug: str, fields: Mapping[str, Any]) -> Project:
    """A new project; its creator manages it. Raises ValidationError naming the field."""
    project = Project(slug=slug, **{name: fields[name] for name in EDITABLE if name in fields})
    project.full_clean()
    with transaction.atomic():
        project.save()
        Membership.objects.create(project=project, person=person, role=Membership.Role.MANAGER)
        audit(person=person, verb="project.create", subject=project, slug=slug)
    return project


def edit_project(*, person: Person, project: Project, fields: Mapping[str, Any]) -> None:
    """Change a project's settings. Raises ValidationError naming the field."""
    changes = {name: fields[name] for name in EDITABLE if name in fields and fields[name] != getattr(project, name)}
    if "polarity" in changes and project.tasks.filter(annotations__isnull=False).exists():
        # Every recorded answer lists letters in the old polarity: changing the word would turn them all around.
        raise ValidationError({"polarity": "Answers have been given: the polarity of this project cannot change."})
    for name, value in changes.items():
        setattr(project, name, value)
    project.full_clean()
    with transaction.atomic():
        project.save(update_fields=list(changes))
        if "queue_order" in changes:
            for act in _queue_order_changed:
                act(project)
        audit(person=person, verb="project.edit", subject=project, changed=sorted(changes))


def edit_guidelines(*, person: Person, project: Project, dimension: Dimension, text: str, phrases: list[str]) -> None:
    """Set a dimension's own text and phrases; empty ones mean ours."""
    with transaction.atomic():
        locked = Project.objects.select_for_update().get(pk=project.pk)
        for field, value in ((locked.dimension_guidelines, text), (locked.phrases, phrases)):
            field.pop(dimension.value, None)
            if value:
                field[dimension.value] = value
        locked.save(update_fields=["dimension_guidelines", "phrases"])
        audit(person=person, verb="project.guidelines", subject=project, dimension=dimension.value)


def set_member(*, person: Person, project: Project, member: Person, role: str) -> Membership:
    """Give somebody a role in the project, instead of the one they may have."""
    with transaction.atomic():
        membership, _created = Membership.objects.update_or_create(
            project=project, person=member, defaults={"role": Membership.Role(role)}
        )
        audit(person=person, verb="member.set", subject=project, member=member.username, role=role)
    return membership


def remove_member(*, person: Person, project: Project, member_id: int) -> bool:
    """Take somebody's role away; False when they have none. Their annotations stay."""
    membership = Membership.objects.select_related("person").filter(project=project, person_id=member_id).first()
    if membership is None:
        return False
    with transaction.atomic():
        membership.delete()
        audit(person=person, verb="member.remove", subject=project, member=membership.person.username)
    return True
