"""Images by content, and the samples made of them: an original and its candidates.

Not here: bytes (storage.py), verifying and reading them (images.py), reading import files (importers.py).
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from annotation_server.projects.models import Project
from trainer.contract.dimensions import DIMENSIONS, LETTERS


class Image(models.Model):
    """A verified picture, addressed by the sha256 of its stored bytes. Shared by every sample that shows it."""

    sha256 = models.CharField(max_length=64, unique=True)
    source_sha256 = models.CharField(max_length=64, help_text="Of the bytes as received, before metadata was removed.")
    extension = models.CharField(max_length=5, help_text="Of the verified format: jpg, png or webp.")
    width = models.PositiveIntegerField(help_text="Upright pixels: after the EXIF orientation is applied.")
    height = models.PositiveIntegerField(help_text="Upright pixels: after the EXIF orientation is applied.")
    size = models.PositiveBigIntegerField(help_text="Stored bytes.")
    created_at = models.DateTimeField(auto_now_add=True)
    withdrawn_at = models.DateTimeField(null=True, help_text="Taken down: the bytes are gone, the row stays.")

    class Meta:
        indexes = (models.Index(name="image_source", fields=("source_sha256",)),)

    def __str__(self) -> str:
        return self.sha256[:12]

    @property
    def path(self) -> str:
        """Where the bytes lie, in storage and in an export: ``images/ab/<sha256>.<extension>``."""
        return f"images/{self.sha256[:2]}/{self.sha256}.{self.extension}"


class ImportBatch(models.Model):
    """One import of a source into a project: what was asked, what came of it."""

    class State(models.TextChoices):
        """An import is one of these; FAILED says why in `error` and has written no sample."""

        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="import_batches")
    source = models.CharField(max_length=500, help_text="A samples.jsonl, or a directory with a folder per sample.")
    name = models.CharField(max_length=200, help_text="Who the answers that came with the data are attributed to.")
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    created_samples = models.PositiveIntegerField(default=0)
    unchanged_samples = models.PositiveIntegerField(default=0)
    created_images = models.PositiveIntegerField(default=0)
    imported_annotations = models.PositiveIntegerField(default=0)
    gold_answers = models.PositiveIntegerField(default=0)
    notes = models.TextField(blank=True, help_text="What was done differently than one might expect, a line each.")
    error = models.TextField(blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.source} ({self.state})"


class Sample(models.Model):
    """One original with its candidates."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="samples")
    external_id = models.CharField(max_length=200)
    original = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="samples_as_original")
    content_sha256 = models.CharField(
        max_length=64, help_text="Of the images in order: importing the same thing twice is recognised by it."
    )
    meta = models.JSONField(default=dict)
    batch = models.ForeignKey(ImportBatch, null=True, on_delete=models.SET_NULL, related_name="samples")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = (models.UniqueConstraint(name="external_id_once_per_project", fields=("project", "external_id")),)

    def __str__(self) -> str:
        return self.external_id


class Candidate(models.Model):
    """An image generated from the original, with its letter."""

    sample = models.ForeignKey(Sample, on_delete=models.CASCADE, related_name="candidates")
    letter = models.CharField(max_length=1)
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="samples_as_candidate")

    class Meta:
        ordering = ("letter",)
        constraints = (
            models.UniqueConstraint(name="letter_once_per_sample", fields=("sample", "letter")),
            models.CheckConstraint(name="candidate_letter_is_a_to_h", condition=Q(letter__in=list(LETTERS))),
        )

    def __str__(self) -> str:
        return f"{self.sample} {self.letter}"


class Example(models.Model):
    """A candidate that a project's guidelines show beside its original, for people to learn a dimension from.

    Not everybody may see it at once: who may still vote on a task that shows the picture would learn its answer
    (annotations/examples.py).
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="examples")
    dimension = models.CharField(max_length=24)
    original = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="+")
    image = models.ForeignKey(Image, on_delete=models.PROTECT, related_name="+")
    caption = models.CharField(max_length=300)
    flawed = models.BooleanField()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                name="example_once_per_project_and_dimension", fields=("project", "dimension", "image")
            ),
            models.CheckConstraint(
                name="example_dimension_is_known", condition=Q(dimension__in=[d.value for d in DIMENSIONS])
            ),
        )

    def __str__(self) -> str:
        return self.caption
