"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class DatasetsConfig(AppConfig):
    """annotation_server.datasets."""

    name = "annotation_server.datasets"
