"""What a reviewer looks at, one after the other: a share of resolved tasks, or what models or chosen annotators said.

A queue is no row: its few settings stand in the page's address, and what has been reviewed is known from the reviews.
Tasks on which the reviewer may still be asked to vote are left out, as everywhere. Not here: the verdicts
(decisions.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from django.db.models import BigIntegerField, Exists, F, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Mod

from annotation_server.annotations.models import Annotation, Annotator, GoldAnswer, Review
from annotation_server.annotations.selectors import blind_to
from annotation_server.projects.access import Access
from annotation_server.projects.models import Project
from annotation_server.tasks.models import Task

_SPREAD = 2_654_435_761
"""Knuth's multiplier: spreads task ids over the shares, so that a sample is no run of neighbours and stays the same."""
_SHARES = 10_007


class Kind(StrEnum):
    """Where the tasks of a queue come from."""

    RESOLVED = "resolved"
    """A share of the resolved tasks."""
    MODELS = "models"
    """Model annotations below a confidence, or of none."""
    ANNOTATOR = "annotator"
    """What one annotator said, or one run of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewQueue:
    """What is to be reviewed."""

    kind: Kind
    share: float = 10.0
    """Of resolved tasks, in percent."""
    confidence: float = 0.8
    """Model annotations below it are reviewed."""
    annotator: int | None = None
    first: int = 0
    last: int | None = None
    """The first and last annotation, which together with the annotator name a run (runs/selectors.py)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to review: what stands for a task, or one annotation of it. `after` continues behind it."""

    task: Task
    annotation: Annotation | None
    after: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a queue is. `held_back`: left out, because the reviewer may still be asked to vote on their tasks."""

    reviewed: int
    total: int
    held_back: int


def next_item(access: Access, queue: ReviewQueue, after: int = 0) -> Item | None:
    """The next unreviewed one after an id (of the task, or the annotation); None when there is no more."""
    if queue.kind == Kind.RESOLVED:
        tasks = _tasks(access.project, queue).filter(~blind_to(access), ~_task_reviewed, pk__gt=after)
        task = tasks.select_related("sample__original", "project").order_by("pk").first()
        return None if task is None else Item(task, None, task.pk)
    said = _annotations(access.project, queue).filter(~blind_to(access, "task"), ~_annotation_reviewed, pk__gt=after)
    said = said.select_related("annotator", "task__sample__original", "task__project")
    annotation = said.order_by("pk").first()
    return None if annotation is None else Item(annotation.task, annotation, annotation.pk)


def queue_progress(access: Access, queue: ReviewQueue) -> Progress:
    """How many there are and how many have been reviewed, by anybody."""
    if queue.kind == Kind.RESOLVED:
        tasks = _tasks(access.project, queue)
        shown = tasks.filter(~blind_to(access))
        return _progress(tasks.count(), shown.count(), shown.filter(_task_reviewed).count())
    said = _annotations(access.project, queue)
    visible = said.filter(~blind_to(access, "task"))
    return _progress(said.count(), visible.count(), visible.filter(_annotation_reviewed).count())


def annotators_to_review(project: Project) -> QuerySet[Annotator]:
    """Who has said something in the project."""
    said = Annotation.objects.filter(annotator=OuterRef("pk"), task__project=project).order_by("-pk").values("pk")[:1]
    # Not Exists: PostgreSQL would join all annotations with all tasks for a dozen names.
    return Annotator.objects.alias(said=Subquery(said)).filter(said__isnull=False).order_by("kind", "name")


def _progress(total: int, shown: int, reviewed: int) -> Progress:
    return Progress(reviewed=reviewed, total=shown, held_back=total - shown)


_task_reviewed = Exists(Review.objects.filter(task=OuterRef("pk")))
_annotation_reviewed = Exists(Review.objects.filter(annotation=OuterRef("pk")))


def _tasks(project: Project, queue: ReviewQueue) -> QuerySet[Task]:
    """The sample of tasks that are resolved, or were until a reviewer looked. Gold is known and needs no review."""
    gold = Exists(GoldAnswer.objects.filter(task=OuterRef("pk")))
    place = Mod(F("pk") * Value(_SPREAD, output_field=BigIntegerField()), Value(_SHARES))
    tasks = project.tasks.filter(Q(state=Task.State.RESOLVED) | _task_reviewed).exclude(gold).alias(place=place)
    return cast("QuerySet[Task]", tasks.filter(place__lt=queue.share / 100 * _SHARES))


def _annotations(project: Project, queue: ReviewQueue) -> QuerySet[Annotation]:
    said = Annotation.objects.filter(task__project=project, pk__gte=queue.first)
    if queue.last is not None:
        said = said.filter(pk__lte=queue.last)
    if queue.kind == Kind.ANNOTATOR:
        counted = (Annotation.Standing.VOTE, Annotation.Standing.ADVICE)
        return said.filter(annotator=queue.annotator, standing__in=counted)
    unsure = Q(confidence=None) | Q(confidence__lt=queue.confidence)
    return said.filter(unsure, standing=Annotation.Standing.ADVICE)
