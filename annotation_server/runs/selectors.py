"""Reading runs: progress from the sums kept per chunk, reasons of refusals, what a worker needs of a chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal

from django.db.models import Max, Min, Prefetch, QuerySet, Sum
from django.utils import timezone
from django.utils.functional import Promise

from annotation_server.annotations.models import Approach
from annotation_server.jobs.models import Job, JobKind
from annotation_server.runs.costs import Spent, cost_of, input_tokens_of
from annotation_server.runs.models import Attempt, Endpoint, Feature, Run, RunChunk, RunTask
from annotation_server.runs.selection import Wanted, select_tasks
from annotation_server.runs.wording import CHECK_LABELS
from annotation_server.samples.models import Candidate, Image
from annotation_server.tasks.models import Task
from trainer.contract.feedback import Objection

_REFUSED = (Attempt.Outcome.REJECTED, Attempt.Outcome.ERROR, Attempt.Outcome.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run is, and what it has cost."""

    tasks: int
    accepted: int
    rejected: int
    failed: int
    calls: int
    input_tokens: int
    cached_tokens: int
    """Of the input tokens."""
    output_tokens: int
    cost_usd: Decimal
    tasks_per_second: float
    """While workers were on it; 0 before its first task is settled."""

    @property
    def settled(self) -> int:
        """Tasks that need no further call."""
        return self.accepted + self.rejected + self.failed

    @property
    def share(self) -> float:
        """Of its tasks, how many are settled: 0 to 1."""
        return self.settled / self.tasks if self.tasks else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None while there is none."""
        return (self.tasks - self.settled) / self.tasks_per_second if self.tasks_per_second else None

    @property
    def left(self) -> str:
        """The same for people, in hours, minutes and seconds; empty where it is not known, or there is nothing left."""
        return str(timedelta(seconds=round(self.seconds_left))) if self.seconds_left else ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would work on, and what it would cost at most if nothing had to be asked again."""

    tasks: int
    input_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    resolve_calls: int = 0
    """Blind re-solves: one for every reasoning that the other checks let pass, at most one a task."""
    resolve_cost_usd: Decimal = Decimal(0)
    """Of the cost."""


_LOOKED_AT = 100
"""Tasks from either end of a selection whose images are measured for an estimate: others will be like them."""


def estimate(
    wanted: Wanted, max_tokens: int = 512, samples: int = 1, *, permute: bool = False, batched: bool = False
) -> Estimate:
    """Tasks and cost of a run that has not been started: real sizes of images, replies of full length."""
    tasks = select_tasks(wanted).count()
    looked_at = _some_tasks(wanted)
    if not looked_at:
        return Estimate(0)
    endpoint = wanted.endpoint
    each = [input_tokens_of(endpoint, images_of(task)) for task in looked_at]
    once = sum(each) * tasks // len(each)
    # One request brings all samples where the endpoint can and they see the same: its images are paid for once.
    requests = 1 if endpoint.can(Feature.CHOICES) and not permute else samples
    asked = cost_of(endpoint, once * requests, tasks * samples * max_tokens, batched=batched)
    if wanted.approach != Approach.ANSWER_DRIVEN or not wanted.project.blind_resolve:
        return Estimate(tasks, once * requests, asked)
    again = once + tasks * max_tokens  # a whole completion goes in again
    resolved = cost_of(endpoint, again, tasks * max_tokens, batched=batched)
    return Estimate(tasks, once * requests + again, asked + resolved, resolve_calls=tasks, resolve_cost_usd=resolved)


def _some_tasks(wanted: Wanted) -> list[Task]:
    first = list(select_tasks(replace(wanted, limit=min(wanted.limit or _LOOKED_AT, _LOOKED_AT))).values_list("pk"))
    last: list[tuple[int]] = []
    if wanted.limit is None:
        last = list(select_tasks(wanted).order_by("-pk").values_list("pk")[:_LOOKED_AT])
    tasks = Task.objects.filter(pk__in={pk for (pk,) in first + last})
    return list(tasks.select_related("sample__original").prefetch_related(_CANDIDATES_WITH_IMAGES))


_CANDIDATES_WITH_IMAGES = Prefetch("sample__candidates", Candidate.objects.select_related("image"))


def images_of(task: Task) -> list[Image]:
    """A task's images as a prompt shows them: the original, then the candidates by letter."""
    return [task.sample.original, *(candidate.image for candidate in task.sample.candidates.all())]


