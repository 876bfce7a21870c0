"""The API about judging: claiming a task, answering it, browsing tasks, deciding disputes, progress.

As blind as the pages: it reads through the same selectors. Sample meta never leaves: drawn scenes keep their answers
there.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from ninja import Field, Query, Router, Schema
from ninja.responses import Status
from pydantic import BaseModel

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.decisions import adjudicate, review
from annotation_server.annotations.drafts import DraftConflict, DraftRefused, drafts_of, save_draft
from annotation_server.annotations.examples import examples_shown
from annotation_server.annotations.forms import MAX_RATIONALE
from annotation_server.annotations.models import Annotation, Annotator, Approach, Draft, Resolution, Review
from annotation_server.annotations.queue import next_claims, paused
from annotation_server.annotations.selectors import (
    PAGE_ROWS,
    DimensionProgress,
    Picture,
    TaskFilter,
    TaskRow,
    annotations_shown,
    answers_of,
    disputed_tasks,
    pictures_of,
    pictures_shown_to,
    pre_annotations,
    progress,
    queue_left,
    shows_answers,
    task_in,
    task_rows,
    task_rows_shown,
)
from annotation_server.annotations.services import (
    AnnotationRefused,
    NewAnnotation,
    annotator_for,
    record_annotation,
    withdraw,
)
from annotation_server.errors import ApiError, invalid
from annotation_server.projects.access import Access, Capability, access_to
from annotation_server.projects.guidelines import guidelines_of, own_guidelines, phrases_of
from annotation_server.samples.renditions import has_preview
from annotation_server.tasks.models import Flag, Task
from annotation_server.tasks.services import (
    MAX_HELD,
    Claim,
    close_flags,
    extend_lease,
    flag,
    prioritise,
    release,
    release_all,
    unskip,
)
from trainer.contract.answers import Answer, as_answer
from trainer.contract.dimensions import Dimension

router = Router(tags=["annotations"])


# What the annotating page asks for with every task is made of plain models: a Schema reads each attribute anew.


class ImageOut(BaseModel):
    letter: str
    """Empty for the original."""
    sha256: str
    width: int
    height: int
    preview: bool
    """Whether there is a smaller one to show first."""


class AnnotationOut(BaseModel):
    id: int
    annotator: str
    approach: str
    standing: str
    answer: list[str]
    rationale: str
    caveat: str
    """What to mind about a model's answers; empty for people."""
    created_at: datetime


class TaskOut(BaseModel):
    id: int
    sample: str
    dimension: str
    candidate_count: int
    state: str
    """As you may know it: a task you may still vote on is open."""


class ResolutionOut(BaseModel):
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


class TaskPageOut(BaseModel):
    tasks: list[TaskOut]
    next_after: int | None
    """Send it as `after` for the next page; null on the last one."""


class MarkIn(Schema):
    letter: str
    x: float
    y: float
    w: float | None = None
    h: float | None = None
    note: str = ""


class DraftOut(BaseModel):
    revision: int
    answer: list[str] | None
    """Null: nothing chosen yet."""
    rationale: str
    marks: list[dict[str, Any]]


class DraftIn(Schema):
    revision: int = Field(ge=0)
    """The one you know; 0 for none."""
    answer: list[str] | None = None
    rationale: str = Field("", max_length=MAX_RATIONALE)
    marks: list[MarkIn] = Field([])


class ClaimOut(BaseModel):
    slot_id: int
    lease_token: uuid.UUID
    expires_at: datetime
    task: TaskOut
    polarity: str
    images: list[ImageOut]
    """The original, then the candidates in the order in which to show them to you."""
    pre_annotations: list[AnnotationOut]
    """Empty unless the project shows them."""
    draft: DraftOut | None
    """What you had begun to say."""


class ClaimsIn(Schema):
    count: int = Field(1, ge=1, le=MAX_HELD)
    """How many tasks you want to hold, those you hold already included."""


class QueueLeftOut(BaseModel):
    tasks: int
    held_by_others: int
    answered_by_me: int


class ClaimsOut(BaseModel):
    claims: list[ClaimOut]
    """In the order in which to do them; those you held already first, their leases renewed."""
    paused: str
    """Why you get no tasks, if you are paused."""
    left: QueueLeftOut | None
    """Why there is nothing for you; null when there is."""


