"""Reading the ledger for quality: answer patterns and agreement, who did how much and how well, work per day.

What counts as somebody's answer here: standing votes of people and imports for agreement (never advice, decisions,
surplus, or what was withdrawn); for a person's own figures also surplus, which was as much work. Not here: the
coefficients (agreement.py), accuracy on gold (accuracy.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, timedelta
from statistics import median

from django.db import connection
from django.db.models import Aggregate, CharField, Count, Func, Value
from django.db.models.functions import Cast, Concat
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.annotations.accuracy import Checked, GoldAccuracy, gold_accuracy_of_all
from annotation_server.annotations.agreement import (
    Estimate,
    Said,
    by_answer,
    by_candidate,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    masi_distance,
    pairs_by_candidate,
    percent_agreement,
)
from annotation_server.annotations.models import Annotation, Annotator
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.models import Flag, Task

DAYS_SHOWN = 30
PAIRED_ANNOTATORS = 12
"""Kappas of pairs are shown for the busiest, so that the table fits a page."""
PAIR_DRAWS = 200

_WORKED = (Annotation.Standing.VOTE, Annotation.Standing.SURPLUS)


class _Joined(Aggregate):
    """Texts of a group joined by commas, in any order; both databases have it under another name."""

    output_field = CharField()

    def __init__(self, expression: object) -> None:
        self.function = "STRING_AGG" if connection.vendor == "postgresql" else "GROUP_CONCAT"
        super().__init__(expression, Value(","))


class _Day(Func):
    """The day of a time, in UTC, as text. Django's own function for it calls Python for every row on SQLite."""

    output_field = CharField()

    def __init__(self, expression: str) -> None:
        in_postgresql = "TO_CHAR(%(expressions)s AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        in_sqlite = "SUBSTR(%(expressions)s, 1, 10)"
        super().__init__(expression, template=in_postgresql if connection.vendor == "postgresql" else in_sqlite)


def said_by_task(project: Project, dimension: str) -> dict[Said, int]:
    """How often each pattern of votes occurred: who answered what on a task, and how many candidates it has.

    One query that the database groups by task; tasks with a single vote compare nothing and are left out.
    """
    one = Concat(Cast("annotator_id", CharField()), Value(":"), Cast("answer", CharField()), output_field=CharField())
    votes = Annotation.objects.filter(
        standing=Annotation.Standing.VOTE, task__project=project, task__dimension=dimension
    )
    grouped = votes.values("task").annotate(said=_Joined(one), number=Count("pk")).filter(number__gt=1).order_by()
    found: Counter[Said] = Counter()
    read: dict[tuple[int, str], Said] = {}
    for count, joined in grouped.values_list("task__candidate_count", "said"):
        key = (count, joined)
        if key not in read:
            pairs = (text.split(":") for text in joined.split(","))
            read[key] = (count, tuple(sorted((int(who), frozenset(answer)) for who, answer in pairs)))
        found[read[key]] += 1
    return found


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One line of the agreement page: what was measured, in a word, and the estimate."""

    name: str
    estimate: Estimate


def coefficients(said: Mapping[Said, int]) -> list[Coefficient]:
    """Every coefficient over all who voted."""
    answers, candidates = by_answer(said), by_candidate(said)
    return [
        Coefficient("percent", percent_agreement(answers)),
        Coefficient("percent_candidate", percent_agreement(candidates)),
        Coefficient("fleiss", fleiss_kappa(candidates)),
        Coefficient("alpha", krippendorff_alpha(candidates)),
        Coefficient("alpha_masi", krippendorff_alpha(answers, masi_distance)),
    ]


@dataclass(frozen=True, slots=True)
class Pair:
    """Cohen's kappa of two annotators over the candidates of the tasks both answered."""

    first: Annotator
    second: Annotator
    estimate: Estimate


def pairs(said: Mapping[Said, int]) -> list[Pair]:
    """Pairs of the busiest annotators that share a task."""
    busy: Counter[int] = Counter()
    for (_, votes), number in said.items():
        busy.update({who: number for who, _ in votes})
    chosen = Annotator.objects.in_bulk([who for who, _ in busy.most_common(PAIRED_ANNOTATORS)])
    found = pairs_by_candidate(said)
    return [
        Pair(chosen[first], chosen[second], cohen_kappa(clusters, draws=PAIR_DRAWS))
        for (first, second), clusters in sorted(found.items())
        if first in chosen and second in chosen
    ]


@dataclass(slots=True)
class WithOthers:
    """How often a person's answers were the same as another's on the same task."""

    compared: int = 0
    same: int = 0

    @property
    def share(self) -> float | None:
        return self.same / self.compared if self.compared else None


