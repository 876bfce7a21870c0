"""Django's entry to the app; nothing else."""

from django.apps import AppConfig


class TasksConfig(AppConfig):
    """annotation_server.tasks."""

    name = "annotation_server.tasks"
