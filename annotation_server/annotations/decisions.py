"""Decisions above the votes: an adjudicator settles a dispute, a reviewer accepts, corrects or rejects what stands.

Everything is kept: a decision is an annotation of its own, an edited rationale leaves the original as it was. Not here:
which tasks are up for review (selectors.py), what then stands (resolution.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation, Approach, Resolution, Review
from annotation_server.annotations.resolution import settle, trusted_annotation
from annotation_server.annotations.services import (
    AnnotationRefused,
    NewAnnotation,
    annotator_for,
    check_answer,
    locked_tasks,
    recorded_before,
    unsaved_annotation,
)
from annotation_server.tasks.models import Task
from trainer.contract.answers import Answer


def adjudicate(
    *,
    task: Task,
    answer: Answer,
    person: Person,
    rationale: str = "",
    marks: Sequence[Mapping[str, Any]] = (),
    idempotency_key: str,
) -> Annotation:
    """Decide a task for good: the decision is kept in the ledger and stands whatever votes come later."""
    new = NewAnnotation(
        task=task,
        annotator=annotator_for(person),
        approach=Approach.MANUAL,
        answer=answer,
        rationale=rationale,
        marks=marks,
        idempotency_key=idempotency_key,
    )
    return _decide(new, Resolution.Source.ADJUDICATION, person)


def review(
    *,
    task: Task,
    annotation: Annotation | None,
    verdict: str,
    person: Person,
    reason: str = "",
    answer: Answer | None = None,
    rationale: str = "",
    idempotency_key: str,
) -> Review:
    """Say what is to become of what stands for a task, or of one model annotation (`annotation`).

    ACCEPTED leaves everything. CORRECTED needs `answer` and `rationale`, which stand from now on; where only the words
    change, they keep the approach of the rationale they were made from. REJECTED needs a reason: a model's annotation
    counts no longer, votes go to an adjudicator. The same key again returns the first review. Raises AnnotationRefused.
    """
    if verdict not in Review.Verdict.values:
        raise AnnotationRefused(f"{verdict!r} is no verdict: expected one of {', '.join(Review.Verdict.values)}")
    if verdict == Review.Verdict.REJECTED and not reason.strip():
        raise AnnotationRefused("a rejection needs a reason")
    if verdict == Review.Verdict.CORRECTED and answer is None:
        raise AnnotationRefused("a correction needs an answer")
    with transaction.atomic():
        tasks = locked_tasks([task.pk])
        known = Review.objects.filter(task=task, person=person, idempotency_key=idempotency_key).first()
        if known is not None:
            return known
        standing = Resolution.objects.select_related("rationale_from").filter(task=task).first()
        if standing is None and annotation is None:
            raise AnnotationRefused("nothing stands for this task yet: there is nothing to review")
        looked_at = annotation or (standing.rationale_from if standing else None)
        if verdict == Review.Verdict.REJECTED and annotation is None and standing is not None:
            looked_at = _behind(standing, tasks[task.pk])
        decision = None
        if verdict == Review.Verdict.CORRECTED and answer is not None:
            decision = _correct(task, annotation, standing, answer, rationale, person, idempotency_key)
        said = Review.objects.create(
            task=task,
            annotation=looked_at,
            person=person,
            verdict=verdict,
            reason=reason.strip()[:500],
            decision=decision,
            idempotency_key=idempotency_key,
        )
        if verdict == Review.Verdict.REJECTED:
            if annotation is None:
                Resolution.objects.filter(task=task, source__in=_DECIDED).delete()
            settle(list(tasks.values()))
    return said


_DECIDED = (Resolution.Source.ADJUDICATION, Resolution.Source.REVIEW)


def _behind(standing: Resolution, task: Task) -> Annotation | None:
    """What is turned down where a whole resolution is: the model annotation that made it, else its votes or decision.

    A model's reasoning for an answer that people agreed on is not what made it stand: the review names none then.
    """
    if standing.source == Resolution.Source.GOLD:
        raise AnnotationRefused("gold cannot be rejected: correct it, or import other gold")
    if standing.source == Resolution.Source.MODEL:
        said = task.annotations.filter(answer=standing.answer, standing=Annotation.Standing.ADVICE).order_by("pk")
        return trusted_annotation(task.project, list(said))
    rationale = standing.rationale_from
    return None if rationale is None or rationale.standing == Annotation.Standing.ADVICE else rationale


def _correct(
    task: Task,
    annotation: Annotation | None,
    standing: Resolution | None,
    answer: Answer,
    rationale: str,
    person: Person,
    idempotency_key: str,
) -> Annotation:
    before = annotation or (standing.rationale_from if standing else None)
    only_words = before is not None and before.answer == answer and bool(before.rationale)
    new = NewAnnotation(
        task=task,
        annotator=annotator_for(person),
        approach=before.approach if before is not None and only_words else Approach.MANUAL,
        answer=answer,
        rationale=rationale,
        marks=before.marks if before is not None and only_words else (),
        copied_from=before,
        prompt_version=before.prompt_version if before is not None and only_words else "",
        idempotency_key=idempotency_key,
    )
    return _decide(new, Resolution.Source.REVIEW, person)


def _decide(new: NewAnnotation, source: str, person: Person) -> Annotation:
    check_answer(new)
    with transaction.atomic():
        tasks = locked_tasks([new.task.pk])
        known = recorded_before([new])
        if known:
            return next(iter(known.values()))
        decision = unsaved_annotation(new, standing=Annotation.Standing.DECISION)
        decision.save()
        Resolution.objects.update_or_create(
            task=new.task, defaults={"answer": new.answer, "source": source, "decided_by": person}
        )
        settle(list(tasks.values()))
    return decision
