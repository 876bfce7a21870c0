"""What the ledger holds about the three approaches, counted by the database: one row per dimension, never per task.

What counts as an approach's work. *Manual*: what people voted, or said too late (surplus), and what they skipped; the
time of what they took back was spent, too. Not imports, whose work nobody measured, and not decisions, whose deciders
had read the others. *Automated* and *answer-driven*: settled tasks of runs and every call about them. What a reviewer
turned down is no accepted record. Not here: what follows from the counts (comparison.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection, transaction
from django.db.models import (
    Aggregate,
    BigIntegerField,
    CharField,
    Count,
    ExpressionWrapper,
    F,
    FloatField,
    Func,
    IntegerField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Concat

from annotation_server.annotations.models import Annotation, Annotator, Approach, Resolution, Review
from annotation_server.annotations.resolution import agreed_answer
from annotation_server.projects.models import Project
from annotation_server.runs.correctness import Checked, Tasks, checked
from annotation_server.runs.models import Attempt, Endpoint, RunTask
from annotation_server.runs.rationale_texts import Words, words_of
from annotation_server.tasks.models import Flag, Task

MOST_TASKS = 50_000
"""Of more tasks so many are looked at: a share of them is known to half a percent, in a tenth of the time."""

SAMPLE = 500
"""Records per approach and dimension whose texts and times are looked at one by one."""

CONFIDENCE_STEPS = 20
UNKNOWN_CONFIDENCE = -1

_BY_MODEL = (Approach.AUTOMATED.value, Approach.ANSWER_DRIVEN.value)
_WORKED = (Annotation.Standing.VOTE, Annotation.Standing.SURPLUS)
_DECIDED = (Resolution.Source.ADJUDICATION, Resolution.Source.REVIEW)
_BY_OTHERS = (Resolution.Source.AGREEMENT, *_DECIDED)

_SCATTER, _SCATTERED = 2654435761, 2**32
"""Knuth's multiplicative hash: which records are in a sample depends on their ids alone, and not on their age."""


