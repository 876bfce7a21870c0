"""What an annotator gets next: what they hold, then the queue, with gold mixed in, unless they are paused.

Gold is a check only while it looks like any other task: with dimensions in a row it comes as a whole sample between two
others, and whether it comes is decided by lot from the person and the task it would precede, so that asking again
changes nothing. Not here: the queue itself (tasks/services.py), who is paused when (accuracy.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta

from django.db.models import Exists, Max, Min, OuterRef

from annotation_server.accounts.models import Person
from annotation_server.annotations.models import Annotation, GoldAnswer
from annotation_server.prepared import Params, PreparedQuery
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.models import Flag, Slot, Task
from annotation_server.tasks.services import MAX_HELD, Claim, claim_extra, claims_of


def next_claims(project: Project, person: Person, count: int = 1) -> list[Claim]:
    """Up to `count` tasks for the person, in the order in which to do them; fewer when there are no more.

    Those they hold already come first, their leases renewed. Nothing for whoever is paused.
    """
    if paused(project, person) is not None:
        return []
    claims, taken = claims_of(project, person, min(count, MAX_HELD), unless=_answered_too_late)
    if taken:
        before = claims[-1].task.sample_id if claims else _last_sample(project, person)
        for claim in taken:
            claims += [*_gold_before(claim, project, person, before), claim]
            before = claim.task.sample_id
    return claims[:count]


def _answered_too_late(p: Params) -> Exists:
    """Who answered too late for a vote has answered: they are not asked the same again when a slot comes free."""
    surplus = Annotation.objects.filter(standing=Annotation.Standing.SURPLUS, annotator__person=p("person"))
    return Exists(surplus.filter(task=OuterRef("task")))


def paused(project: Project, person: Person) -> Membership | None:
    """The person's membership while they are paused, else None."""
    return _paused.first(project=project.pk, person=person.pk)


_paused = PreparedQuery(
    lambda p: Membership.objects.filter(project=p("project"), person=p("person"), paused_at__isnull=False)
)


def _last_sample(project: Project, person: Person) -> int | None:
    mine = Annotation.objects.filter(annotator__person=person, task__project=project)
    return mine.order_by("-pk").values_list("task__sample", flat=True).first()


def _gold_before(claim: Claim, project: Project, person: Person, last_sample: int | None) -> list[Claim]:
    """Gold to do before `claim`, by lot; none in the middle of a sample whose dimensions come in a row."""
    by_sample = project.queue_order == Project.QueueOrder.SAMPLE
    if not project.gold_rate or (by_sample and claim.task.sample_id == last_sample):
        return []
    lot = random.Random(f"gold for {person.pk} before {claim.slot_id}")  # noqa: S311 - a lot, not a secret
    # Each task of the queue may bring one of gold with it: at odds of r / (1 - r), gold is the share r of all.
    if lot.random() >= project.gold_rate / (1 - project.gold_rate):
        return []
    found = _some_gold(project, person, by_sample, lot)
    # Held tasks come in the order in which they were claimed: gold that was claimed just before this one is before it,
    # and after whatever was claimed in an earlier statement.
    ahead = timedelta(microseconds=1)
    claims = [
        claim_extra(task, person, before=claim.slot_id, earlier=ahead * (len(found) - place))
        for place, task in enumerate(found)
    ]
    return [made for made in claims if made is not None]


def _some_gold(project: Project, person: Person, by_sample: bool, lot: random.Random) -> Sequence[Task]:
    """Gold the person has neither answered, held nor skipped: a sample's worth or one task, from a random place on."""
    met = (
        Exists(Annotation.objects.filter(task=OuterRef("task"), annotator__person=person)),
        Exists(Slot.objects.filter(task=OuterRef("task"), person=person)),
        Exists(Flag.objects.filter(task=OuterRef("task"), person=person, skipped=True)),
    )
    gold = GoldAnswer.objects.filter(*(~each for each in met), task__project=project).order_by("pk")
    ends = gold.aggregate(first=Min("pk"), last=Max("pk"))
    if ends["first"] is None:
        return []
    place = lot.randint(ends["first"], ends["last"])
    first = gold.filter(pk__gte=place).select_related("task__project", "task__sample__original").first()
    if first is None:
        return []
    if not by_sample:
        return [first.task]
    same = gold.filter(task__sample=first.task.sample_id).select_related("task__project", "task__sample__original")
    return [one.task for one in same.order_by("task_id")]
