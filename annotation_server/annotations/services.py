"""Writing the ledger: annotations, gold, and the resolution that stands.

`record_annotations` is the one door: a person, a model and an import all go through it; `record_annotation` is its
form for one. Every write settles the tasks it touched in the same transaction. Not here: claiming (tasks/services.py),
decisions above the votes (decisions.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import IntegrityError, transaction

from annotation_server.accounts.models import Person
from annotation_server.annotations.accuracy import pause_below_floor
from annotation_server.annotations.drafts import forget_draft
from annotation_server.annotations.marks import clean_marks
from annotation_server.annotations.models import (
    Annotation,
    Annotator,
    Approach,
    Draft,
    GoldAnswer,
    Resolution,
    Review,
)
from annotation_server.annotations.resolution import settle
from annotation_server.prepared import PreparedQuery
from annotation_server.projects.models import Project
from annotation_server.tasks import services as tasks_services
from annotation_server.tasks.models import Task
from annotation_server.tasks.services import Claim
from trainer.contract.answers import Answer, as_answer


class AnnotationRefused(ValueError):
    """An annotation that cannot be recorded; the message is one line for whoever sent it."""


class AlreadyAnswered(AnnotationRefused):
    """The person has answered this task before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAnnotation:
    """What somebody says about a task, before it is recorded."""

    task: Task
    annotator: Annotator
    approach: str
    answer: Answer
    rationale: str = ""
    idempotency_key: str
    """The same key by the same annotator keeps one annotation."""
    prompt_version: str = ""
    confidence: float | None = None
    seconds_spent: float | None = None
    copied_from: Annotation | None = None
    marks: Sequence[Mapping[str, Any]] = ()
    """Where something is seen (marks.py)."""
    meta: Mapping[str, Any] = field(default_factory=dict)


def annotator_for(person: Person) -> Annotator:
    """The annotator that a person is."""
    annotator = _annotator.first(person=person.pk)
    if annotator is None:
        who = {"kind": Annotator.Kind.PERSON, "name": person.username}
        annotator, _ = Annotator.objects.get_or_create(person=person, defaults=who)
    annotator.person = person
    return annotator


_annotator = PreparedQuery(lambda p: Annotator.objects.filter(person=p("person")))


def model_annotator(name: str) -> Annotator:
    """The annotator that a model is, by the name of its endpoint."""
    annotator, _ = Annotator.objects.get_or_create(kind=Annotator.Kind.MODEL, name=name)
    return annotator


def import_annotator(name: str) -> Annotator:
    """The annotator that an import's source is: answers that came with the data are attributed to it."""
    annotator, _ = Annotator.objects.get_or_create(kind=Annotator.Kind.IMPORT, name=name)
    return annotator


def record_annotation(new: NewAnnotation) -> Annotation:
    """Save one annotation and settle the task if its rule is met. Called twice with one key, it returns the first.

    Raises AnnotationRefused when it does not fit the task or the project, AlreadyAnswered on a second vote.
    """
    return record_annotations([new])[0]


def record_annotations(rows: Sequence[NewAnnotation]) -> list[Annotation]:
    """Save annotations and settle their tasks in one transaction: all of them or, when one is refused, none.

    Returns one annotation per row, in order; a row whose key was used before returns the annotation it made then.
    """
    for row in rows:
        check_answer(row)
        _check_approach(row)
    try:
        with transaction.atomic():
            return _record(rows)
    except IntegrityError:
        # The same key arrived twice at the same moment. The other one has been committed: find it.
        with transaction.atomic():
            return _record(rows)


def check_answer(row: NewAnnotation) -> None:
    try:
        as_answer(row.answer, row.task.candidate_count)
        clean_marks(row.marks, row.task.candidate_count)
    except ValueError as error:
        raise AnnotationRefused(str(error)) from None
    if not row.idempotency_key:
        raise AnnotationRefused("an annotation needs an idempotency key")
    if row.confidence is not None and not 0 <= row.confidence <= 1:
        raise AnnotationRefused(f"confidence is between 0 and 1, got {row.confidence}")


