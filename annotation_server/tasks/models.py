"""The queue: a task is one sample on one dimension; a slot is one wanted vote on it, claimed under a lease.

Beside it what people say about a task instead of an answer (Flag), and where each person's search for work begins
(QueueCursor). Not here: claiming (services.py), answers (annotations/models.py).
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from annotation_server.projects.models import Project
from annotation_server.samples.models import Sample
from trainer.contract.dimensions import DIMENSIONS
from trainer.contract.dimensions import Dimension as ContractDimension


class Task(models.Model):
    """The unit that is queued, claimed, annotated, resolved."""

    class Dimension(models.TextChoices):
        """The words of the contract, as choices."""

        APPEARANCE_DEFORMATION = ContractDimension.APPEARANCE_DEFORMATION.value, "Appearance deformation"
        PHYSICAL_SHADOW = ContractDimension.PHYSICAL_SHADOW.value, "Physical shadow"
        PLACEMENT_LAYOUT = ContractDimension.PLACEMENT_LAYOUT.value, "Placement and layout"
        EXTENSION_RATIONALITY = ContractDimension.EXTENSION_RATIONALITY.value, "Extension rationality"

    class State(models.TextChoices):
        """OPEN has no answer that stands; DISPUTED has all its votes and no agreement; RESOLVED has a Resolution."""

        OPEN = "open", _("Open")
        DISPUTED = "disputed", _("Disputed")
        RESOLVED = "resolved", _("Resolved")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="tasks")
    sample = models.ForeignKey(Sample, on_delete=models.CASCADE, related_name="tasks")
    dimension = models.CharField(max_length=24, choices=Dimension)
    candidate_count = models.PositiveSmallIntegerField(help_text="Of its sample: what an answer may contain.")
    state = models.CharField(max_length=8, choices=State, default=State.OPEN)
    asking = models.BooleanField(default=True, help_text="Some slot is unfilled. Set with the state, by settling.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(name="dimension_once_per_sample", fields=("sample", "dimension")),
            models.CheckConstraint(
                name="task_dimension_is_known", condition=Q(dimension__in=[d.value for d in DIMENSIONS])
            ),
        )
        indexes = (
            models.Index(name="task_by_state", fields=("project", "state", "id")),
            # Tasks with an answer about which somebody may still be asked: open to some, and few.
            models.Index(
                name="task_still_asking", fields=("project", "id"), condition=Q(asking=True) & ~Q(state="open")
            ),
        )

    def __str__(self) -> str:
        return f"{self.sample}:{self.dimension}"


class Slot(models.Model):
    """One wanted vote. A claim is a lease on a slot: a token and an expiry.

    Ordinals from EXTRA on are no wanted votes but checks, each for one person: given back, such a slot is gone.
    """

    EXTRA = 1000

    class State(models.TextChoices):
        """OPEN can be claimed; CLAIMED too once its lease has expired; DONE holds a vote."""

        OPEN = "open"
        CLAIMED = "claimed"
        DONE = "done"

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="slots")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="slots")
    ordinal = models.PositiveSmallIntegerField(help_text="Which vote of the task, from 0.")
    priority = models.IntegerField(default=0, help_text="Higher is claimed first.")
    position = models.BigIntegerField(help_text="Order within a priority, by sample or by dimension.")
    state = models.CharField(max_length=8, choices=State, default=State.OPEN)
    person = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="slots",
        help_text="Who holds or filled it. Empty on an open slot, and on one filled by an import.",
    )  # fmt: skip
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    claimed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(name="slot_ordinal_once_per_task", fields=("task", "ordinal")),
            models.UniqueConstraint(
                name="one_slot_per_task_and_person", fields=("task", "person"), condition=Q(person__isnull=False)
            ),
            models.CheckConstraint(
                name="claimed_slot_has_a_person_and_a_lease",
                condition=~Q(state="claimed")
                | Q(person__isnull=False, lease_token__isnull=False, lease_expires_at__isnull=False),
            ),
            models.CheckConstraint(
                name="open_slot_has_nobody",
                condition=~Q(state="open") | Q(person__isnull=True, lease_token__isnull=True),
            ),
        )
        indexes = (
            models.Index(
                name="slot_queue",
                fields=("project", "-priority", "position", "ordinal"),
                condition=Q(state__in=("open", "claimed")),
            ),
            models.Index(name="slot_held", fields=("person", "project"), condition=Q(state="claimed")),
            models.Index(name="slot_expiring", fields=("project", "lease_expires_at"), condition=Q(state="claimed")),
        )

    def __str__(self) -> str:
        return f"{self.task} vote {self.ordinal + 1} ({self.state})"


class QueueCursor(models.Model):
    """Where a person's search for work begins: nothing they hold and no slot that is free for them stands before it.

    Without it, everybody who votes faster than the others would walk past all their own tasks at every claim. Whatever
    makes a slot free again, or puts one in front, moves the cursors behind it back (tasks/services.py).
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    priority = models.IntegerField()
    position = models.BigIntegerField()
    empty_until = models.DateTimeField(
        null=True, help_text="The whole queue had nothing for them: not walked again before then."
    )

    class Meta:
        constraints = (models.UniqueConstraint(name="one_cursor_per_person", fields=("project", "person")),)

    def __str__(self) -> str:
        return f"{self.person} in {self.project}: {self.priority}/{self.position}"


class Flag(models.Model):
    """What a person says about a task instead of an answer (skipped), or beside it: something is wrong with it."""

    class Reason(models.TextChoices):
        """Ours."""

        UNCLEAR = "unclear", _("I cannot tell")
        IMAGE = "image", _("An image is broken or does not belong")
        GUIDELINES = "guidelines", _("The guidelines do not cover it")
        OTHER = "other", _("Something else")

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="flags")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="flags")
    reason = models.CharField(max_length=10, choices=Reason)
    note = models.CharField(max_length=500, blank=True)
    skipped = models.BooleanField(help_text="The person gave the task back and is not asked again.")
    created_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True, help_text="When somebody who manages or reviews had dealt with it.")
    closed_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        constraints = (
            models.UniqueConstraint(name="one_flag_per_task_and_person", fields=("task", "person", "skipped")),
        )
        indexes = (models.Index(name="flag_open", fields=("task",), condition=Q(closed_at=None)),)

    def __str__(self) -> str:
        return f"{self.task}: {self.reason}"