def run_progress(run: Run) -> RunProgress:
    """Sums over the run's chunks: as many rows as there are chunks, however many tasks and calls there are."""
    names = ("tasks", "accepted", "rejected", "failed", "calls", "input_tokens", "cached_tokens", "output_tokens")
    sums = RunChunk.objects.filter(run=run).aggregate(*map(Sum, names), spent=Sum("cost_usd"))
    counts: dict[str, int] = {name: sums[f"{name}__sum"] or 0 for name in names}
    settled = counts["accepted"] + counts["rejected"] + counts["failed"]
    going = (timezone.now() - run.going_since).total_seconds() if run.going_since else 0.0
    seconds = run.went_seconds + going
    return RunProgress(
        tasks=counts["tasks"],
        accepted=counts["accepted"],
        rejected=counts["rejected"],
        failed=counts["failed"],
        calls=counts["calls"],
        input_tokens=counts["input_tokens"],
        cached_tokens=counts["cached_tokens"],
        output_tokens=counts["output_tokens"],
        cost_usd=sums["spent"] or Decimal(0),
        tasks_per_second=settled / seconds if seconds > 0 else 0.0,
    )


def spent_on_tests(endpoint: Endpoint) -> Spent:
    """What its connection tests took, all together; they belong to no run."""
    names = ("calls", "input_tokens", "output_tokens", "cost_usd")
    sums = endpoint.tests.aggregate(**{name: Sum(name, default=0) for name in names})
    return Spent(**sums)


@dataclass(frozen=True, slots=True)
class SaidInRun:
    """Where a run's annotations are: its annotator's, from the first to the last."""

    annotator: int
    first: int
    last: int


def said_in_run(run: Run) -> SaidInRun | None:
    """For reviewing them; None while there are none."""
    found = RunTask.objects.filter(run=run).aggregate(first=Min("annotation"), last=Max("annotation"))
    if found["first"] is None:
        return None
    return SaidInRun(run.endpoint.annotator_id, found["first"], found["last"])


def refusals(run: Run) -> dict[str, int]:
    """How many attempts were refused or failed, by reason, the most frequent first: sums kept per chunk."""
    counted: Counter[str] = Counter()
    for of_chunk in RunChunk.objects.filter(run=run).exclude(refusals={}).values_list("refusals", flat=True):
        counted.update(of_chunk)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


_OF_ANSWER_DRIVEN_ALONE = {
    Objection.ANSWER_DIFFERS,
    Objection.NO_RATIONALE,
    Objection.LEAKS,
    Objection.RESOLVE_DIFFERS,
    Objection.RESOLVE_UNREAD,
}


@dataclass(frozen=True, slots=True)
class CheckCount:
    """How often a check of the run's approach has refused a completion."""

    objection: Objection
    times: int

    @property
    def label(self) -> Promise:
        """What it minds, in the reader's language."""
        return CHECK_LABELS[self.objection]


def check_counts(run: Run, counted: Mapping[str, int]) -> list[CheckCount]:
    """Every check that the run's completions meet, in its order, also those that have refused nothing yet.

    `counted`: what `refusals` says.
    """
    of_all = run.approach == Approach.ANSWER_DRIVEN
    met = [objection for objection in Objection if of_all or objection not in _OF_ANSWER_DRIVEN_ALONE]
    return [CheckCount(objection, counted.get(objection, 0)) for objection in met]


def other_refusals(counted: Mapping[str, int]) -> dict[str, int]:
    """What no check refused: replies that were no completion in the grammar, and calls that failed."""
    return {reason: times for reason, times in counted.items() if reason not in set(Objection)}


def refused_attempts(run: Run) -> QuerySet[Attempt]:
    """The attempts counted by `refusals`, the newest first, with their tasks."""
    refused = Attempt.objects.filter(run_task__run=run, outcome__in=_REFUSED)
    return refused.select_related("run_task__task__sample").order_by("-pk")


def waiting_tasks(chunk: RunChunk) -> QuerySet[RunTask]:
    """Tasks of a chunk that are not settled, with all that building their prompts and annotations needs.

    Images are joined to their candidates: as rows of their own, Django would ask SQLite for each by one OR.
    """
    return (
        RunTask.objects.filter(chunk=chunk, state=RunTask.State.WAITING)
        .select_related("task__project", "task__sample__original", "given_from")
        .prefetch_related("attempts", Prefetch("task__sample__candidates", Candidate.objects.select_related("image")))
        .order_by("pk")
    )


def share_of(chunk: RunChunk, at_once: int) -> int:
    """How many of so many calls at once are a chunk's, of those that are being worked at its endpoint just now."""
    going = RunChunk.objects.filter(run__endpoint=chunk.run.endpoint_id, run__state=Run.State.RUNNING)
    jobs = Job.objects.filter(kind=JobKind.ANNOTATE_CHUNK, state=Job.State.RUNNING, object_id__in=going.values("pk"))
    in_work = sorted({chunk.pk, *jobs.values_list("object_id", flat=True)})
    each, more = divmod(at_once, len(in_work))
    return max(1, each + (in_work.index(chunk.pk) < more))
