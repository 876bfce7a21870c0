"""The three approaches side by side: what an accepted record costs, how right it is, what it is like, how long it took.

All figures follow from counts (comparison_queries.py); what the formulas mean for a reader stands in docs/manager.md.
Not here: the statistics (correctness.py, rationale_texts.py), choosing (mix.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from statistics import median

from annotation_server.annotations.models import Approach
from annotation_server.projects.models import Project
from annotation_server.runs.comparison_queries import CONFIDENCE_STEPS, UNKNOWN_CONFIDENCE, Work, work_done
from annotation_server.runs.comparison_samples import Sampled, sampled
from annotation_server.runs.comparison_scope import MOST_TASKS, approaches_tried, chosen_tasks, tasks_per_dimension
from annotation_server.runs.correctness import Correctness, Share, Tasks, correctness
from annotation_server.runs.mix import Mix, Option, cheapest, frontier
from annotation_server.runs.models import Endpoint
from annotation_server.runs.rationale_texts import (
    Quartiles,
    nearly_the_same,
    pairs_in,
    quartiles,
    size_to_compare,
    variety,
)

ALL = ""
"""In the place of a dimension: all of them together."""


class Reference(StrEnum):
    """What answers are held against."""

    GOLD = "gold"
    OTHERS = "others"
    """What stands for the task, or would, without the answer itself."""


class Measure(StrEnum):
    """What counts as right."""

    EXACT = "exact"
    CREDIT = "credit"
    """Balanced partial credit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One approach in one dimension, or in all. None stands for what is not known."""

    approach: str
    dimension: str
    asked: int
    accepted: int
    given_gold: int
    unknown_calls: int
    people_usd: float | None
    """Per accepted record: seconds times wage. None without a wage or a measured time."""
    token_usd: float | None
    """Per accepted record, refused attempts included."""
    person_seconds: float | None
    """Per accepted record; for the answer-driven, of the answers that were given."""
    model_seconds: float | None
    """Per accepted record: of all calls, refused ones included."""
    median_person_seconds: float | None
    median_model_seconds: float | None
    gold: Correctness
    others: Correctness
    with_rationale: float | None
    words: Quartiles | None
    texts: int
    """Rationales that were looked at for words, variety and near-copies."""
    variety: float | None
    variety_of: int
    """Of so many word pairs."""
    nearly_the_same: float | None

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.asked if self.asked else None

    @property
    def cost_usd(self) -> float | None:
        """Per accepted record, people and tokens."""
        if self.people_usd is None or self.token_usd is None:
            return None
        return self.people_usd + self.token_usd

    def right(self, reference: Reference, measure: Measure) -> Share:
        """How right its answers are."""
        held = self.gold if reference == Reference.GOLD else self.others
        return held.exact if measure == Measure.EXACT else held.credit


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The approaches that were tried, per dimension and in all."""

    shared: bool
    """Over the tasks that all of them worked on; else over all tasks."""
    hourly_wage: Decimal | None
    tried: Sequence[str]
    tasks: Mapping[str, int]
    """That it is over, per dimension."""
    looked_at: int
    """Of them: all, or so many that were drawn."""
    project_tasks: Mapping[str, int]
    lines: Sequence[Line]
    """Per dimension, then for ALL; approaches in one order."""
    work: Mapping[tuple[str, str], Work]
    endpoints: Sequence[Endpoint]
    """Behind the model approaches."""

    def of(self, dimension: str) -> list[Line]:
        return [line for line in self.lines if line.dimension == dimension]

    @property
    def dimensions(self) -> list[str]:
        """Those that anything is known of, in the project's order."""
        return [name for name in dict.fromkeys(line.dimension for line in self.lines) if name != ALL]

    def measured(self, reference: Reference) -> bool:
        """Is there anything to hold answers against?"""
        return any((line.gold if reference == Reference.GOLD else line.others).answers for line in self.lines)

    @property
    def best_reference(self) -> Reference:
        """Gold, and others only where no answer can be held against gold."""
        return Reference.GOLD if self.measured(Reference.GOLD) else Reference.OTHERS


def compare(
    project: Project, *, shared: bool = True, endpoint: Endpoint | None = None, most: int | None = MOST_TASKS
) -> Comparison:
    """Read and reckon. `endpoint`: of the model approaches only what it did. `most`: look at no more tasks."""
    tried = approaches_tried(project, endpoint)
    with chosen_tasks(project, endpoint, tried, shared=shared, most=most) as chosen:
        work = work_done(chosen)
        samples = sampled(chosen.scope, work)
    order = [*project.dimensions, *sorted({dimension for _of, dimension in work} - set(project.dimensions))]
    for approach in tried:
        work[approach, ALL] = whole = Work()
        for dimension in order:
            whole.add(work.get((approach, dimension), Work()))
    used = Endpoint.objects.filter(runs__project=project).distinct().order_by("name")
    lines: list[Line] = []
    for dimension in [*(name for name in order if any((of, name) in work for of in tried)), ALL]:
        lines += _lines(dimension, tried, work, samples, project.hourly_wage)
    return Comparison(
        shared=shared,
        hourly_wage=project.hourly_wage,
        tried=tried,
        tasks=chosen.tasks,
        looked_at=chosen.looked_at,
        project_tasks=tasks_per_dimension(project) if shared else chosen.tasks,
        lines=lines,
        work=work,
        endpoints=[endpoint] if endpoint else list(used),
    )


