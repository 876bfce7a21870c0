"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class RunsConfig(AppConfig):
    """annotation_server.runs."""

    name = "annotation_server.runs"