def agreement_with_others(project: Project) -> dict[int, WithOthers]:
    """Per annotator, over all dimensions: one comparison per task and other vote."""
    found: dict[int, WithOthers] = defaultdict(WithOthers)
    for dimension in project.dimensions:
        for (_, votes), number in said_by_task(project, dimension).items():
            answers = Counter(answer for _, answer in votes)
            for who, answer in votes:
                found[who].compared += number * (len(votes) - 1)
                found[who].same += number * (answers[answer] - 1)
    return found


Days = list[tuple[date, int]]


def per_day(project: Project, days: int = DAYS_SHOWN) -> Days:
    """Annotations by anybody on each of the last days, today last."""
    counted: Counter[date] = Counter()
    for line in _daily(project, days):
        counted[line[1]] += line[2]
    return _days(counted, days)


def per_day_by_annotator(project: Project, days: int = DAYS_SHOWN) -> dict[int, Days]:
    """The same for each annotator who did anything."""
    counted: dict[int, Counter[date]] = defaultdict(Counter)
    for who, day, number in _daily(project, days):
        counted[who][day] += number
    return {who: _days(numbers, days) for who, numbers in counted.items()}


def _daily(project: Project, days: int) -> list[tuple[int, date, int]]:
    since = timezone.now() - timedelta(days=days)
    rows = Annotation.objects.filter(task__project=project, created_at__gte=since)
    rows = rows.exclude(standing=Annotation.Standing.WITHDRAWN)
    grouped = rows.annotate(day=_Day("created_at")).values("annotator_id", "day").annotate(number=Count("pk"))
    found = grouped.order_by().values_list("annotator_id", "day", "number")
    return [(who, date.fromisoformat(day), number) for who, day, number in found]


def _days(counted: Mapping[date, int], days: int) -> Days:
    today = timezone.now().astimezone(UTC).date()
    return [(day, counted.get(day, 0)) for day in (today - timedelta(days=ago) for ago in range(days - 1, -1, -1))]


@dataclass(slots=True, kw_only=True)
class PersonLine:
    """One person's work in a project."""

    person: Person
    membership: Membership | None
    """None for somebody who is no member any more."""
    answered: int = 0
    seconds: float | None = None
    """The median of their time per answer."""
    skips: int = 0
    flags: int = 0
    days: Days = field(default_factory=list)
    gold: GoldAccuracy | None = None
    with_others: WithOthers | None = None


def people(project: Project, only: Person | None = None, *, checked: bool) -> list[PersonLine]:
    """Everybody who is a member or has answered, by name; `only` one person of them.

    `checked` adds what compares them with gold and with others: not for annotators' eyes.
    """
    lines = {
        membership.person_id: PersonLine(person=membership.person, membership=membership)
        for membership in project.memberships.select_related("person")
    }
    worked = Annotation.objects.filter(task__project=project, standing__in=_WORKED, annotator__person__isnull=False)
    if only is not None:
        worked = worked.filter(annotator__person=only)
    seconds: dict[int, list[float]] = defaultdict(list)
    annotators: dict[int, int] = {}
    answered: Counter[int] = Counter()
    rows = worked.values_list("annotator_id", "annotator__person_id", "seconds_spent").order_by()
    for annotator, person_id, spent in rows.iterator(10_000):
        annotators[person_id] = annotator
        answered[person_id] += 1
        if spent is not None:
            seconds[person_id].append(spent)
    for person in Person.objects.filter(pk__in=answered.keys() - lines.keys()):
        lines[person.pk] = PersonLine(person=person, membership=None)
    if only is not None:
        lines = {only.pk: lines.get(only.pk) or PersonLine(person=only, membership=None)}
    daily = per_day_by_annotator(project)
    others = agreement_with_others(project) if checked else {}
    golds = gold_accuracy_of_all(project) if checked else {}
    said = Flag.objects.filter(task__project=project).values_list("person_id", "skipped").annotate(number=Count("pk"))
    flagged = {(person_id, skipped): number for person_id, skipped, number in said.order_by()}
    for person_id, line in lines.items():
        annotator_id = annotators.get(person_id, 0)
        line.answered = answered[person_id]
        line.seconds = median(seconds[person_id]) if seconds[person_id] else None
        line.skips, line.flags = flagged.get((person_id, True), 0), flagged.get((person_id, False), 0)
        line.days = daily.get(annotator_id) or _days({}, DAYS_SHOWN)
        if checked:
            line.gold = golds.get(person_id) or GoldAccuracy(Checked(), {})
            line.with_others = others.get(annotator_id, WithOthers())
    return sorted(lines.values(), key=lambda line: line.person.username)


def open_flags(tasks: Sequence[Task]) -> dict[int, list[Flag]]:
    """What was said about tasks and nobody has dealt with yet."""
    found: dict[int, list[Flag]] = defaultdict(list)
    flags = Flag.objects.filter(task__in=tasks, closed_at=None).select_related("person")
    for flag in flags.order_by("pk"):
        found[flag.task_id].append(flag)
    return found
