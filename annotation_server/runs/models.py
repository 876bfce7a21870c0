"""The ledger of model annotation: endpoints, runs, their tasks, every call (attempt) and its raw response.

An attempt is committed before its call, the response after it, parsing comes last: no paid call is ever forgotten.
Not here: calling (annotation_workers/model_client.py); keys: an endpoint names the environment variable that holds one.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from annotation_server.annotations.fields import AnswerField
from annotation_server.annotations.models import Annotation, Annotator, Approach
from annotation_server.projects.models import Project
from annotation_server.tasks.models import Task


def http_url(value: str) -> None:
    """A validator: Django's own refuses the names of a private network, such as http://vllm:8000/v1."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or value != "".join(value.split()):
        raise ValidationError("Expected http://host:port/v1 or https://host/v1.")


class Endpoint(models.Model):
    """An OpenAI-compatible server and one model on it."""

    name = models.SlugField(max_length=60, unique=True)
    base_url = models.CharField(max_length=500, validators=[http_url], help_text="Up to and including /v1.")
    model = models.CharField(max_length=200)
    api_key_env = models.CharField(
        max_length=80,
        blank=True,
        help_text=_("Name of the environment variable that holds the key; the key is never stored."),
    )
    annotator = models.ForeignKey(Annotator, on_delete=models.PROTECT, related_name="endpoints")
    input_price = models.DecimalField(
        max_digits=12,
        decimal_places=6,
        default=0,
        validators=[MinValueValidator(0)],
        help_text=_("USD per million tokens."),
    )
    output_price = models.DecimalField(
        max_digits=12,
        decimal_places=6,
        default=0,
        validators=[MinValueValidator(0)],
        help_text=_("USD per million tokens."),
    )
    concurrency = models.PositiveSmallIntegerField(default=8, validators=[MinValueValidator(1)])
    timeout_seconds = models.PositiveIntegerField(default=120, validators=[MinValueValidator(1)])
    image_side = models.PositiveIntegerField(
        default=1024, help_text=_("Images are sent at most this many pixels long.")
    )
    caveat = models.CharField(max_length=300, blank=True, help_text=_("Shown wherever its answers are."))
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Run(models.Model):
    """A batch of model annotation: one endpoint, one prompt version, one approach, a budget, a fixed set of tasks."""

    class State(models.TextChoices):
        """PAUSED can go on; the last three are final. FAILED stopped for a reason no retry mends."""

        WAITING = "waiting"
        RUNNING = "running"
        PAUSED = "paused"
        DONE = "done"
        CANCELLED = "cancelled"
        FAILED = "failed"

    GOING = (State.WAITING, State.RUNNING)
    LIVE = (State.WAITING, State.RUNNING, State.PAUSED)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.PROTECT, related_name="runs")
    approach = models.CharField(max_length=13, choices=Approach)
    prompt_version = models.CharField(max_length=40)
    temperature = models.FloatField(default=0.0)
    max_tokens = models.PositiveIntegerField(default=512)
    max_attempts = models.PositiveSmallIntegerField(default=3, help_text="Calls per task before it is given up.")
    budget_usd = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    state = models.CharField(max_length=9, choices=State, default=State.WAITING)
    error = models.CharField(max_length=500, blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.CheckConstraint(name="run_is_by_a_model", condition=Q(approach__in=("automated", "answer_driven"))),
        )

    def __str__(self) -> str:
        return f"run {self.pk} ({self.approach}, {self.endpoint})"


