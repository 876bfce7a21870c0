"""Reading the ledger for pages and API: what a judge sees, who may see others' answers, progress, disputes.

Blindness lives here: `tasks_open_to` says on which tasks a person's own vote could still be swayed, and nothing that
others said about those leaves this module. Not here: roles (projects/access.py), figures about people (quality.py).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation, Annotator, Approach, GoldAnswer
from annotation_server.prepared import PreparedQuery
from annotation_server.projects.access import Access, Capability
from annotation_server.projects.models import Project
from annotation_server.samples.models import Candidate, Image, Sample
from annotation_server.tasks.models import Flag, Slot, Task

PAGE_ROWS = 50


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a sample as it is shown: the original has no letter."""

    letter: str
    image: Image


def pictures_shown_to(person: Person, project: Project, tasks: Sequence[Task]) -> dict[int, list[Picture]]:
    """Per task the original, then the candidates in the order in which this person is to see them.

    Where the project shuffles, the order follows from person and sample, so that a reload and the sample's other
    dimensions show the same; letters stay with their images. One query for all tasks.
    """
    found: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in _candidates(samples=sorted({task.sample_id for task in tasks})):
        found[candidate.sample_id].append(candidate)
    shown = {}
    for task in tasks:
        candidates = sorted(found[task.sample_id], key=lambda candidate: candidate.letter)
        if project.shuffle_candidates:
            random.Random(f"{person.pk}/{task.sample_id}").shuffle(candidates)  # noqa: S311 - an order, not a secret
        pictures = [Picture(candidate.letter, candidate.image) for candidate in candidates]
        shown[task.pk] = [Picture("", task.sample.original), *pictures]
    return shown


_candidates = PreparedQuery(
    lambda p: Candidate.objects.select_related("image").filter(sample__id__in=p("samples")).order_by()
)


@dataclass(slots=True)
class DimensionProgress:
    """How far one dimension of a project is. Annotations are counted per approach, surplus ones left out."""

    dimension: str
    tasks: int = 0
    resolved: int = 0
    disputed: int = 0
    annotations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Approach.values, 0))

    @property
    def open(self) -> int:
        return self.tasks - self.resolved - self.disputed

    @property
    def most(self) -> int:
        """What a plot of the annotations takes for its whole."""
        return max(self.tasks, sum(self.annotations.values()))


def pictures_of(sample: Sample) -> list[Picture]:
    """The original, then the candidates in letter order."""
    candidates = sample.candidates.select_related("image").order_by("letter")
    return [Picture("", sample.original), *(Picture(candidate.letter, candidate.image) for candidate in candidates)]


def progress(project: Project) -> list[DimensionProgress]:
    """Per dimension of the project (and any it once had), in two aggregate queries."""
    found = {name: DimensionProgress(name) for name in project.dimensions}
    states = project.tasks.values_list("dimension", "state").annotate(number=Count("pk")).order_by()
    for dimension, state, number in states:
        line = found.setdefault(dimension, DimensionProgress(dimension))
        line.tasks += number
        if state == Task.State.RESOLVED:
            line.resolved = number
        elif state == Task.State.DISPUTED:
            line.disputed = number
    counted = Annotation.objects.filter(task__project=project)
    counted = counted.exclude(standing__in=(Annotation.Standing.SURPLUS, Annotation.Standing.WITHDRAWN))
    approaches = counted.values_list("task__dimension", "approach").annotate(number=Count("pk")).order_by()
    for dimension, approach, number in approaches:
        found[dimension].annotations[approach] = number
    return list(found.values())


def tasks_open_to(person: Person, task_ids: Iterable[int]) -> set[int]:
    """Of these tasks, those the person may still be asked to vote on: a slot is unfilled or it is gold, and no answer
    of theirs stands.

    A lease that has expired leaves its slot unfilled, so it counts as open. Gold is resolved from the start and may
    come to anybody as a check.
    """
    ids = list(task_ids)
    asked = set(Slot.objects.filter(task__in=ids).exclude(state=Slot.State.DONE).values_list("task", flat=True))
    asked |= set(GoldAnswer.objects.filter(task__in=ids).values_list("task", flat=True))
    return asked - set(answers_of(person).filter(task__in=asked).values_list("task", flat=True))


