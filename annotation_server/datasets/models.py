"""Dataset versions: immutable, content-addressed snapshots of resolved tasks, and their exports.

Not here: building records (freeze.py), writing a directory (exports.py); the export's format is trainer.contract's.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from annotation_server.projects.models import Project
from annotation_server.samples.models import Image
from trainer.contract.dimensions import Split as ContractSplit


class Split(models.TextChoices):
    """The words of the contract, as choices."""

    TRAIN = ContractSplit.TRAIN.value
    VALIDATION = ContractSplit.VALIDATION.value
    TEST = ContractSplit.TEST.value


class DatasetVersion(models.Model):
    """A frozen set of records. The records themselves lie in storage, one canonical line each, under the id."""

    class State(models.TextChoices):
        """Only a FROZEN version has an id; a FAILED one says why and may be deleted."""

        FREEZING = "freezing"
        FROZEN = "frozen"
        FAILED = "failed"

    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="versions")
    name = models.CharField(max_length=120)
    state = models.CharField(max_length=8, choices=State, default=State.FREEZING)
    version_id = models.CharField(max_length=64, blank=True, help_text="sha256 of the content.")
    polarity = models.CharField(max_length=12, choices=Project.Polarity)
    prompt_versions = models.JSONField(default=dict)
    splits = models.JSONField(default=dict, help_text="Records per split.")
    summary = models.JSONField(default=dict, help_text="Counts per dimension, approach and answer source, for pages.")
    error = models.TextField(blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    frozen_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(name="version_name_once_per_project", fields=("project", "name")),
            models.CheckConstraint(name="frozen_version_has_an_id", condition=~Q(state="frozen") | ~Q(version_id="")),
        )
        indexes = (models.Index(name="version_by_id", fields=("version_id",)),)

    def __str__(self) -> str:
        return f"{self.project.slug}/{self.name}"


class SplitAssignment(models.Model):
    """The side an original is on, kept for every later version. Gold moves an original out of train, never into it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="split_assignments")
    original = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="+")
    split = models.CharField(max_length=10, choices=Split)

    class Meta:
        constraints = (models.UniqueConstraint(name="one_side_per_original", fields=("project", "original")),)

    def __str__(self) -> str:
        return f"{self.original} in {self.split}"


class Export(models.Model):
    """A directory written from a version by a job, under the home's exports/."""

    class State(models.TextChoices):
        """DONE has a complete directory; FAILED has none."""

        WAITING = "waiting"
        DONE = "done"
        FAILED = "failed"

    version = models.ForeignKey(DatasetVersion, on_delete=models.CASCADE, related_name="exports")
    format = models.CharField(max_length=20, default="native")
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    directory = models.CharField(max_length=500, blank=True)
    error = models.TextField(blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.version} as {self.format}"
