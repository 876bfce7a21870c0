"""Gold mixed into the queue: at the project's rate, unseen among the rest, pausing whoever falls below the floor."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from django.utils import timezone

from annotation_server.accounts.models import AuditEvent, Person
from annotation_server.annotations.accuracy import gold_accuracy, gold_accuracy_of_all, pause, resume
from annotation_server.annotations.models import Annotation, Resolution
from annotation_server.annotations.queue import next_claims, paused
from annotation_server.annotations.services import add_gold
from annotation_server.projects.models import Membership, Project
from annotation_server.tasks.flags import flag
from annotation_server.tasks.models import Slot, Task
from annotation_server.tasks.services import claim_next, release
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db

GOLD = frozenset("AC")


def make_gold(project: Project, number: int) -> list[Task]:
    """Tasks on shadows whose answer is known to be A and C."""
    tasks = [make_task(project) for _ in range(number)]
    add_gold(dict.fromkeys(tasks, GOLD))
    return tasks


def work(project: Project, person: Person, number: int, answer: str = "AC", ahead: int = 1) -> list[Task]:
    """Answer up to `number` tasks as they come, `ahead` held at a time."""
    done: list[Task] = []
    while len(done) < number and (claims := next_claims(project, person, ahead)):
        annotate(claims[0].task, person, answer)
        done.append(claims[0].task)
    return done


def test_it_works() -> None:
    project = make_project(gold_rate=0.5, dimensions=["physical_shadow"])
    (gold,) = make_gold(project, 1)
    task = make_task(project)
    annotator = make_member(project)

    first, second = next_claims(project, annotator, 2)

    assert [first.task, second.task] == [gold, task]
    said = annotate(gold, annotator, "AB")
    assert said.standing == "vote"
    assert Resolution.objects.get(task=gold).source == "gold"
    checked = gold_accuracy(project, annotator)
    assert (checked.overall.answers, checked.overall.exact, checked.overall.mean_credit) == (1, 0, 0.5)
    assert checked.dimensions["physical_shadow"].answers == 1


def test_accuracy_is_over_the_last_answers_only() -> None:
    project = make_project(gold_window=5, dimensions=["physical_shadow"])
    annotator, other = make_member(project), make_member(project)
    for number, task in enumerate(make_gold(project, 8)):
        annotate(task, annotator, "AC" if number >= 5 else "B")
        if number == 0:
            annotate(task, other, "AC")

    checked = gold_accuracy(project, annotator)

    assert (checked.overall.answers, checked.overall.exact) == (5, 3)
    everybody = gold_accuracy_of_all(project)
    assert everybody == {annotator.pk: checked, other.pk: gold_accuracy(project, other)}


@pytest.mark.parametrize(("rate", "order"), [(0.1, "sample"), (0.3, "dimension")])
def test_over_many_claims_the_share_of_gold_is_near_the_rate(rate: float, order: str) -> None:
    project = make_project(gold_rate=rate, dimensions=["physical_shadow"], queue_order=order)
    make_gold(project, 75)
    for _ in range(150):
        make_task(project)

    done = work(project, make_member(project), 150)

    share = sum(hasattr(task, "gold") for task in done) / len(done)
    assert share == pytest.approx(rate, abs=0.13)  # three and a half standard errors of 150 draws at 0.3


def test_no_gold_at_rate_zero() -> None:
    project = make_project(gold_rate=0, dimensions=["physical_shadow"])
    make_gold(project, 3)
    task = make_task(project)
    assert work(project, make_member(project), 9) == [task]


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_gold_comes_between_samples_and_never_in_the_middle_of_one(ahead: int) -> None:
    project = make_project(gold_rate=0.5)
    gold = [task for _ in range(3) for task in make_sample(project)[1]]
    add_gold(dict.fromkeys(gold, GOLD))
    for _ in range(4):
        make_sample(project)

    done = work(project, make_member(project), 100, ahead=ahead)

    assert len(done) == 28
    changes = [one.sample_id != other.sample_id for one, other in itertools.pairwise(done)]
    assert changes.count(True) == 6  # seven samples, each in one piece
    assert sum(task in gold for task in done) == 12


def test_asking_again_shows_the_same_tasks_in_the_same_order() -> None:
    project = make_project(gold_rate=0.5)
    gold = [task for _ in range(2) for task in make_sample(project)[1]]
    add_gold(dict.fromkeys(gold, GOLD))
    for _ in range(2):
        make_sample(project)
    annotator = make_member(project)

    first = next_claims(project, annotator, 8)
    again = next_claims(project, annotator, 8)

    assert [claim.slot_id for claim in again] == [claim.slot_id for claim in first]
    assert [claim.lease_token for claim in again] == [claim.lease_token for claim in first]


def test_nobody_meets_the_same_gold_twice() -> None:
    project = make_project(gold_rate=0.5, dimensions=["physical_shadow"])
    gold = make_gold(project, 3)
    for _ in range(10):
        make_task(project)
    annotator = make_member(project)
    (claim, *_) = next_claims(project, annotator)
    assert claim.task in gold
    flag(task=claim.task, person=annotator, reason="unclear", note="", skip=True)

    done = work(project, annotator, 100)

    assert len(done) == len(set(done)) == 12
    assert claim.task not in done


def test_several_people_answer_the_same_gold() -> None:
    project = make_project(gold_rate=0.5, dimensions=["physical_shadow"], overlap=2)
    (gold,) = make_gold(project, 1)
    make_task(project)
    for _ in range(2):
        assert gold in work(project, make_member(project), 9)
    assert Annotation.objects.filter(task=gold, standing="vote").count() == 2


def test_gold_given_back_or_left_lying_never_comes_from_the_queue() -> None:
    """In the queue's order it would stand in the middle of a sample, where nothing else ever stands."""
    project = make_project(gold_rate=0.5, dimensions=["physical_shadow"])
    gold = make_gold(project, 2)
    make_task(project)
    first, second = make_member(project), make_member(project)
    (held,) = next_claims(project, first)
    assert held.task in gold
    assert release(held.slot_id, held.lease_token)
    assert not Slot.objects.filter(pk=held.slot_id).exists()
    next_claims(project, first)
    Slot.objects.update(lease_expires_at=timezone.now() - timedelta(hours=1))

    claim = claim_next(project, second)
    assert claim is not None
    assert claim.task not in gold
    assert claim_next(project, second) is None


