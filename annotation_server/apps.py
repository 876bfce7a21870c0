"""The house as a Django app: it holds the shared templates, static files and system checks, and no models."""

from django.apps import AppConfig


class AnnotationServerConfig(AppConfig):
    name = "annotation_server"
    verbose_name = "Winnow"

    def ready(self) -> None:
        from annotation_server import checks  # noqa: F401 - importing it registers the checks
