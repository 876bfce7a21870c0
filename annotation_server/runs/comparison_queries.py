"""What the ledger holds about the three approaches, counted by the database: one row per dimension, never per task.

What a reviewer turned down is no accepted record. Not here: what counts as an approach's work (comparison_scope.py),
texts and times (comparison_samples.py), what follows from the counts (comparison.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.models import (
    Aggregate,
    BigIntegerField,
    CharField,
    Count,
    F,
    Func,
    IntegerField,
    Q,
    QuerySet,
    Sum,
    Value,
)
from django.db.models.functions import Cast, Concat

from annotation_server.annotations.models import Annotation, Annotator, Approach, Resolution, Review
from annotation_server.annotations.resolution import agreed_answer
from annotation_server.runs.comparison_scope import BY_MODEL, WORKED, Chosen, Scope
from annotation_server.runs.correctness import Checked, Tasks, checked
from annotation_server.runs.models import Attempt, RunTask

CONFIDENCE_STEPS = 20
UNKNOWN_CONFIDENCE = -1

_DECIDED = (Resolution.Source.ADJUDICATION, Resolution.Source.REVIEW)
_BY_OTHERS = (Resolution.Source.AGREEMENT, *_DECIDED)


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
    _check_by_gold(chosen.with_gold, found)
    _check_by_others(scope, found)
    return dict(found)


# How much, and what it cost


def turned_down() -> QuerySet[Review, tuple[int]]:
    """Annotations that a reviewer rejected: no accepted records."""
    return Review.objects.filter(verdict=Review.Verdict.REJECTED, annotation__isnull=False).values_list("annotation")


def _count_people(scope: Scope, found: WorkOf) -> None:
    stands = Q(standing__in=WORKED)
    kept = stands & ~Q(pk__in=turned_down())
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


def accepted() -> Q:
    """Tasks of runs whose annotation is an accepted record."""
    return Q(state=RunTask.State.ACCEPTED) & ~Q(annotation__in=turned_down())


def _count_runs(scope: Scope, found: WorkOf) -> None:
    rows = (
        scope.settled(*BY_MODEL)
        .values("run__approach", "task__dimension", step=_Step("annotation__confidence"))
        .annotate(
            asked=Count("pk"),
            accepted=Count("pk", filter=accepted()),
            written=Count("pk", filter=accepted() & ~Q(annotation__rationale="")),
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
    automated = scope.settled(Approach.AUTOMATED.value).filter(accepted())
    by_people = scope.by_people().exclude(pk__in=turned_down())
    _hold(found, Approach.MANUAL, "gold", by_people, "answer", "task__gold__answer")
    _hold(
        found, Approach.AUTOMATED, "gold", automated, "annotation__answer", "task__gold__answer",
        confidence="annotation__confidence",
    )  # fmt: skip
    _check_copies(scope, found)


def _check_by_others(scope: Scope, found: WorkOf) -> None:
    automated = scope.settled(Approach.AUTOMATED.value).filter(accepted())
    by_people = scope.by_people().exclude(pk__in=turned_down())
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
    explained = scope.settled(Approach.ANSWER_DRIVEN.value).filter(accepted(), task__gold__isnull=False)
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
