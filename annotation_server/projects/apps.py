"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    """annotation_server.projects."""

    name = "annotation_server.projects"
