"""What an approach's records are like: some hundred of each, whose texts and times are looked at one by one.

Not here: what is made of the texts (rationale_texts.py), counts of all records (comparison_queries.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db.models import (
    FloatField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
)

from annotation_server.annotations.models import Approach
from annotation_server.runs.comparison_queries import Work, accepted, turned_down
from annotation_server.runs.comparison_scope import BY_RECORD, SCATTERED, Scope, place_of
from annotation_server.runs.models import Attempt
from annotation_server.runs.rationale_texts import Words, words_of

SAMPLE = 500
"""Records per approach and dimension whose texts and times are looked at one by one."""


@dataclass(slots=True)
class Sampled:
    """Some records of an approach, drawn as if at random, the same ones each time."""

    records: int = 0
    texts: list[Words] = field(default_factory=list)
    person_seconds: list[float] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)


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
    place = place_of("pk" if by_people else "annotation_id", BY_RECORD)
    drawn = Q(pk__in=[])
    for dimension, number in numbers.items():
        drawn |= Q(task__dimension=dimension, place__lt=_below(number))
    rows: QuerySet[Any]
    if by_people:
        rows = scope.by_people().exclude(pk__in=turned_down())
        columns: tuple[Any, ...] = ("rationale", "seconds_spent", Value(None, FloatField()))
    else:
        rows = scope.settled(approach).filter(accepted())
        latency = Attempt.objects.filter(run_task=OuterRef("pk")).order_by().values("run_task")
        whole = Subquery(latency.annotate(whole=Sum("latency_ms")).values("whole"), output_field=FloatField())
        columns = ("annotation__rationale", "given_from__seconds_spent", whole)
    rows = rows.annotate(place=place).filter(drawn).order_by().values_list("task__dimension", "place", *columns)
    found: dict[str, Sampled] = defaultdict(Sampled)
    overall = _below(sum(numbers.values()))
    for dimension, at, rationale, person_seconds, model_ms in sorted(rows, key=lambda row: row[1]):
        of = (found[dimension], *([found[""]] if at < overall else []))
        short = [sample for sample in of if sample.records < SAMPLE]
        text = words_of(rationale) if short else ()
        for sample in short:
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
    return SCATTERED if number <= SAMPLE else min(SCATTERED * SAMPLE * 5 // (number * 4), SCATTERED)
