"""Drafts: what somebody has begun to say about a task, kept on the server while they type.

A page says which revision it knows; one that knows an older revision (another tab, another machine) gets a conflict,
never the power to overwrite. Not here: what is kept in the browser when the network is gone (static/js/outbox.js).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F

from annotation_server.accounts.models import Person
from annotation_server.annotations.marks import clean_marks
from annotation_server.annotations.models import Annotation, Draft
from annotation_server.prepared import PreparedQuery
from annotation_server.tasks.models import Task
from trainer.contract.answers import as_answer


class DraftConflict(Exception):
    """Somewhere else the same person has written on: `draft` is what stands there."""

    def __init__(self, draft: Draft) -> None:
        super().__init__("This draft was changed elsewhere: another tab or machine knows a newer one.")
        self.draft = draft


class DraftRefused(ValueError):
    """A draft that does not fit its task; the message is one line."""


def save_draft(
    *,
    task: Task,
    person: Person,
    revision: int,
    answer: Collection[str] | None,
    rationale: str,
    marks: Sequence[Mapping[str, Any]] = (),
) -> Draft:
    """Keep a draft; `revision` is the one the page knows, 0 for none. `answer` None: nothing is chosen yet.

    Raises DraftConflict when there is a newer one, DraftRefused when it does not fit or the task was answered already.
    """
    try:
        said: dict[str, Any] = {
            "answer": None if answer is None else sorted(as_answer(answer, task.candidate_count)),
            "rationale": rationale,
            "marks": clean_marks(marks, task.candidate_count),
        }
    except ValueError as error:
        raise DraftRefused(str(error)) from None
    mine = Annotation.objects.filter(task=task, annotator__person=person)
    if mine.exclude(standing=Annotation.Standing.WITHDRAWN).exists():
        raise DraftRefused("you have answered this task already")
    if revision == 0:
        try:
            with transaction.atomic():
                return Draft.objects.create(task=task, person=person, **said)
        except IntegrityError:
            raise DraftConflict(Draft.objects.get(task=task, person=person)) from None
    known = Draft.objects.filter(task=task, person=person)
    for draft in known.filter(revision=revision):
        for name, value in said.items():
            setattr(draft, name, value)
        draft.revision = revision + 1
        if known.filter(revision=revision).update(revision=F("revision") + 1):
            draft.save(update_fields=[*said, "updated_at"])
            return draft
    there = known.first()
    if there is None:
        # Deleted meanwhile, by a submission that was undone since: begin anew.
        return save_draft(task=task, person=person, revision=0, answer=answer, rationale=rationale, marks=marks)
    raise DraftConflict(there)


def drafts_of(person: Person, task_ids: Collection[int]) -> dict[int, Draft]:
    """The person's drafts on these tasks, by task."""
    return {draft.task_id: draft for draft in _drafts(person=person.pk, tasks=list(task_ids))}


_drafts = PreparedQuery(lambda p: Draft.objects.filter(person=p("person"), task__id__in=p("tasks")))


def forget_draft(task_id: int, person_id: int) -> None:
    """Delete a draft: its content has been submitted."""
    Draft.objects.filter(task=task_id, person=person_id).delete()