def _lines(
    dimension: str,
    tried: Sequence[str],
    work: Mapping[tuple[str, str], Work],
    samples: Mapping[tuple[str, str], Sampled],
    wage: Decimal | None,
) -> list[Line]:
    of = {approach: samples.get((approach, dimension), Sampled()) for approach in tried}
    size = size_to_compare([pairs_in(sample.texts) for sample in of.values()])
    return [
        _line(approach, dimension, work.get((approach, dimension), Work()), sample, size, wage)
        for approach, sample in of.items()
    ]


def _line(approach: str, dimension: str, work: Work, sample: Sampled, size: int, wage: Decimal | None) -> Line:
    by_model = approach != Approach.MANUAL
    with_people = approach != Approach.AUTOMATED
    seconds = _per_record(_people_seconds(work), work) if with_people else None
    known = not with_people or (seconds is not None and wage is not None)
    people_usd = (seconds or 0.0) * float(wage or 0) / 3600 if known and work.accepted else None
    return Line(
        approach=approach,
        dimension=dimension,
        asked=work.asked,
        accepted=work.accepted,
        given_gold=work.given_gold,
        unknown_calls=work.unknown_calls,
        people_usd=people_usd,
        token_usd=_per_record(work.usd, work),
        person_seconds=seconds,
        model_seconds=_per_record(work.model_seconds, work) if by_model else None,
        median_person_seconds=_median(sample.person_seconds) if with_people else None,
        median_model_seconds=_median(sample.model_seconds),
        gold=correctness(work.gold),
        others=correctness(work.others),
        with_rationale=_per_record(work.written, work),
        words=quartiles([len(text) for text in sample.texts]),
        texts=len(sample.texts),
        variety=variety(sample.texts, size),
        variety_of=size,
        nearly_the_same=nearly_the_same(sample.texts),
    )


def _people_seconds(work: Work) -> float | None:
    """All their time; an answer whose time nobody measured counts as the mean of those that were."""
    return work.seconds * work.answers / work.timed if work.timed else None


def _per_record(amount: float | None, work: Work) -> float | None:
    return None if amount is None or not work.accepted else amount / work.accepted


def _median(seconds: Sequence[float]) -> float | None:
    return median(seconds) if seconds else None


# Choosing


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The mixes that are worth choosing, and the cheapest that reaches the wanted quality."""

    reference: Reference
    measure: Measure
    wanted: float
    mixes: Sequence[Mix]
    chosen: Mix | None
    left_out: Sequence[str]
    """Dimensions of which no approach has both a cost and a quality."""

    @property
    def best(self) -> Mix | None:
        """The dearest and best."""
        return self.mixes[-1] if self.mixes else None


def choose(comparison: Comparison, wanted: float, reference: Reference, measure: Measure) -> Choice:
    """What is to be expected if the rest of the project goes as what was compared. Weighted by the project's tasks."""
    options = {dimension: options_of(comparison, dimension, reference, measure) for dimension in comparison.dimensions}
    mixes = frontier(options, comparison.project_tasks)
    return Choice(
        reference=reference,
        measure=measure,
        wanted=wanted,
        mixes=mixes,
        chosen=cheapest(mixes, wanted),
        left_out=[dimension for dimension, found in options.items() if not found],
    )


def options_of(comparison: Comparison, dimension: str, reference: Reference, measure: Measure) -> list[Option]:
    """Each approach by itself, and the model first with people for what it leaves."""
    lines = {line.approach: line for line in comparison.of(dimension)}
    found = []
    by_people = lines.get(Approach.MANUAL)
    answered = by_people.right(reference, measure).value if by_people else None
    for approach, line in lines.items():
        cost, quality = line.cost_usd, line.right(reference, measure).value
        borrowed = quality is None and approach == Approach.ANSWER_DRIVEN
        quality = answered if borrowed else quality
        if cost is not None and quality is not None:
            found.append(Option(approach=approach, cost=cost, quality=quality, borrowed=borrowed))
    asked = comparison.work.get((Approach.AUTOMATED, dimension))
    if asked is not None and asked.asked:
        held = asked.gold_by_confidence if reference == Reference.GOLD else asked.others_by_confidence
        for people in [option for option in found if option.approach != Approach.AUTOMATED]:
            found += _model_first(asked, held, people, measure)
    return found


def _model_first(asked: Work, held: Mapping[int, Tasks], people: Option, measure: Measure) -> list[Option]:
    """The model's answers at some confidence or above, people's for the rest and for what it was refused.

    Each task costs its calls, each that goes on a person's record besides. What people get right is taken to be the
    same on what the model leaves as on everything.
    """
    found = []
    for least in sorted({UNKNOWN_CONFIDENCE, *asked.by_confidence}):
        taken = sum(number for step, number in asked.by_confidence.items() if step >= least) / asked.asked
        of_these: Tasks = Counter()
        for step, tasks in held.items():
            if step >= least:
                of_these += tasks
        share = correctness(of_these)
        right = share.exact.value if measure == Measure.EXACT else share.credit.value
        if right is None:
            continue
        found.append(
            Option(
                approach=Approach.AUTOMATED.value,
                then=people.approach,
                confidence=None if least == UNKNOWN_CONFIDENCE else least / CONFIDENCE_STEPS,
                left=1 - taken,
                cost=asked.usd / asked.asked + (1 - taken) * people.cost,
                quality=taken * right + (1 - taken) * people.quality,
                borrowed=people.borrowed,
            )
        )
    return found
