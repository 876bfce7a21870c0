"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class AnnotationsConfig(AppConfig):
    """annotation_server.annotations."""

    name = "annotation_server.annotations"