@dataclass(slots=True)
class Sampled:
    """Some records of an approach, drawn as if at random, the same ones each time."""

    records: int = 0
    texts: list[Words] = field(default_factory=list)
    person_seconds: list[float] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Work:
    """What an approach did in one dimension, or in all; works add up."""

    asked: int = 0
    accepted: int = 0
    written: int = 0
    """Accepted records that have a rationale."""
    answers: int = 0
    """People's answers behind it, those taken back included."""
    timed: int = 0
    """Of them, those whose time the page measured."""
    seconds: float = 0.0
    """People's time on those."""
    usd: float = 0.0
    calls: int = 0
    unknown_calls: int = 0
    """Never answered, perhaps charged: in no sum."""
    model_seconds: float = 0.0
    given_gold: int = 0
    """Answer-driven: records that explain gold, or may: holding them against it says nothing."""
    gold: Tasks = field(default_factory=Counter)
    others: Tasks = field(default_factory=Counter)
    by_confidence: Counter[int] = field(default_factory=Counter)
    """Automated: accepted records by step of confidence."""
    gold_by_confidence: dict[int, Tasks] = field(default_factory=dict)
    others_by_confidence: dict[int, Tasks] = field(default_factory=dict)

    def add(self, other: Work) -> None:
        """Count what another dimension has, too."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in (
            (self.gold_by_confidence, other.gold_by_confidence),
            (self.others_by_confidence, other.others_by_confidence),
        ):
            for step, tasks in theirs.items():
                mine[step] = mine.get(step, Counter()) + tasks


_SUMS = (
    "asked", "accepted", "written", "answers", "timed", "seconds", "usd", "calls", "unknown_calls", "model_seconds",
    "given_gold", "gold", "others", "by_confidence",
)  # fmt: skip


class _Joined(Aggregate):
    """Texts of a group joined by commas, in any order; both databases have it under another name."""

    output_field = CharField()

    def __init__(self, expression: object) -> None:
        self.function = "STRING_AGG" if connection.vendor == "postgresql" else "GROUP_CONCAT"
        super().__init__(expression, Value(","))


class _Step(Func):
    """A confidence rounded down to a step, the unknown one by itself."""

    output_field = IntegerField()

    def __init__(self, expression: str) -> None:
        whole = "FLOOR({})" if connection.vendor == "postgresql" else "{}"  # a cast cuts off here and rounds there
        step = whole.format(f"%(expressions)s * {CONFIDENCE_STEPS} + 1e-9")
        super().__init__(expression, template=f"COALESCE(CAST({step} AS integer), {UNKNOWN_CONFIDENCE})")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose work is looked at: a project's, by one endpoint or any, on all its tasks or on those kept in a table."""

    project: Project
    endpoint: Endpoint | None
    table: str = ""
    """Of `chosen_tasks`, and within it only."""

    def tasks(self) -> QuerySet[Task]:
        found = Task.objects.filter(project=self.project)
        return found.filter(pk__in=_kept(self.table)) if self.table else found

    def by_people(self) -> QuerySet[Annotation]:
        """What people said and did not take back."""
        return self._on(Annotation.objects.filter(_manual(_WORKED)))

    def by_people_at_all(self) -> QuerySet[Annotation]:
        """Also what they took back."""
        return self._on(Annotation.objects.filter(_manual((*_WORKED, Annotation.Standing.WITHDRAWN))))

    def skipped(self) -> QuerySet[Flag]:
        return self._on(Flag.objects.filter(skipped=True))

    def settled(self, *approaches: str) -> QuerySet[RunTask]:
        """Tasks of runs for which no further call is made."""
        found = RunTask.objects.filter(run__approach__in=approaches).exclude(state=RunTask.State.WAITING)
        return self._on(found if self.endpoint is None else found.filter(run__endpoint=self.endpoint))

    def calls(self) -> QuerySet[Attempt]:
        """Every call about them, refused ones included."""
        found = Attempt.objects.exclude(run_task__state=RunTask.State.WAITING)
        if self.endpoint is not None:
            found = found.filter(run_task__run__endpoint=self.endpoint)
        return self._on(found, "run_task__task")

    def votes(self) -> QuerySet[Annotation]:
        """Of people and imports: what others are held against."""
        return self._on(Annotation.objects.filter(standing=Annotation.Standing.VOTE))

    def _on(self, found: QuerySet[Any], task: str = "task") -> QuerySet[Any]:
        found = found.filter(**{f"{task}__project": self.project})
        if self.table:
            found = found.filter(**{f"{task}__in": _kept(self.table)})
        return found


def _manual(standings: Sequence[str]) -> Q:
    return Q(approach=Approach.MANUAL, standing__in=standings, annotator__kind=Annotator.Kind.PERSON)


def approaches_tried(project: Project, endpoint: Endpoint | None) -> list[str]:
    """Those that have worked on anything."""
    scope = Scope(project, endpoint)
    found = [Approach.MANUAL.value] if scope.by_people().exists() or scope.skipped().exists() else []
    return found + [approach for approach in _BY_MODEL if scope.settled(approach).exists()]