class RunChunk(models.Model):
    """Some of a run's tasks, worked by one job. Progress and spend are summed here, so that nothing counts rows."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="chunks")
    ordinal = models.PositiveIntegerField()
    tasks = models.PositiveIntegerField()
    accepted = models.PositiveIntegerField(default=0)
    rejected = models.PositiveIntegerField(default=0, help_text="Given up: every attempt was refused.")
    failed = models.PositiveIntegerField(default=0, help_text="Given up: no attempt was answered.")
    calls = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=8, default=0)
    reserved_usd = models.DecimalField(
        max_digits=14, decimal_places=8, default=0, help_text="Estimated cost of the calls that are on their way."
    )

    class Meta:
        constraints = (models.UniqueConstraint(name="chunk_ordinal_once_per_run", fields=("run", "ordinal")),)

    def __str__(self) -> str:
        return f"{self.run} chunk {self.ordinal}"


class RunTask(models.Model):
    """One task of a run and what became of it."""

    class State(models.TextChoices):
        """WAITING until accepted, or given up after the run's attempts."""

        WAITING = "waiting"
        ACCEPTED = "accepted"
        REJECTED = "rejected"
        FAILED = "failed"

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="run_tasks")
    chunk = models.ForeignKey(RunChunk, on_delete=models.CASCADE, related_name="run_tasks")
    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="run_tasks")
    given_answer = AnswerField(  # type: ignore[misc]  # the plugin reads null=True for its own fields only
        null=True, help_text="Answer-driven: the answer whose reasoning is wanted."
    )
    given_from = models.ForeignKey(
        Annotation, null=True, on_delete=models.SET_NULL, related_name="+",
        help_text="The vote the given answer was copied from; empty where it was gold or the resolution.",
    )  # fmt: skip
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    reason = models.CharField(max_length=60, blank=True, help_text="Why it was given up, in a countable word.")
    annotation = models.ForeignKey(Annotation, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        constraints = (
            models.UniqueConstraint(name="task_once_per_run", fields=("run", "task")),
            models.CheckConstraint(
                name="accepted_run_task_has_an_annotation", condition=~Q(state="accepted") | Q(annotation__isnull=False)
            ),
        )
        indexes = (models.Index(name="run_task_by_chunk", fields=("chunk", "state")),)

    def __str__(self) -> str:
        return f"{self.run}: {self.task}"


class Attempt(models.Model):
    """One call of a run about one task. Committed before the call is made."""

    class Outcome(models.TextChoices):
        """What is known of the call.

        SENT: not answered yet. UNKNOWN: cut by a kill or a timeout, perhaps charged. ANSWERED: response kept, not yet
        judged; the reasoning stays so until its re-solve has been judged. ACCEPTED and REJECTED: judged. READ: a
        re-solve that could be read, whatever it says of the reasoning. ERROR: the endpoint answered with an error.
        """

        SENT = "sent"
        UNKNOWN = "unknown"
        ANSWERED = "answered"
        ACCEPTED = "accepted"
        REJECTED = "rejected"
        READ = "read"
        ERROR = "error"

    run_task = models.ForeignKey(RunTask, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveSmallIntegerField(help_text="Which call about this task, from 1.")
    resolves = models.ForeignKey(
        "self", null=True, on_delete=models.CASCADE, related_name="resolved_by",
        help_text="Blind re-solve: the attempt whose reasoning this call was shown, without its answer.",
    )  # fmt: skip
    request_id = models.UUIDField(unique=True, help_text="Sent along as X-Request-ID, so that a charge can be matched.")
    outcome = models.CharField(max_length=8, choices=Outcome, default=Outcome.SENT)
    reason = models.CharField(max_length=60, blank=True, help_text="Of a rejection or error, in a countable word.")
    detail = models.CharField(max_length=500, blank=True)
    http_status = models.PositiveSmallIntegerField(null=True)
    input_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=8, default=0)
    latency_ms = models.PositiveIntegerField(null=True)
    sent_at = models.DateTimeField(auto_now_add=True)
    answered_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(name="attempt_number_once", fields=("run_task", "number")),)

    def __str__(self) -> str:
        return f"{self.run_task} attempt {self.number} ({self.outcome})"


class RawResponse(models.Model):
    """What an endpoint sent back, word for word, apart from the attempts because it is large and seldom read."""

    attempt = models.OneToOneField(Attempt, primary_key=True, on_delete=models.CASCADE, related_name="response")
    body = models.TextField()

    def __str__(self) -> str:
        return f"response to {self.attempt}"


class WordingKey(models.Model):
    """By which near-copies of an accepted reasoning are found. A key belongs to the first task that has it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+", db_index=False)
    key = models.BigIntegerField(help_text="A hash of some of its words (near_copies.py).")
    run_task = models.ForeignKey(RunTask, on_delete=models.CASCADE, related_name="wording_keys")

    class Meta:
        constraints = (models.UniqueConstraint(name="wording_key_has_one_owner", fields=("project", "key")),)

    def __str__(self) -> str:
        return f"key of {self.run_task}"


class EndpointTest(models.Model):
    """One connection test of an endpoint, made by a job: what it answered to a tiny request."""

    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="tests")
    ok = models.BooleanField(null=True, help_text="Empty until the job has run.")
    report = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"test of {self.endpoint}"