class ReleaseIn(Schema):
    lease_tokens: list[uuid.UUID] = Field(max_length=MAX_HELD)


class FlagIn(Schema):
    reason: Flag.Reason
    note: str = Field("", max_length=500)
    skip: bool = False
    """Give the task back; you are not asked again."""


class FlagOut(Schema):
    reason: str
    note: str
    skipped: bool


class ReviewIn(Schema):
    verdict: Review.Verdict
    annotation_id: int | None = None
    """One model annotation; without it, what stands for the task."""
    reason: str = Field("", max_length=500)
    answer: list[str] | None = None
    """Of a correction."""
    rationale: str = Field("", max_length=MAX_RATIONALE)
    idempotency_key: str = Field(min_length=1, max_length=80)


class ReviewOut(Schema):
    id: int
    verdict: str
    reason: str
    created_at: datetime


class PriorityIn(Schema):
    task_ids: list[int] = Field(max_length=10_000)
    priority: int = Field(ge=-1000, le=1000)


class MovedOut(Schema):
    slots: int


class AnnotatedOut(AnnotationOut):
    next: ClaimsOut | None
    """What `hold` asked for."""


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
    marks: list[MarkIn] = Field([])
    shown_order: str = ""
    """The candidates' letters in the order they were shown, where it was not their own."""
    hold: int = Field(0, ge=0, le=MAX_HELD)
    """Also claim up to so many tasks, as `claims` does: the next ones come with the answer."""
    seconds_spent: float | None = Field(None, ge=0)


class ProgressOut(Schema):
    dimension: str
    tasks: int
    open: int
    disputed: int
    resolved: int
    annotations: dict[str, int]


class ExampleOut(Schema):
    left: str
    """Address of the picture it is held against."""
    left_is_original: bool
    right: str
    caption: str
    flawed: bool


class GuidelinesOut(Schema):
    dimension: str
    text: str
    """Markdown; the project's own, or ours in your language."""
    own: bool
    """Whether the text is the project's."""
    phrases: list[str]
    examples: list[ExampleOut]
    """Those that you may see: none of a task that you may still vote on."""


class TaskQuery(Schema):
    state: Task.State | None = None
    dimension: Dimension | None = None
    sample: str = Field("", max_length=200)
    """How the sample's id begins."""
    after: int = Field(0, ge=0)


@router.get("/projects/{slug}/progress", response=list[ProgressOut])
def get_progress(request: AuthenticatedRequest, slug: str) -> list[DimensionProgress]:
    return progress(access_to(request.user, slug).project)


@router.get("/projects/{slug}/guidelines", response=list[GuidelinesOut])
def get_guidelines(request: AuthenticatedRequest, slug: str) -> list[GuidelinesOut]:
    """What to look at and what counts, per dimension of the project."""
    access = access_to(request.user, slug)
    return [
        GuidelinesOut(
            dimension=dimension,
            text=guidelines_of(access.project, dimension),
            own=bool(own_guidelines(access.project, dimension)),
            phrases=phrases_of(access.project, dimension),
            examples=[ExampleOut(**asdict(example)) for example in examples],
        )
        for dimension, examples in examples_shown(access).items()
    ]


@router.post("/projects/{slug}/claims", response=ClaimsOut)
def claim(request: AuthenticatedRequest, slug: str, payload: ClaimsIn) -> ClaimsOut:
    """Up to `count` tasks under a lease each. Asking again renews the leases of what you hold: it is the heartbeat."""
    return _claims(access_to(request.user, slug, Capability.ANNOTATE), payload.count)


