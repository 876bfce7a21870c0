"""The ledger of model annotation: endpoints and their pace, runs, their tasks, every call (attempt), its raw response.

An attempt is committed before its call, the response after it, parsing comes last: no paid call is ever forgotten.
Not here: calling (annotation_workers/model_client.py); keys: an endpoint names the environment variable that holds one.
"""

from __future__ import annotations

import uuid
from decimal import Decimal
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
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


class Feature(models.TextChoices):
    """What an endpoint may or may not be able to do. A connection test finds out, a person may know better."""

    DATA_URI = "data_uri", _("Images as data URIs")
    IMAGE_URL = "image_url", _("Images by address")
    JSON_SCHEMA = "json_schema", _("Answers in a JSON schema")
    LOGPROBS = "logprobs", _("Log-probabilities")
    CHOICES = "choices", _("Several completions of one request (n)")
    BATCHES = "batches", _("Batches (files, 24 hours)")


class Endpoint(models.Model):
    """An OpenAI-compatible server and one model on it."""

    class ImagesAs(models.TextChoices):
        """How images reach the model: inside the request, or fetched from PUBLIC_URL by a signed address."""

        DATA_URI = "data_uri", _("inside the request (data URIs)")
        URL = "url", _("by a signed address that expires")

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
    cached_input_price = models.DecimalField(
        max_digits=12,
        decimal_places=6,
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=_("USD per million tokens that the endpoint had in its cache. Empty: as other input."),
    )
    batch_price = models.DecimalField(
        max_digits=5,
        decimal_places=4,
        default=Decimal("0.5"),
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text=_("What a request in a batch costs, as a share of these prices. At OpenAI: 0.5."),
    )
    concurrency = models.PositiveSmallIntegerField(default=8, validators=[MinValueValidator(1)])
    requests_per_minute = models.PositiveIntegerField(default=0, help_text=_("For all workers together. 0: no limit."))
    tokens_per_minute = models.PositiveIntegerField(
        default=0, help_text=_("Input and output, for all workers together. 0: no limit.")
    )
    timeout_seconds = models.PositiveIntegerField(default=120, validators=[MinValueValidator(1)])
    image_side = models.PositiveIntegerField(
        default=1024, help_text=_("Images are sent at most this many pixels long.")
    )
    images_as = models.CharField(max_length=8, choices=ImagesAs, default=ImagesAs.DATA_URI)
    caveat = models.CharField(max_length=300, blank=True, help_text=_("Shown wherever its answers are."))
    found = models.JSONField(default=dict, blank=True, help_text="Feature to yes or no, as the last test found it.")
    overrides = models.JSONField(default=dict, blank=True, help_text="Feature to yes or no, as somebody said it is.")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name

    def can(self, feature: Feature) -> bool:
        """What somebody said, else what the last test found; untested, an endpoint reads data URIs and no more."""
        known: dict[str, bool] = {Feature.DATA_URI.value: True} | self.found | self.overrides
        return known.get(feature.value, False)


class Pace(models.Model):
    """How fast an endpoint is being called just now, by all workers together: one row, locked while calls are granted.

    Empty moments are long ago, an empty `at_once` is the endpoint's concurrency.
    """

    endpoint = models.OneToOneField(Endpoint, primary_key=True, on_delete=models.CASCADE, related_name="pace")
    requests_free_at = models.DateTimeField(null=True, help_text="When the requests of so far are worked off.")
    tokens_free_at = models.DateTimeField(null=True, help_text="When the tokens of so far are worked off.")
    at_once = models.FloatField(null=True, help_text="Calls at once that it has proved to bear: grows, and is halved.")
    resting_until = models.DateTimeField(null=True, help_text="It asked for fewer calls: none begins before.")
    slowed_at = models.DateTimeField(null=True, help_text="When it last did. A call sent before then says nothing new.")
    busy_rounds = models.PositiveIntegerField(default=0, help_text="How often in a row, with no answer in between.")

    def __str__(self) -> str:
        return f"pace of {self.endpoint}"


