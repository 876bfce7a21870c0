"""The API about judging: claiming a task, answering it, browsing tasks, deciding disputes, progress.

As blind as the pages: it reads through the same selectors. Sample meta never leaves: drawn scenes keep their answers
there.
"""

from __future__ import annotations

import uuid
from datetime import datetime

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from ninja import Field, Query, Router, Schema
from ninja.responses import Status

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.forms import MAX_RATIONALE
from annotation_server.annotations.models import Annotation, Approach, Resolution
from annotation_server.annotations.selectors import (
    PAGE_ROWS,
    DimensionProgress,
    TaskRow,
    annotations_shown,
    disputed_tasks,
    pictures_of,
    pre_annotations,
    progress,
    shows_answers,
    task_in,
    task_rows,
    task_rows_shown,
)
from annotation_server.annotations.services import (
    NewAnnotation,
    adjudicate,
    annotator_for,
    record_annotation,
)
from annotation_server.errors import ApiError, invalid
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.tasks.models import Task
from annotation_server.tasks.services import claim_next, extend_lease, release
from trainer.contract.answers import Answer, as_answer
from trainer.contract.dimensions import Dimension

router = Router(tags=["annotations"])


class ImageOut(Schema):
    letter: str
    """Empty for the original."""
    sha256: str
    width: int
    height: int


class AnnotationOut(Schema):
    id: int
    annotator: str
    approach: str
    standing: str
    answer: list[str]
    rationale: str
    caveat: str
    """What to mind about a model's answers; empty for people."""
    created_at: datetime


class TaskOut(Schema):
    id: int
    sample: str
    dimension: str
    candidate_count: int
    state: str
    """As you may know it: a task you may still vote on is open."""


class ResolutionOut(Schema):
    answer: list[str]
    source: str
    votes: int
    agreement: float | None


class TaskDetailOut(TaskOut):
    polarity: str
    images: list[ImageOut]
    annotations: list[AnnotationOut]
    """Yours; everybody's once you may see them."""
    resolution: ResolutionOut | None


class TaskPageOut(Schema):
    tasks: list[TaskOut]
    next_after: int | None
    """Send it as `after` for the next page; null on the last one."""


class ClaimOut(Schema):
    slot_id: int
    lease_token: uuid.UUID
    expires_at: datetime
    task: TaskOut
    polarity: str
    images: list[ImageOut]
    pre_annotations: list[AnnotationOut]
    """Empty unless the project shows them."""


class LeaseIn(Schema):
    lease_token: uuid.UUID


class LeaseOut(Schema):
    expires_at: datetime


class ReleasedOut(Schema):
    released: bool
    """False when the lease was no longer held."""


class AnswerIn(Schema):
    answer: list[str]
    """Candidate letters in the project's polarity; empty for none."""
    rationale: str = Field("", max_length=MAX_RATIONALE)
    idempotency_key: str = Field(min_length=1, max_length=80)


class AnnotationIn(AnswerIn):
    lease_token: uuid.UUID | None = None
    seconds_spent: float | None = Field(None, ge=0)


class ProgressOut(Schema):
    dimension: str
    tasks: int
    open: int
    disputed: int
    resolved: int
    annotations: dict[str, int]


class TaskFilter(Schema):
    state: Task.State | None = None
    dimension: Dimension | None = None
    after: int = Field(0, ge=0)


@router.get("/projects/{slug}/progress", response=list[ProgressOut])
def get_progress(request: AuthenticatedRequest, slug: str) -> list[DimensionProgress]:
    return progress(access_to(request.user, slug).project)


@router.post("/projects/{slug}/claims", response={200: ClaimOut, 204: None})
def claim(request: AuthenticatedRequest, slug: str) -> Status[ClaimOut] | Status[None]:
    """The task you hold already, else the next free one, under a lease; 204 when there is nothing for you."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    claimed = claim_next(access.project, request.user)
    if claimed is None:
        return Status(204, None)
    row = TaskRow(claimed.task, Task.State.OPEN)
    return Status(
        200,
        ClaimOut(
            slot_id=claimed.slot_id,
            lease_token=claimed.lease_token,
            expires_at=claimed.expires_at,
            task=_task(row),
            polarity=access.project.polarity,
            images=_images(claimed.task),
            pre_annotations=[_annotation(said) for said in pre_annotations(claimed.task)],
        ),
    )


@router.post("/leases/{slot_id}/extend", response=LeaseOut)
def extend(request: HttpRequest, slot_id: int, payload: LeaseIn) -> LeaseOut:
    """Keep a claim alive for another lease of the project."""
    expires_at = extend_lease(slot_id, payload.lease_token)
    if expires_at is None:
        raise ApiError(409, "lease_lost", "The lease is lost: somebody else may hold the task by now.", "lease_token")
    return LeaseOut(expires_at=expires_at)


@router.post("/leases/{slot_id}/release", response=ReleasedOut)
def give_back(request: HttpRequest, slot_id: int, payload: LeaseIn) -> ReleasedOut:
    """Give a claimed task back to the queue at once."""
    return ReleasedOut(released=release(slot_id, payload.lease_token))


@router.post("/projects/{slug}/tasks/{task_id}/annotations", response={201: AnnotationOut})
def annotate(request: AuthenticatedRequest, slug: str, task_id: int, payload: AnnotationIn) -> AnnotationOut:
    """Answer a task. The same key again returns the first annotation; `standing` says whether it counts."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    task = _task_in(access, task_id)
    new = NewAnnotation(
        task=task,
        annotator=annotator_for(request.user),
        approach=Approach.MANUAL,
        answer=_answer(payload, task),
        rationale=payload.rationale,
        idempotency_key=payload.idempotency_key,
        lease_token=payload.lease_token,
        seconds_spent=payload.seconds_spent,
    )
    return _annotation(record_annotation(new))


