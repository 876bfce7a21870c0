"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """annotation_server.training."""

    name = "annotation_server.training"