@router.post("/projects/{slug}/claims/release", response=ReleasedOut)
def give_all_back(request: AuthenticatedRequest, slug: str, payload: ReleaseIn) -> ReleasedOut:
    """Give back what you hold under these tokens: what a page does when it is left."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    return ReleasedOut(released=release_all(access.project, request.user, payload.lease_tokens) > 0)


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


@router.post("/projects/{slug}/tasks/{task_id}/annotations", response={201: AnnotatedOut})
def annotate(request: AuthenticatedRequest, slug: str, task_id: int, payload: AnnotationIn) -> AnnotatedOut:
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
        seconds_spent=payload.seconds_spent,
        marks=_marks(payload.marks),
        meta={"shown_order": payload.shown_order[:8]} if payload.shown_order else {},
    )
    said = _annotation(record_annotation(new))
    return AnnotatedOut(**said.model_dump(), next=_claims(access, payload.hold) if payload.hold else None)


@router.post("/projects/{slug}/annotations/{annotation_id}/withdraw", response=ClaimOut)
def undo(request: AuthenticatedRequest, slug: str, annotation_id: int) -> ClaimOut:
    """Undo your last answer: you hold its task again, with what you had said as its draft."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    said = answers_of(request.user).select_related("task__project").filter(task__project=access.project)
    annotation = said.filter(pk=annotation_id).first()
    if annotation is None:
        raise Http404("There is no such answer of yours in this project.")
    try:
        claimed = withdraw(annotation, request.user)
    except AnnotationRefused as refused:
        raise ApiError(409, "not_undone", str(refused)) from None
    shown = pictures_shown_to(request.user, access.project, [claimed.task])
    draft = drafts_of(request.user, [claimed.task.pk]).get(claimed.task.pk)
    return _claim(claimed, access, shown[claimed.task.pk], draft)


@router.get("/projects/{slug}/tasks/{task_id}/draft", response={200: DraftOut, 204: None})
def get_draft(request: AuthenticatedRequest, slug: str, task_id: int) -> Status[DraftOut] | Status[None]:
    """What you have begun to say about a task; 204 when nothing is kept."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    draft = drafts_of(request.user, [_task_in(access, task_id).pk]).get(task_id)
    return Status(204, None) if draft is None else Status(200, _draft(draft))


@router.put("/projects/{slug}/tasks/{task_id}/draft", response=DraftOut)
def put_draft(request: AuthenticatedRequest, slug: str, task_id: int, payload: DraftIn) -> DraftOut:
    """Keep what you have begun to say. 409 `draft_conflict` when a newer one is kept: GET it and choose."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    try:
        draft = save_draft(
            task=_task_in(access, task_id),
            person=request.user,
            revision=payload.revision,
            answer=payload.answer,
            rationale=payload.rationale,
            marks=_marks(payload.marks),
        )
    except DraftConflict as conflict:
        raise ApiError(409, "draft_conflict", str(conflict), "revision") from None
    except DraftRefused as refused:
        raise invalid(str(refused)) from None
    return _draft(draft)


@router.post("/projects/{slug}/tasks/{task_id}/flags", response={201: FlagOut})
def say_flag(request: AuthenticatedRequest, slug: str, task_id: int, payload: FlagIn) -> Flag:
    """Say that something is wrong with a task; with `skip`, instead of answering it."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    task = _task_in(access, task_id)
    return flag(task=task, person=request.user, reason=payload.reason, note=payload.note, skip=payload.skip)


@router.post("/projects/{slug}/tasks/{task_id}/unskip", response=ReleasedOut)
def take_skip_back(request: AuthenticatedRequest, slug: str, task_id: int) -> ReleasedOut:
    """Be asked again about a task you had skipped."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    return ReleasedOut(released=unskip(_task_in(access, task_id), request.user))


@router.post("/projects/{slug}/tasks/{task_id}/flags/close", response=MovedOut)
def deal_with_flags(request: AuthenticatedRequest, slug: str, task_id: int) -> MovedOut:
    """Say that what was said about a task has been dealt with."""
    access = access_to(request.user, slug, Capability.REVIEW)
    return MovedOut(slots=close_flags(_task_in(access, task_id), request.user))


@router.post("/projects/{slug}/priority", response=MovedOut)
def put_first(request: AuthenticatedRequest, slug: str, payload: PriorityIn) -> MovedOut:
    """Give what is still to be done of these tasks a priority; higher comes first."""
    access = access_to(request.user, slug, Capability.MANAGE)
    return MovedOut(slots=prioritise(access.project, payload.task_ids, payload.priority))