_CHOSEN, _DRAWN = "compared_task", "drawn_task"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tasks that a comparison is over: how many per dimension, and how many of them are looked at."""

    scope: Scope
    """Those that are looked at."""
    whole: Scope
    """All of them: gold is scarce, and none of it is left out."""
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
            numbers = _per_dimension(Task.objects.filter(pk__in=_kept(_CHOSEN)))
        scope, looked_at = whole, sum(numbers.values())
        if most is not None and looked_at > most:
            drawn = whole.tasks().annotate(place=_place("pk")).filter(place__lt=_SCATTERED * most // looked_at)
            looked_at = _keep(_DRAWN, *drawn.values("pk").query.sql_with_params())
            scope = Scope(project, endpoint, _DRAWN)
        yield Chosen(scope, whole, numbers, looked_at)


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
            for table in (_CHOSEN, _DRAWN):
                cursor.execute(f"DROP TABLE IF EXISTS {table}")


def _place(key: str) -> ExpressionWrapper[Any]:
    """Where an id lands when ids are scattered."""
    return ExpressionWrapper(F(key) * _SCATTER % _SCATTERED, output_field=BigIntegerField())


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


WorkOf = dict[tuple[str, str], Work]
"""By approach and dimension."""


def work_done(chosen: Chosen) -> WorkOf:
    """Everything but the samples, which need to know how many records there are."""
    found: WorkOf = defaultdict(Work)
    scope = chosen.scope
    _count_people(scope, found)
    _count_runs(scope, found)
    _count_calls(scope, found)
    _count_given(scope, found)
    _check_by_gold(chosen.whole, found)
    _check_by_others(scope, found)
    return dict(found)


# How much, and what it cost


def _turned_down() -> QuerySet[Review, tuple[int]]:
    """Annotations that a reviewer rejected."""
    return Review.objects.filter(verdict=Review.Verdict.REJECTED, annotation__isnull=False).values_list("annotation")


def _count_people(scope: Scope, found: WorkOf) -> None:
    stands = Q(standing__in=_WORKED)
    kept = stands & ~Q(pk__in=_turned_down())
    rows = (
        scope.by_people_at_all()
        .values("task__dimension")
        .annotate(
            number=Count("pk"),
            answered=Count("pk", filter=stands),
            accepted=Count("pk", filter=kept),
            written=Count("pk", filter=kept & ~Q(rationale="")),
            timed=Count("seconds_spent"),
            seconds=Sum("seconds_spent"),
        )
    )
    for row in rows.order_by():
        work = found[Approach.MANUAL.value, row["task__dimension"]]
        work.asked, work.accepted, work.written = row["answered"], row["accepted"], row["written"]
        work.answers, work.timed, work.seconds = row["number"], row["timed"], row["seconds"] or 0.0
    skips = scope.skipped().values_list("task__dimension").annotate(number=Count("pk")).order_by()
    for dimension, number in skips:
        found[Approach.MANUAL.value, dimension].asked += number


def _accepted() -> Q:
    return Q(state=RunTask.State.ACCEPTED) & ~Q(annotation__in=_turned_down())


def _count_runs(scope: Scope, found: WorkOf) -> None:
    rows = (
        scope.settled(*_BY_MODEL)
        .values("run__approach", "task__dimension", step=_Step("annotation__confidence"))
        .annotate(
            asked=Count("pk"),
            accepted=Count("pk", filter=_accepted()),
            written=Count("pk", filter=_accepted() & ~Q(annotation__rationale="")),
            unnamed=Count("pk", filter=Q(given_from=None)),
        )
    )
    for row in rows.order_by():
        work = found[row["run__approach"], row["task__dimension"]]
        work.asked += row["asked"]
        work.accepted += row["accepted"]
        work.written += row["written"]
        if row["run__approach"] == Approach.ANSWER_DRIVEN:
            work.answers += row["unnamed"]  # gold or a decision: somebody's answer, whose time nobody measured
        elif row["accepted"]:
            work.by_confidence[row["step"]] += row["accepted"]


def _count_calls(scope: Scope, found: WorkOf) -> None:
    rows = (
        scope.calls()
        .values("run_task__run__approach", "run_task__task__dimension")
        .annotate(
            number=Count("pk"),
            unknown=Count("pk", filter=Q(outcome=Attempt.Outcome.UNKNOWN)),
            usd=Sum("cost_usd"),
            latency=Sum(Cast("latency_ms", BigIntegerField())),
        )
    )
    for row in rows.order_by():
        work = found[row["run_task__run__approach"], row["run_task__task__dimension"]]
        work.calls, work.unknown_calls = row["number"], row["unknown"]
        work.usd, work.model_seconds = float(row["usd"] or 0), (row["latency"] or 0) / 1000


def _count_given(scope: Scope, found: WorkOf) -> None:
    """People's answers that were explained: each once, however often that was."""
    given = Annotation.objects.filter(
        pk__in=scope.settled(Approach.ANSWER_DRIVEN.value).filter(given_from__isnull=False).values("given_from")
    )
    rows = given.values("task__dimension").annotate(
        number=Count("pk"), timed=Count("seconds_spent"), seconds=Sum("seconds_spent")
    )
    for row in rows.order_by():
        work = found[Approach.ANSWER_DRIVEN.value, row["task__dimension"]]
        work.answers += row["number"]
        work.timed, work.seconds = row["timed"], row["seconds"] or 0.0


