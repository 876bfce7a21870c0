"""The API about judging: claiming a task, answering it, browsing tasks, deciding disputes, progress.

As blind as the pages: it reads through the same selectors. Not here: what is sent and taken (api_shapes.py), figures
about quality (quality_api.py).
"""

from __future__ import annotations

from dataclasses import asdict

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from ninja import Query, Router
from ninja.responses import Status

from annotation_server.accounts.http import AuthenticatedRequest
from annotation_server.annotations.api_shapes import (
    AnnotatedOut,
    AnnotationIn,
    AnnotationOut,
    AnswerIn,
    ClaimOut,
    ClaimsIn,
    ClaimsOut,
    DraftIn,
    DraftOut,
    ExampleOut,
    FlagIn,
    FlagOut,
    GuidelinesOut,
    LeaseIn,
    LeaseOut,
    MovedOut,
    PriorityIn,
    ProgressOut,
    QueueLeftOut,
    ReleasedOut,
    ReleaseIn,
    ReviewIn,
    ReviewOut,
    TaskDetailOut,
    TaskPageOut,
    TaskQuery,
    annotation_out,
    answer_of,
    claim_out,
    detail_out,
    draft_out,
    marks_of,
    task_out,
)
from annotation_server.annotations.decisions import adjudicate, review
from annotation_server.annotations.drafts import DraftConflict, DraftRefused, drafts_of, save_draft
from annotation_server.annotations.examples import examples_shown
from annotation_server.annotations.models import Approach, Review
from annotation_server.annotations.queue import next_claims, paused
from annotation_server.annotations.selectors import (
    PAGE_ROWS,
    DimensionProgress,
    TaskFilter,
    answers_of,
    disputed_tasks,
    pictures_shown_to,
    progress,
    queue_left,
    shows_answers,
    task_in,
    task_rows,
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
from annotation_server.tasks.flags import close_flags, flag, unskip
from annotation_server.tasks.models import Flag, Task
from annotation_server.tasks.services import extend_lease, prioritise, release, release_all

router = Router(tags=["annotations"])


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
        answer=answer_of(payload.answer, task),
        rationale=payload.rationale,
        idempotency_key=payload.idempotency_key,
        seconds_spent=payload.seconds_spent,
        marks=marks_of(payload.marks),
        meta={"shown_order": payload.shown_order[:8]} if payload.shown_order else {},
    )
    said = annotation_out(record_annotation(new))
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
    return claim_out(claimed, access, shown[claimed.task.pk], draft)


@router.get("/projects/{slug}/tasks/{task_id}/draft", response={200: DraftOut, 204: None})
def get_draft(request: AuthenticatedRequest, slug: str, task_id: int) -> Status[DraftOut] | Status[None]:
    """What you have begun to say about a task; 204 when nothing is kept."""
    access = access_to(request.user, slug, Capability.ANNOTATE)
    draft = drafts_of(request.user, [_task_in(access, task_id).pk]).get(task_id)
    return Status(204, None) if draft is None else Status(200, draft_out(draft))


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
            marks=marks_of(payload.marks),
        )
    except DraftConflict as conflict:
        raise ApiError(409, "draft_conflict", str(conflict), "revision") from None
    except DraftRefused as refused:
        raise invalid(str(refused)) from None
    return draft_out(draft)


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
        answer=None if payload.answer is None else answer_of(payload.answer, task),
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
    return TaskPageOut(tasks=[task_out(row) for row in page], next_after=page[-1].task.pk if more else None)


@router.get("/projects/{slug}/tasks/{task_id}", response=TaskDetailOut)
def get_task(request: AuthenticatedRequest, slug: str, task_id: int) -> TaskDetailOut:
    access = access_to(request.user, slug)
    return detail_out(access, _task_in(access, task_id))


@router.get("/projects/{slug}/disputed", response=list[TaskDetailOut])
def list_disputed(request: AuthenticatedRequest, slug: str, after: int = 0) -> list[TaskDetailOut]:
    """Disputed tasks with their votes, a page after an id."""
    access = access_to(request.user, slug, Capability.REVIEW)
    tasks = disputed_tasks(access.project, after).select_related("sample__original", "project")[:PAGE_ROWS]
    return [detail_out(access, task) for task in tasks]


@router.post("/projects/{slug}/tasks/{task_id}/decision", response={201: AnnotationOut})
def decide(request: AuthenticatedRequest, slug: str, task_id: int, payload: AnswerIn) -> AnnotationOut:
    """Decide a task for good, above its votes."""
    access = access_to(request.user, slug, Capability.REVIEW)
    task = _task_in(access, task_id)
    if not shows_answers(access, task):
        raise PermissionDenied("You may still be asked to vote on this task: vote first, or leave it to somebody else.")
    decision = adjudicate(
        task=task,
        answer=answer_of(payload.answer, task),
        person=request.user,
        rationale=payload.rationale,
        idempotency_key=payload.idempotency_key,
    )
    return annotation_out(decision)


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
        claims=[claim_out(claim, access, shown[claim.task.pk], drafts.get(claim.task.pk)) for claim in claims],
        paused=(membership.paused_why or "paused") if membership else "",
        left=None if claims else QueueLeftOut(**asdict(queue_left(access.project, access.person))),
    )
