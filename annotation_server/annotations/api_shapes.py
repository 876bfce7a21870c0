"""The shapes in which the API speaks about judging: what it takes, what it gives, and how rows become that.

As blind as what it is given: whose answers somebody may see is the selectors' business. Sample meta never leaves: drawn
scenes keep their answers there. Not here: the operations (api.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ninja import Field, Schema
from pydantic import BaseModel

from annotation_server.annotations.forms import MAX_RATIONALE
from annotation_server.annotations.models import Annotation, Annotator, Draft, Resolution, Review
from annotation_server.annotations.selectors import (
    Picture,
    TaskRow,
    annotations_shown,
    pictures_of,
    pre_annotations,
    shows_answers,
    task_rows_shown,
)
from annotation_server.errors import invalid
from annotation_server.projects.access import Access
from annotation_server.samples.renditions import has_preview
from annotation_server.tasks.models import Flag, Task
from annotation_server.tasks.services import MAX_HELD, Claim
from trainer.contract.answers import Answer, as_answer
from trainer.contract.dimensions import Dimension

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


def claim_out(claim: Claim, access: Access, shown: Sequence[Picture], draft: Draft | None) -> ClaimOut:
    """A claimed task with all that judging it takes: `shown` in the order in which to show it."""
    return ClaimOut(
        slot_id=claim.slot_id,
        lease_token=claim.lease_token,
        expires_at=claim.expires_at,
        task=task_out(TaskRow(claim.task, Task.State.OPEN)),
        polarity=access.project.polarity,
        images=[image_out(picture) for picture in shown],
        pre_annotations=[annotation_out(said) for said in pre_annotations(claim.task)],
        draft=None if draft is None else draft_out(draft),
    )


def draft_out(draft: Draft) -> DraftOut:
    """What is kept of what somebody has begun to say."""
    return DraftOut(
        revision=draft.revision,
        answer=draft.answer,
        rationale=draft.rationale,
        marks=draft.marks,
    )


def marks_of(given: Sequence[MarkIn]) -> list[dict[str, Any]]:
    """Marks as they are stored."""
    return [mark.model_dump(exclude_none=True, exclude_defaults=True) for mark in given]


def answer_of(given: Sequence[str], task: Task) -> Answer:
    """The letters somebody sent; a letter that the task does not have is refused."""
    try:
        return as_answer(given, task.candidate_count)
    except ValueError as error:
        raise invalid(str(error), "answer") from None


def task_out(row: TaskRow) -> TaskOut:
    """A task in the state in which the reader may know it."""
    task = row.task
    return TaskOut(
        id=task.pk,
        sample=task.sample.external_id,
        dimension=task.dimension,
        candidate_count=task.candidate_count,
        state=row.state,
    )


def image_out(picture: Picture) -> ImageOut:
    """One picture of a task, by hash."""
    image = picture.image
    return ImageOut(
        letter=picture.letter, sha256=image.sha256, width=image.width, height=image.height, preview=has_preview(image)
    )


def annotation_out(annotation: Annotation) -> AnnotationOut:
    """What somebody said, with the caveat of the model where it was one."""
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


def detail_out(access: Access, task: Task) -> TaskDetailOut:
    """A task with the answers that the reader may see."""
    shown = task_rows_shown(access, [task])[0]
    resolution = Resolution.objects.filter(task=task).first() if shows_answers(access, task) else None
    return TaskDetailOut(
        **task_out(shown).model_dump(),
        polarity=access.project.polarity,
        images=[image_out(picture) for picture in pictures_of(task.sample)],
        annotations=[annotation_out(annotation) for annotation in annotations_shown(access, task)],
        resolution=ResolutionOut(
            answer=sorted(resolution.answer),
            source=resolution.source,
            votes=resolution.votes,
            agreement=resolution.agreement,
        )
        if resolution
        else None,
    )