# How right it is


def _check_by_gold(scope: Scope, found: WorkOf) -> None:
    automated = scope.settled(Approach.AUTOMATED.value).filter(_accepted())
    by_people = scope.by_people().exclude(pk__in=_turned_down())
    _hold(found, Approach.MANUAL, "gold", by_people.filter(task__gold__isnull=False), "answer", "task__gold__answer")
    _hold(
        found, Approach.AUTOMATED, "gold", automated.filter(task__gold__isnull=False),
        "annotation__answer", "task__gold__answer", confidence="annotation__confidence",
    )  # fmt: skip
    _check_copies(scope, found)


def _check_by_others(scope: Scope, found: WorkOf) -> None:
    automated = scope.settled(Approach.AUTOMATED.value).filter(_accepted())
    by_people = scope.by_people().exclude(pk__in=_turned_down())
    without_gold = automated.filter(task__gold=None)
    _hold(
        found, Approach.AUTOMATED, "others", without_gold.filter(task__resolution__source__in=_BY_OTHERS),
        "annotation__answer", "task__resolution__answer", confidence="annotation__confidence",
    )  # fmt: skip
    decided = by_people.filter(task__gold=None, task__resolution__source__in=_DECIDED)
    by_somebody_else = decided.exclude(annotator__person=F("task__resolution__decided_by"))
    _hold(found, Approach.MANUAL, "others", by_somebody_else, "answer", "task__resolution__answer")
    _hold_against_other_votes(scope, found)


def _check_copies(scope: Scope, found: WorkOf) -> None:
    """An answer-driven record copies its answer. Where gold was there before it, that may be what it copied."""
    explained = scope.settled(Approach.ANSWER_DRIVEN.value).filter(_accepted(), task__gold__isnull=False)
    before = Q(task__gold__created_at__lte=F("annotation__created_at"))
    copies = explained.filter(before).values_list("task__dimension").annotate(number=Count("pk")).order_by()
    for dimension, number in copies:
        found[Approach.ANSWER_DRIVEN.value, dimension].given_gold = number
    measured = explained.exclude(before)
    _hold(found, Approach.ANSWER_DRIVEN, "gold", measured, "annotation__answer", "task__gold__answer")


def _hold(
    found: WorkOf,
    approach: Approach,
    reference: str,
    rows: QuerySet[Any],
    answer: str,
    right: str,
    *,
    confidence: str = "",
) -> None:
    """Hold the answers of `rows` against what is right, task by task. `reference` names where it is kept."""
    step = Cast(_Step(confidence) if confidence else Value(UNKNOWN_CONFIDENCE), CharField())
    token = Concat(step, Value(":"), Cast(answer, CharField()), output_field=CharField())
    tasks = rows.values("task", "task__dimension", "task__candidate_count", right).annotate(said=_Joined(token))
    columns = ("task__dimension", "task__candidate_count", right, "said")
    for dimension, count, letters, said, number in _patterns(tasks, *columns):
        work = found[approach.value, dimension]
        tokens = [(int(step), letters_said) for step, letters_said in _pairs(said)]
        tasks_of: Tasks = getattr(work, reference)
        tasks_of[checked((frozenset(each) for _step, each in tokens), frozenset(letters), count)] += number
        if confidence:
            by_step: dict[int, Tasks] = getattr(work, f"{reference}_by_confidence")
            for step_of, each in tokens:
                by_step.setdefault(step_of, Counter())[checked([frozenset(each)], frozenset(letters), count)] += number


