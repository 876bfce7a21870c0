"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """annotation_server.jobs."""

    name = "annotation_server.jobs"