def _check_approach(row: NewAnnotation) -> None:
    by_person = row.annotator.kind == Annotator.Kind.PERSON
    by_model = row.annotator.kind == Annotator.Kind.MODEL
    if row.approach == Approach.MANUAL and by_model:
        raise AnnotationRefused("a model's annotation is automated or answer-driven, not manual")
    if row.approach != Approach.MANUAL and by_person:
        raise AnnotationRefused("a person's annotation is manual")
    if by_person and row.task.project.rationale_required and not row.rationale.strip():
        raise AnnotationRefused("this project wants a rationale with every answer")


def _record(rows: Sequence[NewAnnotation]) -> list[Annotation]:
    known = recorded_before(rows)
    new = [row for row in rows if (row.annotator.pk, row.idempotency_key) not in known]
    # Locking the tasks makes simultaneous last votes see each other (PostgreSQL; SQLite has one writer anyway).
    tasks = locked_tasks([row.task.pk for row in new])
    made = Annotation.objects.bulk_create([_vote_or_advice(row) for row in new], batch_size=2000)
    settle(list(tasks.values()))
    for said in made:
        if said.annotator.person_id is not None:
            forget_draft(said.task_id, said.annotator.person_id)
            pause_below_floor(said)
    known |= {(annotation.annotator_id, annotation.idempotency_key): annotation for annotation in made}
    return [known[row.annotator.pk, row.idempotency_key] for row in rows]


def recorded_before(rows: Sequence[NewAnnotation]) -> dict[tuple[int, str], Annotation]:
    found: dict[tuple[int, str], Annotation] = {}
    keys = {row.idempotency_key: row for row in rows}
    listed = list(keys)
    for start in range(0, len(listed), 500):
        annotators = sorted({row.annotator.pk for row in rows})
        for annotation in _with_keys(annotators=annotators, keys=listed[start : start + 500]):
            row = keys[annotation.idempotency_key]
            if annotation.annotator_id == row.annotator.pk:
                if annotation.task_id != row.task.pk:
                    raise AnnotationRefused(f"idempotency key {row.idempotency_key!r} was used for another task")
                found[annotation.annotator_id, annotation.idempotency_key] = annotation
    return found


_with_keys = PreparedQuery(
    lambda p: Annotation.objects.filter(annotator__id__in=p("annotators"), idempotency_key__in=p("keys"))
)


def locked_tasks(task_ids: Sequence[int]) -> dict[int, Task]:
    """The tasks by id, locked until the transaction ends. Rows that merely refer to them are not waited for."""
    wanted = sorted(set(task_ids))
    tasks: dict[int, Task] = {}
    for start in range(0, len(wanted), 500):
        tasks |= {task.pk: task for task in _locked(tasks=wanted[start : start + 500])}
    return tasks


_locked = PreparedQuery(lambda p: Task.objects.select_for_update(no_key=True).filter(pk__in=p("tasks")).order_by("pk"))


def _vote_or_advice(row: NewAnnotation) -> Annotation:
    """The row to insert, its slot already taken. Models only advise; people and imports vote while a slot is free."""
    if row.annotator.kind == Annotator.Kind.MODEL or row.approach != Approach.MANUAL:
        return unsaved_annotation(row, standing=Annotation.Standing.ADVICE)
    try:
        slot_id = tasks_services.fill_slot(row.task, row.annotator.person)
    except tasks_services.SlotFilled:
        raise AlreadyAnswered("you have answered this task already") from None
    if slot_id is None:
        return unsaved_annotation(row, standing=Annotation.Standing.SURPLUS)
    return unsaved_annotation(row, standing=Annotation.Standing.VOTE, slot_id=slot_id)