@router.post("/projects/{slug}/tasks/{task_id}/reviews", response={201: ReviewOut})
def say_review(request: AuthenticatedRequest, slug: str, task_id: int, payload: ReviewIn) -> Review:
    """Accept, correct or reject what stands for a task, or one model annotation."""
    access = access_to(request.user, slug, Capability.REVIEW)
    task = _task_in(access, task_id)
    if not shows_answers(access, task):
        raise PermissionDenied("You may still be asked to vote on this task: vote first, or leave it to somebody else.")
    annotation = None
    if payload.annotation_id is not None:
        annotation = task.annotations.filter(pk=payload.annotation_id).first()
        if annotation is None:
            raise invalid(f"there is no annotation {payload.annotation_id} of this task", "annotation_id")
    return review(
        task=task,
        annotation=annotation,
        verdict=payload.verdict,
        person=request.user,
        reason=payload.reason,
        answer=None if payload.answer is None else _letters(payload.answer, task),
        rationale=payload.rationale,
        idempotency_key=payload.idempotency_key,
    )


@router.get("/projects/{slug}/tasks", response=TaskPageOut)
def list_tasks(request: AuthenticatedRequest, slug: str, filters: Query[TaskQuery]) -> TaskPageOut:
    """Tasks in order of id; who may not see others' answers lists the tasks they have answered."""
    access = access_to(request.user, slug)
    wanted = TaskFilter(state=filters.state or "", dimension=filters.dimension or "", sample=filters.sample)
    rows = task_rows(access, wanted, after=filters.after)
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


def _claims(access: Access, count: int) -> ClaimsOut:
    claims = next_claims(access.project, access.person, count)
    membership = None if claims else paused(access.project, access.person)
    drafts = drafts_of(access.person, [claim.task.pk for claim in claims])
    shown = pictures_shown_to(access.person, access.project, [claim.task for claim in claims])
    return ClaimsOut(
        claims=[_claim(claim, access, shown[claim.task.pk], drafts.get(claim.task.pk)) for claim in claims],
        paused=(membership.paused_why or "paused") if membership else "",
        left=None if claims else QueueLeftOut(**asdict(queue_left(access.project, access.person))),
    )


def _claim(claim: Claim, access: Access, shown: Sequence[Picture], draft: Draft | None) -> ClaimOut:
    return ClaimOut(
        slot_id=claim.slot_id,
        lease_token=claim.lease_token,
        expires_at=claim.expires_at,
        task=_task(TaskRow(claim.task, Task.State.OPEN)),
        polarity=access.project.polarity,
        images=[_image(picture) for picture in shown],
        pre_annotations=[_annotation(said) for said in pre_annotations(claim.task)],
        draft=None if draft is None else _draft(draft),
    )


def _draft(draft: Draft) -> DraftOut:
    return DraftOut(
        revision=draft.revision,
        answer=draft.answer,
        rationale=draft.rationale,
        marks=draft.marks,
    )


def _marks(given: Sequence[MarkIn]) -> list[dict[str, Any]]:
    return [mark.model_dump(exclude_none=True, exclude_defaults=True) for mark in given]


def _answer(payload: AnswerIn, task: Task) -> Answer:
    return _letters(payload.answer, task)


def _letters(given: Sequence[str], task: Task) -> Answer:
    try:
        return as_answer(given, task.candidate_count)
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
    return [_image(picture) for picture in pictures_of(task.sample)]


def _image(picture: Picture) -> ImageOut:
    image = picture.image
    return ImageOut(
        letter=picture.letter, sha256=image.sha256, width=image.width, height=image.height, preview=has_preview(image)
    )


def _annotation(annotation: Annotation) -> AnnotationOut:
    return AnnotationOut(
        id=annotation.pk,
        annotator=annotation.annotator.name,
        approach=annotation.approach,
        standing=annotation.standing,
        answer=sorted(annotation.answer),
        rationale=annotation.rationale,
        caveat=_caveat(annotation),
        created_at=annotation.created_at,
    )


def _caveat(annotation: Annotation) -> str:
    if annotation.annotator.kind != Annotator.Kind.MODEL:
        return ""
    return " ".join(endpoint.caveat for endpoint in annotation.annotator.endpoints.all() if endpoint.caveat)


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
