"""Django's entry to the app, which ties the queue to the project settings it depends on."""

from django.apps import AppConfig


class TasksConfig(AppConfig):
    """annotation_server.tasks."""

    name = "annotation_server.tasks"

    def ready(self) -> None:
        """Models may be imported from here on."""
        from annotation_server.projects.services import on_queue_order
        from annotation_server.tasks.services import reorder_queue

        on_queue_order(reorder_queue)
