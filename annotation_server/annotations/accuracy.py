"""How well a person answers gold: over their last answers, per dimension, and whether that pauses them.

The project sets the window and the floor. Scores are the contract's: exact match, and balanced partial credit beside
it. Not here: mixing gold in (queue.py), agreement between people (agreement.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import QuerySet
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.accounts.services import audit
from annotation_server.annotations.models import Annotation, GoldAnswer
from annotation_server.projects.models import Membership, Project
from trainer.contract.answers import Answer
from trainer.contract.scores import ScoreVariant, score

_COUNTED = (Annotation.Standing.VOTE, Annotation.Standing.SURPLUS)


@dataclass(slots=True)
class Checked:
    """Answers to gold: how many, how many exact, their mean partial credit."""

    answers: int = 0
    exact: int = 0
    credit: float = 0.0

    def add(self, said: Answer, gold: Answer, candidate_count: int) -> None:
        """Count one answer."""
        self.answers += 1
        self.exact += said == gold
        self.credit += score(ScoreVariant.BALANCED, said, gold, candidate_count)

    @property
    def share(self) -> float | None:
        """Exact answers among all; None without any."""
        return self.exact / self.answers if self.answers else None

    @property
    def mean_credit(self) -> float | None:
        """Mean partial credit; None without any answer."""
        return self.credit / self.answers if self.answers else None


@dataclass(slots=True)
class GoldAccuracy:
    """A person's answers to gold in a project, over the window: in all, and per dimension."""

    overall: Checked
    dimensions: dict[str, Checked]


def gold_accuracy(project: Project, person: Person) -> GoldAccuracy:
    """Over the last `gold_window` gold answers of the person, in all and of each dimension by itself."""
    answers = _gold_answers(project, person)
    return GoldAccuracy(
        _checked(answers[: project.gold_window]),
        {
            dimension: _checked(answers.filter(task__dimension=dimension)[: project.gold_window])
            for dimension in project.dimensions
        },
    )


def gold_accuracy_of_all(project: Project) -> dict[int, GoldAccuracy]:
    """The same for everybody who has answered gold, by person, in one query of a few columns: of large projects these
    are ten thousands of rows."""
    gold = GoldAnswer.objects.filter(task__project=project).values("task")
    said = Annotation.objects.filter(task__in=gold, standing__in=_COUNTED, annotator__person__isnull=False)
    found: dict[int, GoldAccuracy] = {}
    columns = ("annotator__person", "task__dimension", "task__candidate_count", "answer", "task__gold__answer")
    for person_id, dimension, count, answer, right in said.order_by("-pk").values_list(*columns).iterator():
        if person_id not in found:
            found[person_id] = GoldAccuracy(Checked(), {name: Checked() for name in project.dimensions})
        accuracy = found[person_id]
        for checked in (accuracy.overall, accuracy.dimensions.setdefault(dimension, Checked())):
            if checked.answers < project.gold_window:
                checked.add(answer, right, count)
    return found


def _gold_answers(project: Project, person: Person) -> QuerySet[Annotation]:
    """The person's answers to gold, the newest first."""
    said = Annotation.objects.filter(annotator__person=person, standing__in=_COUNTED, task__project=project)
    return said.filter(task__gold__isnull=False).select_related("task__gold").order_by("-pk")


def _checked(answers: Iterable[Annotation]) -> Checked:
    checked = Checked()
    for said in answers:
        checked.add(said.answer, said.task.gold.answer, said.task.candidate_count)
    return checked


def pause_below_floor(said: Annotation) -> None:
    """Pause whoever has just answered gold and fell below their project's floor. Call it after recording."""
    person, project = said.annotator.person, said.task.project
    if person is None or project.gold_floor is None or said.standing not in _COUNTED:
        return
    if not GoldAnswer.objects.filter(task=said.task_id).exists():
        return
    answers = _gold_answers(project, person)
    membership = Membership.objects.filter(project=project, person=person).first()
    if membership is not None and membership.resumed_at is not None:
        answers = answers.filter(created_at__gt=membership.resumed_at)
    checked = _checked(answers[: project.gold_window])
    if checked.answers == project.gold_window and (checked.share or 0.0) < project.gold_floor:
        why = f"{checked.exact} of the last {checked.answers} gold answers exact, below {project.gold_floor:g}"
        pause(project, person, why, by=None)


def pause(project: Project, person: Person, why: str, *, by: Person | None) -> bool:
    """Give the person no more tasks; `by` None: the floor did it. False when they are no member, or paused already."""
    going = Membership.objects.filter(project=project, person=person, paused_at=None)
    done = going.update(paused_at=timezone.now(), paused_why=why[:200])
    if done:
        audit(person=by, verb="member.pause", subject=project, member=person.username, why=why)
    return bool(done)


def resume(project: Project, person: Person, *, by: Person) -> bool:
    """Give the person tasks again. Gold they answered before no longer pauses them."""
    paused = Membership.objects.filter(project=project, person=person, paused_at__isnull=False)
    done = paused.update(paused_at=None, paused_why="", resumed_at=timezone.now())
    if done:
        audit(person=by, verb="member.resume", subject=project, member=person.username)
    return bool(done)