def blind_to(access: Access, task: str = "pk") -> Q:
    """As a condition, the tasks that `tasks_open_to` would name; `task` is the path to them."""
    if not access.allows(Capability.ANNOTATE):
        return Q(pk__in=[])
    unfilled = Slot.objects.filter(task=OuterRef(task)).exclude(state=Slot.State.DONE)
    gold = GoldAnswer.objects.filter(task=OuterRef(task))
    mine = answers_of(access.person).filter(task=OuterRef(task))
    return (Q(Exists(unfilled)) | Q(Exists(gold))) & ~Q(Exists(mine))


def answers_of(person: Person) -> QuerySet[Annotation]:
    """What the person said and has not undone."""
    return Annotation.objects.filter(annotator__person=person).exclude(standing=Annotation.Standing.WITHDRAWN)


def tasks_shown_to(access: Access, task_ids: Iterable[int]) -> set[int]:
    """Of these tasks, those whose answers by others this person may see now."""
    ids = set(task_ids)
    if not access.allows(Capability.SEE_ANSWERS):
        return set()
    if not access.allows(Capability.ANNOTATE):
        return ids  # never asked to vote, so there is nothing to sway
    return ids - tasks_open_to(access.person, ids)


def shows_answers(access: Access, task: Task) -> bool:
    return bool(tasks_shown_to(access, [task.pk]))


def annotations_shown(access: Access, task: Task) -> list[Annotation]:
    """What this person may read on the task: everything once they are no longer blind to it, else their own."""
    annotations = task.annotations.select_related("annotator").prefetch_related("annotator__endpoints").order_by("pk")
    if not shows_answers(access, task):
        annotations = annotations.filter(annotator__person=access.person)
    return list(annotations)


def pre_annotations(task: Task) -> list[Annotation]:
    """What models said, where the project shows it before a person has submitted; else nothing."""
    if not task.project.show_pre_annotations:
        return []
    said = task.annotations.filter(annotator__kind=Annotator.Kind.MODEL, approach=Approach.AUTOMATED)
    return list(said.select_related("annotator").prefetch_related("annotator__endpoints").order_by("pk"))


def task_in(project: Project, task_id: int) -> Task | None:
    """A task of the project with its sample and original."""
    task = _task_in.first(project=project.pk, task=task_id)
    if task is not None:
        task.project = project
    return task


_task_in = PreparedQuery(
    lambda p: Task.objects.select_related("sample__original").filter(project=p("project"), pk=p("task"))
)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as one person may know it."""

    task: Task
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """What the task browser may be filtered by; empty fields filter nothing.

    Those after `sample` are about what others said: they match no task that the person may still vote on, and nothing
    at all for who sees nobody's answers. Flags are no answers, and for those who deal with them.
    """

    state: str = ""
    dimension: str = ""
    sample: str = ""
    """How the sample's external id begins."""
    approach: str = ""
    source: str = ""
    annotator: int | None = None
    flagged: bool = False
    skipped: bool = False


def task_rows(
    access: Access, wanted: TaskFilter, *, after: int = 0, before: int = 0, rows: int | None = None
) -> list[TaskRow]:
    """A page of the task browser by keyset: tasks after an id or, in the same order, those before one; and one more
    than a page, at the far end, to tell whether it goes on.

    Who sees nobody's answers browses what they have answered. To who may still vote on a task it is open, whatever
    else it is: "resolved" would give away that its answer is known (gold). The filter agrees with what is shown.
    """
    found: dict[int, Task] = {}
    for tasks in _wanted_tasks(access, wanted):
        here = tasks.filter(pk__lt=before).order_by("-pk") if before else tasks.filter(pk__gt=after).order_by("pk")
        found |= {task.pk: task for task in here.select_related("sample")[: (rows or PAGE_ROWS) + 1]}
    page = sorted(found, reverse=bool(before))[: (rows or PAGE_ROWS) + 1]
    return task_rows_shown(access, [found[pk] for pk in sorted(page)])