@router.get("/projects/{slug}/tasks", response=TaskPageOut)
def list_tasks(request: AuthenticatedRequest, slug: str, filters: Query[TaskFilter]) -> TaskPageOut:
    """Tasks in order of id; who may not see others' answers lists the tasks they have answered."""
    access = access_to(request.user, slug)
    rows = task_rows(access, state=filters.state or "", dimension=filters.dimension or "", after=filters.after)
    more = len(rows) > PAGE_ROWS
    page = rows[:PAGE_ROWS]
    return TaskPageOut(tasks=[_task(row) for row in page], next_after=page[-1].task.pk if more else None)


@router.get("/projects/{slug}/tasks/{task_id}", response=TaskDetailOut)
def get_task(request: AuthenticatedRequest, slug: str, task_id: int) -> TaskDetailOut:
    access = access_to(request.user, slug)
    return _detail(access, _task_in(access, task_id))


@router.get("/projects/{slug}/disputed", response=list[TaskDetailOut])
def list_disputed(request: AuthenticatedRequest, slug: str, after: int = 0) -> list[TaskDetailOut]:
    """Disputed tasks with their votes, a page after an id."""
    access = access_to(request.user, slug, Capability.REVIEW)
    tasks = disputed_tasks(access.project, after).select_related("sample__original", "project")[:PAGE_ROWS]
    return [_detail(access, task) for task in tasks]


@router.post("/projects/{slug}/tasks/{task_id}/decision", response={201: AnnotationOut})
def decide(request: AuthenticatedRequest, slug: str, task_id: int, payload: AnswerIn) -> AnnotationOut:
    """Decide a task for good, above its votes."""
    access = access_to(request.user, slug, Capability.REVIEW)
    task = _task_in(access, task_id)
    if not shows_answers(access, task):
        raise PermissionDenied("You may still be asked to vote on this task: vote first, or leave it to somebody else.")
    decision = adjudicate(
        task=task,
        answer=_answer(payload, task),
        person=request.user,
        rationale=payload.rationale,
        idempotency_key=payload.idempotency_key,
    )
    return _annotation(decision)


def _task_in(access: Access, task_id: int) -> Task:
    task = task_in(access.project, task_id)
    if task is None:
        raise Http404("There is no such task in this project.")
    return task


def _answer(payload: AnswerIn, task: Task) -> Answer:
    try:
        return as_answer(payload.answer, task.candidate_count)
    except ValueError as error:
        raise invalid(str(error), "answer") from None


def _task(row: TaskRow) -> TaskOut:
    task = row.task
    return TaskOut(
        id=task.pk,
        sample=task.sample.external_id,
        dimension=task.dimension,
        candidate_count=task.candidate_count,
        state=row.state,
    )


def _images(task: Task) -> list[ImageOut]:
    return [
        ImageOut(letter=letter, sha256=image.sha256, width=image.width, height=image.height)
        for letter, image in ((picture.letter, picture.image) for picture in pictures_of(task.sample))
    ]


def _annotation(annotation: Annotation) -> AnnotationOut:
    return AnnotationOut(
        id=annotation.pk,
        annotator=annotation.annotator.name,
        approach=annotation.approach,
        standing=annotation.standing,
        answer=sorted(annotation.answer),
        rationale=annotation.rationale,
        caveat=" ".join(endpoint.caveat for endpoint in annotation.annotator.endpoints.all() if endpoint.caveat),
        created_at=annotation.created_at,
    )


def _detail(access: Access, task: Task) -> TaskDetailOut:
    shown = task_rows_shown(access, [task])[0]
    resolution = Resolution.objects.filter(task=task).first() if shows_answers(access, task) else None
    return TaskDetailOut(
        **_task(shown).model_dump(),
        polarity=access.project.polarity,
        images=_images(task),
        annotations=[_annotation(annotation) for annotation in annotations_shown(access, task)],
        resolution=ResolutionOut(
            answer=sorted(resolution.answer),
            source=resolution.source,
            votes=resolution.votes,
            agreement=resolution.agreement,
        )
        if resolution
        else None,
    )