def _hold_against_other_votes(scope: Scope, found: WorkOf) -> None:
    """Each person's vote against what the other votes on the task agree on, by the project's own rule.

    A resolution by agreement is made of the vote itself, and so is no measure of it. Where the others do not agree,
    there is nothing to hold it against; decided tasks were held against the decision.
    """
    token = Concat("annotator__kind", Value(":"), Cast("answer", CharField()), output_field=CharField())
    open_to_it = scope.votes().filter(task__gold=None).exclude(task__resolution__source__in=_DECIDED)
    tasks = open_to_it.values("task", "task__dimension", "task__candidate_count").annotate(
        said=_Joined(token), number=Count("pk")
    )
    columns = ("task__dimension", "task__candidate_count", "said")
    for dimension, count, said, number in _patterns(tasks.filter(number__gt=1), *columns):
        votes = [
            (kind, frozenset(letters)) for kind, _colon, letters in (each.partition(":") for each in said.split(","))
        ]
        earned = []
        for place, (kind, answer) in enumerate(votes):
            others = [other for _kind, other in votes[:place] + votes[place + 1 :]]
            agreed = agreed_answer(scope.project.resolution_rule, others, count)
            if kind == Annotator.Kind.PERSON and agreed is not None:
                earned.append(checked([answer], agreed, count))
        if earned:
            whole = Checked(len(earned), sum(one.exact for one in earned), sum(one.credit for one in earned))
            found[Approach.MANUAL.value, dimension].others[whole] += number


def _patterns(tasks: QuerySet[Any, Any], *columns: str) -> Iterator[tuple[Any, ...]]:
    """The different rows of a query's columns, each with how often it occurs, counted by the database."""
    try:
        sql, params = tasks.order_by().values_list(*columns).query.sql_with_params()
    except EmptyResultSet:
        return
    names = ", ".join(f"c{place}" for place in range(len(columns)))
    counted = f"WITH one ({names}) AS ({sql}) SELECT {names}, COUNT(*) FROM one GROUP BY {names}"  # noqa: S608 - Django's
    with connection.cursor() as cursor:
        cursor.execute(counted, params)
        yield from cursor.fetchall()


def _pairs(said: str) -> list[tuple[str, str]]:
    """What was joined: something, a colon, the letters of an answer."""
    return [(first, letters) for first, _colon, letters in (each.partition(":") for each in said.split(","))]


# What it is like


def sampled(scope: Scope, work: Mapping[tuple[str, str], Work]) -> dict[tuple[str, str], Sampled]:
    """Up to SAMPLE accepted records of each approach and dimension, and, under dimension "", of all together."""
    found: dict[tuple[str, str], Sampled] = {}
    for approach in Approach.values:
        numbers = {dimension: each.accepted for (of, dimension), each in work.items() if of == approach}
        if any(numbers.values()):
            found |= {(approach, dimension): each for dimension, each in _sampled(scope, approach, numbers).items()}
    return found


def _sampled(scope: Scope, approach: str, numbers: Mapping[str, int]) -> dict[str, Sampled]:
    by_people = approach == Approach.MANUAL
    place = _place("pk" if by_people else "annotation_id")
    drawn = Q(pk__in=[])
    for dimension, number in numbers.items():
        drawn |= Q(task__dimension=dimension, place__lt=_below(number))
    rows: QuerySet[Any]
    if by_people:
        rows = scope.by_people().exclude(pk__in=_turned_down())
        columns: tuple[Any, ...] = ("rationale", "seconds_spent", Value(None, FloatField()))
    else:
        rows = scope.settled(approach).filter(_accepted())
        latency = Attempt.objects.filter(run_task=OuterRef("pk")).order_by().values("run_task")
        whole = Subquery(latency.annotate(whole=Sum("latency_ms")).values("whole"), output_field=FloatField())
        columns = ("annotation__rationale", "given_from__seconds_spent", whole)
    rows = rows.annotate(place=place).filter(drawn).order_by().values_list("task__dimension", "place", *columns)
    found: dict[str, Sampled] = defaultdict(Sampled)
    overall = _below(sum(numbers.values()))
    for dimension, at, rationale, person_seconds, model_ms in sorted(rows, key=lambda row: row[1]):
        text = words_of(rationale)
        for sample in (found[dimension], *([found[""]] if at < overall else [])):
            if sample.records == SAMPLE:
                continue
            sample.records += 1
            if text:
                sample.texts.append(text)
            if person_seconds is not None:
                sample.person_seconds.append(person_seconds)
            if model_ms is not None:
                sample.model_seconds.append(model_ms / 1000)
    return dict(found)


def _below(number: int) -> int:
    """Scattered ids below it are SAMPLE of `number` or a few more."""
    return _SCATTERED if number <= SAMPLE else min(_SCATTERED * SAMPLE * 5 // (number * 4), _SCATTERED)
