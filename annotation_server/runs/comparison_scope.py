"""What a comparison is over: whose work, and which tasks, all of them or some drawn as if at random.

What counts as an approach's work. *Manual*: what people voted, or said too late (surplus), and what they skipped; the
time of what they took back was spent, too. Not imports, whose work nobody measured, and not decisions, whose deciders
had read the others. *Automated* and *answer-driven*: settled tasks of runs and every call about them.
Not here: counting any of it (comparison_queries.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction
from django.db.models import (
    BigIntegerField,
    Count,
    ExpressionWrapper,
    F,
    Q,
    QuerySet,
)
from django.db.models.expressions import RawSQL

from annotation_server.annotations.models import Annotation, Annotator, Approach
from annotation_server.projects.models import Project
from annotation_server.runs.models import Attempt, Endpoint, RunTask
from annotation_server.tasks.models import Flag, Task

MOST_TASKS = 50_000
"""Of more tasks so many are looked at: a share of them is known to half a percent, in a tenth of the time."""

BY_MODEL = (Approach.AUTOMATED.value, Approach.ANSWER_DRIVEN.value)
WORKED = (Annotation.Standing.VOTE, Annotation.Standing.SURPLUS)
SCATTERED = 2**32
BY_TASK, BY_RECORD = 2654435761, 2246822519
"""Multiplicative hashes, Knuth's and one of xxHash's: what is drawn depends on ids alone, and not on their age. Two of
them, since records often have the ids of their tasks plus a number: by one hash, of the tasks that are drawn all their
records or none would be drawn."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose work is looked at: a project's, by one endpoint or any, on all its tasks or on those kept in a table."""

    project: Project
    endpoint: Endpoint | None
    table: str = ""
    """Of `chosen_tasks`, and within it only."""

    def tasks(self) -> QuerySet[Task]:
        return Task.objects.filter(Q(pk__in=_kept(self.table)) if self.table else Q(project=self.project))

    def by_people(self) -> QuerySet[Annotation]:
        """What people said and did not take back."""
        return self._on(Annotation.objects.filter(_manual(WORKED)))

    def by_people_at_all(self) -> QuerySet[Annotation]:
        """Also what they took back."""
        return self._on(Annotation.objects.filter(_manual((*WORKED, Annotation.Standing.WITHDRAWN))))

    def skipped(self) -> QuerySet[Flag]:
        return self._on(Flag.objects.filter(skipped=True))

    def settled(self, *approaches: str) -> QuerySet[RunTask]:
        """Tasks of runs for which no further call is made."""
        found = RunTask.objects.filter(run__approach__in=approaches).exclude(state=RunTask.State.WAITING)
        return self._on(found if self.endpoint is None else found.filter(run__endpoint=self.endpoint), of="run")

    def calls(self) -> QuerySet[Attempt]:
        """Every call about them, refused ones included."""
        found = Attempt.objects.exclude(run_task__state=RunTask.State.WAITING)
        if self.endpoint is not None:
            found = found.filter(run_task__run__endpoint=self.endpoint)
        return self._on(found, "run_task__task", of="run_task__run")

    def votes(self) -> QuerySet[Annotation]:
        """Of people and imports: what others are held against."""
        return self._on(Annotation.objects.filter(standing=Annotation.Standing.VOTE))

    def _on(self, found: QuerySet[Any], task: str = "task", *, of: str = "task") -> QuerySet[Any]:
        """Of the project, as `of` says, or on the tasks of the table, which are all of it."""
        if self.table:
            return found.filter(**{f"{task}__in": _kept(self.table)})
        return found.filter(**{f"{of}__project": self.project})


def _manual(standings: Sequence[str]) -> Q:
    return Q(approach=Approach.MANUAL, standing__in=standings, annotator__kind=Annotator.Kind.PERSON)


def approaches_tried(project: Project, endpoint: Endpoint | None) -> list[str]:
    """Those that have worked on anything."""
    scope = Scope(project, endpoint)
    found = [Approach.MANUAL.value] if scope.by_people().exists() or scope.skipped().exists() else []
    return found + [approach for approach in BY_MODEL if scope.settled(approach).exists()]