def floored(window: int = 5) -> tuple[Project, Person]:
    """Every other task is gold; who answers less than half of it exactly is paused."""
    project = make_project(
        gold_rate=0.5, gold_floor=0.5, gold_window=window, dimensions=["physical_shadow"], queue_order="dimension"
    )
    make_gold(project, 30)
    for _ in range(40):
        make_task(project)
    return project, make_member(project)


def test_who_falls_below_the_floor_is_paused_and_gets_nothing() -> None:
    project, annotator = floored()

    done = work(project, annotator, 40, answer="B")

    assert sum(hasattr(task, "gold") for task in done) == 5  # the window is full
    assert next_claims(project, annotator) == []
    membership = paused(project, annotator)
    assert membership is not None
    assert membership.paused_why == "0 of the last 5 gold answers exact, below 0.5"
    assert AuditEvent.objects.filter(verb="member.pause", person=None).count() == 1


def test_who_answers_well_is_never_paused() -> None:
    project, annotator = floored()
    assert len(work(project, annotator, 40)) == 40
    assert paused(project, annotator) is None


def test_resumed_by_a_manager_old_gold_pauses_no_more() -> None:
    project, annotator = floored()
    manager = make_member(project, Membership.Role.MANAGER)
    work(project, annotator, 40, answer="B")

    assert resume(project, annotator, by=manager)
    assert not resume(project, annotator, by=manager)
    done = work(project, annotator, 40, answer="B")

    assert sum(hasattr(task, "gold") for task in done) == 5  # a whole window of new ones
    assert paused(project, annotator) is not None


def test_a_manager_pauses_by_hand() -> None:
    project, annotator = floored()
    manager = make_member(project, Membership.Role.MANAGER)
    assert pause(project, annotator, "on leave", by=manager)
    assert not pause(project, annotator, "again", by=manager)
    assert next_claims(project, annotator) == []
