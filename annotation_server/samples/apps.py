"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class SamplesConfig(AppConfig):
    """annotation_server.samples."""

    name = "annotation_server.samples"
