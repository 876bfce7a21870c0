"""Django's entry to the app, and the one place where it listens: the end of its jobs."""

from django.apps import AppConfig


class RunsConfig(AppConfig):
    """annotation_server.runs."""

    name = "annotation_server.runs"

    def ready(self) -> None:
        """Jobs know nothing of runs; runs hear of their jobs' ends through the signal."""
        from annotation_server.jobs.models import Job
        from annotation_server.jobs.services import job_settled
        from annotation_server.runs.services import on_job_settled

        job_settled.connect(on_job_settled, sender=Job, dispatch_uid="runs")