_CHOSEN, _DRAWN, _WITH_GOLD = "compared_task", "drawn_task", "gold_task"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tasks that a comparison is over: how many per dimension, and how many of them are looked at."""

    scope: Scope
    """Those that are looked at."""
    with_gold: Scope
    """All of them that have gold: it is scarce, and none of it is left out."""
    tasks: Mapping[str, int]
    looked_at: int


@contextmanager
def chosen_tasks(
    project: Project, endpoint: Endpoint | None, tried: Sequence[str], *, shared: bool, most: int | None
) -> Iterator[Chosen]:
    """Those that all of `tried` worked on, or all; of more than `most` so many are looked at, drawn as if at random.

    Their ids lie in temporary tables of this connection, so that a dozen queries need not each find them again; the
    tables are gone after the block.
    """
    # A pooler before PostgreSQL leaves a connection to oneself for a transaction only. On SQLite, where the connection
    # is one's own, a transaction would keep everybody else from writing.
    around: AbstractContextManager[None] = _dropped_at_the_end()
    if connection.vendor == "postgresql":
        around = transaction.atomic()
    every = Task.objects.filter(project=project)
    whole = Scope(project, endpoint)
    with around:
        numbers = _per_dimension(every)
        if shared:
            _keep(_CHOSEN, *_worked_on_by_all(every, whole, tried).values("pk").query.sql_with_params())
            whole = Scope(project, endpoint, _CHOSEN)
            numbers = _per_dimension(whole.tasks())
        scope, looked_at = whole, sum(numbers.values())
        if most is not None and looked_at > most:
            scattered = whole.tasks().annotate(place=place_of("pk", BY_TASK))
            drawn = scattered.filter(place__lt=SCATTERED * most // looked_at)
            looked_at = _keep(_DRAWN, *drawn.values("pk").query.sql_with_params())
            scope = Scope(project, endpoint, _DRAWN)
        _keep(_WITH_GOLD, *whole.tasks().filter(gold__isnull=False).values("pk").query.sql_with_params())
        yield Chosen(scope, Scope(project, endpoint, _WITH_GOLD), numbers, looked_at)


def _keep(table: str, sql: str, params: Sequence[Any]) -> int:
    """What a query selects, as a temporary table of ids. Returns how many."""
    in_postgresql = connection.vendor == "postgresql"
    columns = "(id bigint PRIMARY KEY) ON COMMIT DROP" if in_postgresql else "(id INTEGER PRIMARY KEY)"
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {table}")
        cursor.execute(f"CREATE TEMPORARY TABLE {table} {columns}")
        cursor.execute(f"INSERT INTO {table} {sql}", params)
        kept: int = cursor.rowcount
        if in_postgresql:
            cursor.execute(f"ANALYZE {table}")
    return kept


def _kept(table: str) -> RawSQL:
    return RawSQL(f"SELECT id FROM {table}", ())  # noqa: S608, S611 - a name of ours


@contextmanager
def _dropped_at_the_end() -> Iterator[None]:
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            for table in (_CHOSEN, _DRAWN, _WITH_GOLD):
                cursor.execute(f"DROP TABLE IF EXISTS {table}")


def place_of(key: str, hashed: int) -> ExpressionWrapper[Any]:
    """Where an id lands, below SCATTERED, when ids are scattered."""
    return ExpressionWrapper(F(key) * hashed % SCATTERED, output_field=BigIntegerField())


def _worked_on_by_all(tasks: QuerySet[Task], scope: Scope, tried: Sequence[str]) -> QuerySet[Task]:
    for approach in tried:
        if approach == Approach.MANUAL:
            tasks = tasks.filter(Q(pk__in=scope.by_people().values("task")) | Q(pk__in=scope.skipped().values("task")))
        else:
            tasks = tasks.filter(pk__in=scope.settled(approach).values("task"))
    return tasks


def _per_dimension(tasks: QuerySet[Task]) -> dict[str, int]:
    return dict(tasks.values_list("dimension").annotate(number=Count("pk")).order_by())


def tasks_per_dimension(project: Project) -> dict[str, int]:
    """All of them."""
    return _per_dimension(Task.objects.filter(project=project))
