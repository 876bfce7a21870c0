"""Job rows: every unit of background work, its lease, progress and error. The database is the truth, the broker wakes.

Not here: recording, claiming and finishing jobs (services.py), doing the work (annotation_workers/jobs.py).
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _


class JobKind(models.TextChoices):
    """The names under which the workers register their Celery tasks; the server never imports them."""

    IMPORT_BATCH = "annotation_workers.jobs.import_batch", _("Import samples")
    PREPARE_RUN = "annotation_workers.jobs.prepare_run", _("Prepare a run")
    ANNOTATE_CHUNK = "annotation_workers.jobs.annotate_chunk", _("Annotate with a model")
    BATCH_CHUNK = "annotation_workers.jobs.batch_chunk", _("Annotate through a model’s Batch API")
    TEST_ENDPOINT = "annotation_workers.jobs.test_endpoint", _("Test an endpoint")
    FREEZE_VERSION = "annotation_workers.jobs.freeze_version", _("Freeze a version")
    EXPORT_VERSION = "annotation_workers.jobs.export_version", _("Export a version")


class Job(models.Model):
    """One piece of work on one object. Idempotent: running it again after a crash finishes what is left."""

    class State(models.TextChoices):
        """QUEUED waits for a worker, RUNNING is held under a lease, the others are final."""

        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    LIVE = (State.QUEUED, State.RUNNING)

    kind = models.CharField(max_length=80, choices=JobKind)
    object_id = models.BigIntegerField(
        help_text="Primary key of the row the job works on; the kind says in which table."
    )
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    due_at = models.DateTimeField(help_text="Not before this moment: retries are due later.")
    sent_at = models.DateTimeField(null=True, help_text="When a worker was last woken for it.")
    lease_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    tries = models.PositiveIntegerField(default=0, help_text="How often a worker has started it.")
    max_tries = models.PositiveIntegerField(default=5)
    progress_done = models.PositiveIntegerField(default=0)
    progress_total = models.PositiveIntegerField(default=0, help_text="0 while unknown.")
    message = models.CharField(max_length=500, blank=True, help_text="What it is doing, or did, in one line.")
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                name="one_live_job_per_object",
                fields=("kind", "object_id"),
                condition=Q(state__in=("queued", "running")),
            ),
            models.CheckConstraint(
                name="running_job_has_a_lease",
                condition=~Q(state="running") | Q(lease_token__isnull=False, lease_expires_at__isnull=False),
            ),
        )
        indexes = (
            models.Index(name="job_live", fields=("due_at",), condition=Q(state__in=("queued", "running"))),
            models.Index(name="job_of_object", fields=("kind", "object_id", "-id")),
        )

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.object_id} ({self.state})"