def _wanted_tasks(access: Access, wanted: TaskFilter) -> list[QuerySet[Task]]:
    """The tasks that a filter leaves, in parts that may overlap, each with an index to walk by."""
    blind = blind_to(access)
    tasks = access.project.tasks.all()
    if not access.allows(Capability.SEE_ANSWERS):
        blind = Q(pk__in=[])  # they have answered what they see
        tasks = tasks.filter(pk__in=answers_of(access.person).filter(task__project=access.project).values("task"))
    if wanted.dimension:
        tasks = tasks.filter(dimension=wanted.dimension)
    if wanted.sample:
        tasks = tasks.filter(sample__in=access.project.samples.filter(external_id__startswith=wanted.sample))
    if wanted.state and wanted.state != Task.State.OPEN:
        tasks = tasks.filter(~blind, state=wanted.state)
    if access.allows(Capability.SEE_ANSWERS):
        said = Annotation.objects.filter(task=OuterRef("pk")).exclude(standing=Annotation.Standing.WITHDRAWN)
        if wanted.approach:
            tasks = tasks.filter(~blind, Exists(said.filter(approach=wanted.approach)))
        if wanted.annotator:
            tasks = tasks.filter(~blind, Exists(said.filter(annotator=wanted.annotator)))
        if wanted.source:
            tasks = tasks.filter(~blind, resolution__source=wanted.source)
    if access.allows(Capability.REVIEW):
        flags = Flag.objects.filter(closed_at=None)
        if wanted.flagged:
            tasks = tasks.filter(pk__in=flags.filter(task__project=access.project).values("task"))
        if wanted.skipped:
            tasks = tasks.filter(pk__in=flags.filter(task__project=access.project, skipped=True).values("task"))
    if wanted.state != Task.State.OPEN:
        return [tasks]
    # One OR of the three would walk past every task that is done.
    answered = tasks.exclude(state=Task.State.OPEN).filter(blind)
    return [
        tasks.filter(state=Task.State.OPEN),
        answered.filter(asking=True),
        answered.filter(pk__in=GoldAnswer.objects.filter(task__project=access.project).values("task")),
    ]


def task_rows_shown(access: Access, tasks: Sequence[Task]) -> list[TaskRow]:
    """Tasks with the state this person may know."""
    blind = tasks_open_to(access.person, [task.pk for task in tasks]) if access.allows(Capability.ANNOTATE) else set()
    return [TaskRow(task, Task.State.OPEN if task.pk in blind else task.state) for task in tasks]


def votes_by_task(access: Access, tasks: Sequence[Task]) -> dict[int, list[Annotation]]:
    """The votes on tasks, where this person may see them."""
    found: dict[int, list[Annotation]] = defaultdict(list)
    shown = tasks_shown_to(access, [task.pk for task in tasks])
    votes = Annotation.objects.filter(task__in=shown, standing=Annotation.Standing.VOTE)
    for vote in votes.select_related("annotator").order_by("pk"):
        found[vote.task_id].append(vote)
    return found


def disputed_tasks(project: Project, after: int = 0) -> QuerySet[Task]:
    """Disputed tasks, the oldest first."""
    disputed = project.tasks.filter(state=Task.State.DISPUTED, pk__gt=after)
    return disputed.select_related("sample").order_by("pk")


def next_disputed(access: Access, after: int) -> Task | None:
    """The next disputed task that this person may decide: after a task, else from the beginning; None when none is."""
    mine = disputed_tasks(access.project).filter(~blind_to(access)).exclude(pk=after)
    return mine.filter(pk__gt=after).first() or mine.first()


@dataclass(frozen=True, slots=True)
class QueueLeft:
    """Why the queue has nothing for somebody: there is nothing at all, others hold the rest, or all votes are in."""

    tasks: int
    held_by_others: int
    answered_by_me: int


def queue_left(project: Project, person: Person) -> QueueLeft:
    """For the page that says there is nothing to do."""
    claimed = project.slots.filter(state=Slot.State.CLAIMED).exclude(person=person)
    mine = answers_of(person).filter(task__project=project)
    return QueueLeft(project.tasks.count(), claimed.count(), mine.count())


def resolution_sources(project: Project) -> Counter[str]:
    """How many tasks are resolved from each source."""
    rows = project.tasks.filter(resolution__isnull=False).values("resolution__source").annotate(number=Count("pk"))
    return Counter({row["resolution__source"]: row["number"] for row in rows.order_by()})