def storable(text: str) -> str:
    """Text that every database takes: PostgreSQL keeps no NUL, UTF-8 no half of a surrogate pair; JSON brings both."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def unsaved_annotation(row: NewAnnotation, *, standing: str, slot_id: int | None = None) -> Annotation:
    return Annotation(
        task=row.task,
        annotator=row.annotator,
        approach=row.approach,
        standing=standing,
        answer=row.answer,
        rationale=storable(row.rationale).strip(),
        prompt_version=row.prompt_version,
        confidence=row.confidence,
        seconds_spent=row.seconds_spent,
        slot_id=slot_id,
        copied_from=row.copied_from,
        idempotency_key=row.idempotency_key,
        marks=clean_marks(row.marks, row.task.candidate_count),
        meta=dict(row.meta),
    )


def add_gold(answers: Mapping[Task, Answer]) -> int:
    """Make known answers of tasks gold: they stand at once and check annotators from then on. Returns how many are new.

    Raises AnnotationRefused when an answer does not fit its task, or a task has another gold answer.
    """
    for task, answer in answers.items():
        try:
            as_answer(answer, task.candidate_count)
        except ValueError as error:
            raise AnnotationRefused(f"{task}: {error}") from None
    with transaction.atomic():
        tasks = locked_tasks([task.pk for task in answers])
        by_id = {task.pk: answer for task, answer in answers.items()}
        there = {gold.task_id: gold.answer for gold in GoldAnswer.objects.filter(task__in=tasks)}
        for task_id, answer in there.items():
            if answer != by_id[task_id]:
                raise AnnotationRefused(f"task {task_id} has another gold answer already")
        GoldAnswer.objects.bulk_create(
            [GoldAnswer(task=tasks[pk], answer=answer) for pk, answer in by_id.items() if pk not in there],
            batch_size=2000,
        )
        # Its answer is known: it wants no votes, and comes to annotators only as a check (queue.py).
        tasks_services.drop_open_slots(list(by_id))
        settle(list(tasks.values()))
    return len(by_id) - len(there)


def withdraw(annotation: Annotation, person: Person) -> Claim:
    """Undo one's own vote: it stays in the ledger, counts nowhere, and the task is in the person's hands again.

    What they had said becomes the draft to go on from. Raises AnnotationRefused when the annotation is not theirs, or
    when somebody has acted on it: another annotation, review or decision came after it, or a version froze it.
    """
    with transaction.atomic():
        # Freezing stamps the project's row.
        project = Project.objects.select_for_update(no_key=True).get(pk=annotation.task.project_id)
        tasks_services.lock_cursor(project.pk, person)
        tasks = locked_tasks([annotation.task_id])
        said = Annotation.objects.select_related("annotator", "slot").get(pk=annotation.pk)
        _check_undo(said, person, project)
        if said.slot_id is None:
            raise AnnotationRefused("this answer is surplus: the task's votes came from others")
        slot_id = said.slot_id
        said.standing, said.slot = Annotation.Standing.WITHDRAWN, None
        said.save(update_fields=["standing", "slot"])
        claim = tasks_services.reopen(slot_id, person)
        draft = {"answer": sorted(said.answer), "rationale": said.rationale, "marks": said.marks}
        Draft.objects.update_or_create(task=said.task, person=person, defaults=draft)
        settle(list(tasks.values()))
    return claim


def _check_undo(said: Annotation, person: Person, project: Project) -> None:
    if said.annotator.person_id != person.pk:
        raise AnnotationRefused("only your own answers can be undone")
    if said.standing == Annotation.Standing.WITHDRAWN:
        raise AnnotationRefused("this answer was undone before")
    later = Annotation.objects.filter(annotator=said.annotator_id, task__project=project, pk__gt=said.pk)
    if later.exclude(standing=Annotation.Standing.WITHDRAWN).exists():
        raise AnnotationRefused("only your last answer can be undone")
    if Annotation.objects.filter(task=said.task_id, pk__gt=said.pk).exists():
        raise AnnotationRefused("somebody else has acted on this task since: your answer can no longer be undone")
    if Review.objects.filter(task=said.task_id, created_at__gte=said.created_at).exists():
        raise AnnotationRefused("a reviewer has acted on this task since: your answer can no longer be undone")
    resolved = Resolution.objects.filter(task=said.task_id).exists()
    if resolved and project.frozen_at is not None and project.frozen_at >= said.created_at:
        raise AnnotationRefused("a dataset version has frozen this answer: it can no longer be undone")