class Run(models.Model):
    """A batch of model annotation: one endpoint, one prompt version, one approach, a budget, a fixed set of tasks."""

    class State(models.TextChoices):
        """PREPARING: its tasks are being written down. PAUSED can go on; the last three are final. FAILED stopped for
        a reason no retry mends."""

        PREPARING = "preparing"
        WAITING = "waiting"
        RUNNING = "running"
        PAUSED = "paused"
        DONE = "done"
        CANCELLED = "cancelled"
        FAILED = "failed"

    GOING = (State.PREPARING, State.WAITING, State.RUNNING)
    LIVE = (*GOING, State.PAUSED)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.PROTECT, related_name="runs")
    approach = models.CharField(max_length=13, choices=Approach)
    prompt_version = models.CharField(max_length=40)
    temperature = models.FloatField(default=0.0)
    max_tokens = models.PositiveIntegerField(default=512)
    max_attempts = models.PositiveSmallIntegerField(default=3, help_text="Calls per task before it is given up.")
    samples = models.PositiveSmallIntegerField(
        default=1, help_text="Completions per task: from two on, the answer most of them give is taken."
    )
    permute = models.BooleanField(default=False, help_text="Every sample shows the candidates in another order.")
    logprobs = models.BooleanField(
        default=False, help_text="Confidence from the probabilities of the answer's tokens, which responses then hold."
    )
    json_answers = models.BooleanField(default=False, help_text="Completions are asked for in a JSON schema.")
    batched = models.BooleanField(default=False, help_text="Asked through the endpoint's Batch API, not call by call.")
    budget_usd = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    budget_calls = models.PositiveIntegerField(null=True, blank=True)
    wanted = models.JSONField(default=dict, help_text="Which tasks were asked for; the preparation reads it.")
    prepared_at = models.DateTimeField(null=True, help_text="When the last of its tasks was written down.")
    state = models.CharField(max_length=9, choices=State, default=State.PREPARING)
    error = models.CharField(max_length=500, blank=True)
    going_since = models.DateTimeField(null=True, help_text="Since when workers are on it; empty while none may be.")
    went_seconds = models.FloatField(default=0.0, help_text="How long they were on it before that.")
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
    refusals = models.JSONField(default=dict, help_text="Attempts that were refused or failed, by reason.")
    calls = models.PositiveIntegerField(default=0)
    on_their_way = models.PositiveIntegerField(default=0, help_text="Of the calls, those not answered yet.")
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0, help_text="Of the input tokens.")
    output_tokens = models.PositiveBigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=8, default=0)
    reserved_usd = models.DecimalField(
        max_digits=14, decimal_places=8, default=0, help_text="Estimated cost of the calls that are on their way."
    )

    class Meta:
        constraints = (models.UniqueConstraint(name="chunk_ordinal_once_per_run", fields=("run", "ordinal")),)

    def __str__(self) -> str:
        return f"{self.run} chunk {self.ordinal}"


class RequestBatch(models.Model):
    """Requests of one chunk that an endpoint's Batch API gets at once; their attempts name it.

    `key` goes along as metadata: a batch whose making was cut off is found again by it, and never made twice.
    """

    class State(models.TextChoices):
        """WRITTEN: its attempts are committed. UPLOADED: its file is at the endpoint. OUT: the endpoint has made a
        batch of it. HOME: every one of its attempts knows what came of it."""

        WRITTEN = "written"
        UPLOADED = "uploaded"
        OUT = "out"
        HOME = "home"

    UNDER_WAY = (State.WRITTEN, State.UPLOADED, State.OUT)

    chunk = models.ForeignKey(RunChunk, on_delete=models.CASCADE, related_name="batches")
    key = models.UUIDField(unique=True, default=uuid.uuid4)
    state = models.CharField(max_length=8, choices=State, default=State.WRITTEN)
    file_id = models.CharField(max_length=200, blank=True, help_text="Of its requests, at the endpoint.")
    batch_id = models.CharField(max_length=200, blank=True, help_text="At the endpoint.")
    status = models.CharField(max_length=20, blank=True, help_text="In the endpoint's word.")
    requests = models.PositiveIntegerField(default=0)
    answered = models.PositiveIntegerField(default=0, help_text="Of them, as far as is known.")
    failed = models.PositiveIntegerField(default=0, help_text="Of them, as far as is known.")
    reserved_usd = models.DecimalField(
        max_digits=14, decimal_places=8, default=0, help_text="Held back from the run's budget until it is home."
    )
    ignored = models.JSONField(default=dict, help_text="Lines of its results that were left out, by reason.")
    trouble = models.CharField(max_length=500, blank=True, help_text="Why it does not get on just now.")
    looks = models.PositiveIntegerField(default=0, help_text="How often the endpoint was asked how far it is.")
    written_at = models.DateTimeField(auto_now_add=True)
    create_asked_at = models.DateTimeField(
        null=True, help_text="When the endpoint was last asked to make it, whatever it answered."
    )
    created_at = models.DateTimeField(null=True, help_text="When the endpoint made it.")
    expires_at = models.DateTimeField(null=True, help_text="When the endpoint gives up what is left of it.")
    cancel_asked_at = models.DateTimeField(null=True)
    home_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.CheckConstraint(name="batch_that_is_out_has_an_id", condition=~Q(state="out") | ~Q(batch_id="")),
        )

    def __str__(self) -> str:
        return f"{self.chunk} batch {self.pk} ({self.state})"


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
    batch = models.ForeignKey(
        RequestBatch, null=True, on_delete=models.CASCADE, related_name="attempts",
        help_text="Among whose requests it is; empty where it was a call of its own.",
    )  # fmt: skip
    shown = models.CharField(
        max_length=8, blank=True, help_text="The candidates in the order in which it showed them; empty: by letter."
    )
    request_id = models.UUIDField(
        unique=True, help_text="Sent along as X-Request-ID, in a batch as custom_id, so that a charge can be matched."
    )
    outcome = models.CharField(max_length=8, choices=Outcome, default=Outcome.SENT)
    reason = models.CharField(max_length=60, blank=True, help_text="Of a rejection or error, in a countable word.")
    detail = models.CharField(max_length=500, blank=True)
    http_status = models.PositiveSmallIntegerField(null=True)
    input_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0, help_text="Of the input tokens.")
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
    """One connection test of an endpoint, made by a job: what it answered to tiny requests, and what those took."""

    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="tests")
    ok = models.BooleanField(null=True, help_text="Empty until the job has run.")
    report = models.JSONField(default=dict)
    calls = models.PositiveSmallIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=8, default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"test of {self.endpoint}"
