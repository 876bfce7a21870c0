"""Model versions: what training brought back. One comes back to work as an endpoint, so as an annotator.

Not here: launching training (its own issue); the trainer itself, which knows no Django.
"""

from __future__ import annotations

from django.db import models

from annotation_server.datasets.models import DatasetVersion
from annotation_server.runs.models import Endpoint


class ModelVersion(models.Model):
    """A run directory of the trainer: the version it learnt from, what it scored, and the endpoint that serves it."""

    name = models.SlugField(max_length=60, unique=True)
    run_dir = models.CharField(max_length=500)
    method = models.CharField(max_length=10, help_text="sft or grpo.")
    dataset_version = models.ForeignKey(
        DatasetVersion, null=True, on_delete=models.PROTECT, related_name="model_versions"
    )
    evaluation = models.JSONField(default=dict, help_text="The run's evaluation.json.")
    endpoint = models.OneToOneField(Endpoint, null=True, on_delete=models.SET_NULL, related_name="model_version")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name
