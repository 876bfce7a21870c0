"""Which tasks a run works on, per approach, and which answer an answer-driven run explains.

Not here: making the run (services.py), writing its tasks down (preparation.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.projects.models import Project
from annotation_server.runs.models import Endpoint, Run
from annotation_server.tasks.models import Task
from trainer.contract.answers import Answer

_BATCH = 500
_GIVEN_BY = (Annotation.Standing.VOTE, Annotation.Standing.DECISION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asked a run to do."""

    project: Project
    endpoint: Endpoint
    approach: Approach
    dimensions: Collection[str] = ()
    """Empty: all of them."""
    task_ids: Collection[int] | None = None
    """Only these tasks; None: all that the approach can work on."""
    resolved_too: bool = False
    """To compare approaches. Automated: also tasks that have an answer; answer-driven: also those with a rationale."""
    limit: int | None = None


def as_stored(wanted: Wanted) -> dict[str, Any]:
    """The part of a wish that a run's own columns do not say, as JSON."""
    return {
        "dimensions": list(wanted.dimensions),
        "task_ids": None if wanted.task_ids is None else list(wanted.task_ids),
        "resolved_too": wanted.resolved_too,
        "limit": wanted.limit,
    }


def wanted_by(run: Run) -> Wanted:
    """The wish that a run was started with."""
    return Wanted(project=run.project, endpoint=run.endpoint, approach=Approach(run.approach), **run.wanted)


@dataclass(frozen=True, slots=True)
class Selected:
    """A task of a run to be, with the answer to explain where there is one."""

    task_id: int
    given_answer: Answer | None = None
    given_from_id: int | None = None


def select_tasks(wanted: Wanted, *, after: int = 0, but: int = 0) -> QuerySet[Task]:
    """The tasks in order of id, already annotated ones of this endpoint left out. To go on with a selection: those
    `after` a task, of which `but` were taken before."""
    tasks = Task.objects.filter(project=wanted.project, pk__gt=after)
    if wanted.dimensions:
        tasks = tasks.filter(dimension__in=wanted.dimensions)
    if wanted.task_ids is not None:
        tasks = tasks.filter(pk__in=wanted.task_ids)
    by_this_annotator = Annotation.objects.filter(
        task=OuterRef("pk"), annotator=wanted.endpoint.annotator, approach=wanted.approach
    )
    tasks = tasks.exclude(Exists(by_this_annotator))
    if wanted.approach == Approach.ANSWER_DRIVEN:
        tasks = tasks.filter(_answer_to_explain(explained_too=wanted.resolved_too))
    elif not wanted.resolved_too:
        tasks = tasks.exclude(state=Task.State.RESOLVED)
    tasks = tasks.order_by("pk")
    return tasks if wanted.limit is None else tasks[: max(0, wanted.limit - but)]


def _answer_to_explain(*, explained_too: bool) -> Q:
    """Resolved tasks nobody gave a reasoning for, and open ones with a first vote. Disputed ones have no answer yet."""
    resolved = Q(resolution__isnull=False)
    if not explained_too:
        resolved &= Q(resolution__rationale_from=None)
    voted = Q(Exists(Annotation.objects.filter(task=OuterRef("pk"), standing=Annotation.Standing.VOTE)))
    return resolved | (Q(resolution=None, state=Task.State.OPEN) & (Q(gold__isnull=False) | voted))


def next_selected(wanted: Wanted, *, after: int, but: int, most: int) -> list[Selected]:
    """Up to `most` of the selected tasks `after` a task, of which `but` were taken before; empty after the last.

    Read to the end: on SQLite a query that is still being read keeps its connection from writing, at once and for good,
    as soon as anybody else has written.
    """
    tasks = select_tasks(wanted, after=after, but=but)[:most]
    if wanted.approach != Approach.ANSWER_DRIVEN:
        return [Selected(pk) for pk in tasks.values_list("pk", flat=True)]
    rows = list(tasks.values_list("pk", "resolution__answer", "gold__answer"))
    votes: dict[int, list[Annotation]] = {}
    for start in range(0, len(rows), _BATCH):
        some = [pk for pk, *_ in rows[start : start + _BATCH]]
        given_by = Annotation.objects.filter(task__in=some, standing__in=_GIVEN_BY)
        for vote in given_by.only("task_id", "answer").order_by("pk"):
            votes.setdefault(vote.task_id, []).append(vote)
    return [_given(task_id, resolved, gold, votes.get(task_id, [])) for task_id, resolved, gold in rows]


def _given(task_id: int, resolved: Answer | None, gold: Answer | None, votes: list[Annotation]) -> Selected:
    """The answer that stands, else the first vote's; copied from the first vote that says so, if one does."""
    answer = gold if resolved is None else resolved
    if answer is None:
        return Selected(task_id, votes[0].answer, votes[0].pk)
    said_so = next((vote.pk for vote in votes if vote.answer == answer), None)
    return Selected(task_id, answer, said_so)
