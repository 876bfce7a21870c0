"""Undoing the last answer: until somebody else acted on it or a version froze it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from annotation_server.annotations.accuracy import gold_accuracy
from annotation_server.annotations.decisions import adjudicate, review
from annotation_server.annotations.models import Annotation, Approach, Draft, Resolution
from annotation_server.annotations.queue import next_claims
from annotation_server.annotations.services import AnnotationRefused, add_gold, model_annotator, withdraw
from annotation_server.datasets.services import freeze_version, start_freeze
from annotation_server.projects.models import Membership
from annotation_server.tasks.models import Task
from tests.server.factories import annotate, make_member, make_project, make_sample, make_task

pytestmark = pytest.mark.django_db


def test_it_works() -> None:
    project = make_project()
    task = make_task(project)
    annotator = make_member(project)
    mark = {"letter": "B", "x": 0.5, "y": 0.25}
    said = annotate(task, annotator, "AC", rationale="B floats.", marks=[mark])
    assert Resolution.objects.get().source == "agreement"

    claim = withdraw(said, annotator)

    assert claim.task == task
    task.refresh_from_db()
    assert (task.state, task.asking) == ("open", True)
    assert not Resolution.objects.exists()  # the automatic resolution went with it
    draft = Draft.objects.get()
    assert (draft.person, draft.answer, draft.rationale, draft.marks) == (annotator, ["A", "C"], "B floats.", [mark])
    said.refresh_from_db()
    assert (said.standing, said.slot) == ("withdrawn", None)  # kept in the ledger, counts nowhere
    assert said.answer == frozenset("AC")

    again = annotate(task, annotator, "A")
    assert again.standing == "vote"
    assert Resolution.objects.get().answer == frozenset("A")
    assert not Draft.objects.exists()


def test_the_task_comes_before_what_was_claimed_ahead() -> None:
    project = make_project()
    make_sample(project)
    annotator = make_member(project)
    first, second = next_claims(project, annotator, 2)
    said = annotate(first.task, annotator, "A")
    withdraw(said, annotator)
    assert [claim.task for claim in next_claims(project, annotator, 2)] == [first.task, second.task]


def test_a_dispute_ends_when_one_of_its_votes_is_undone() -> None:
    project = make_project(overlap=2)
    task = make_task(project)
    annotator = make_member(project)
    annotate(task, make_member(project), "A")
    said = annotate(task, annotator, "B")
    assert Task.objects.get().state == "disputed"
    withdraw(said, annotator)
    assert Task.objects.get().state == "open"


def test_an_undone_answer_to_gold_counts_in_no_accuracy() -> None:
    project = make_project()
    task = make_task(project)
    annotator = make_member(project)
    add_gold({task: frozenset("A")})
    said = annotate(task, annotator, "B")
    assert said.standing == "surplus"  # gold wants no votes; a check has a slot of its own
    assert gold_accuracy(project, annotator).overall.answers == 1
    with pytest.raises(AnnotationRefused, match="surplus"):
        withdraw(said, annotator)


def refused(said: Annotation, match: str) -> None:
    person = said.annotator.person
    assert person is not None
    with pytest.raises(AnnotationRefused, match=match):
        withdraw(said, person)
    said.refresh_from_db()
    assert said.standing == "vote"


def test_only_ones_own_and_only_the_last() -> None:
    project = make_project()
    annotator = make_member(project)
    first = annotate(make_task(project), annotator, "A")
    annotate(make_task(project), annotator, "A")
    refused(first, "only your last answer")
    with pytest.raises(AnnotationRefused, match="only your own"):
        withdraw(first, make_member(project))


def test_once_the_later_one_is_undone_the_earlier_is_the_last() -> None:
    project = make_project()
    annotator = make_member(project)
    first = annotate(make_task(project), annotator, "A")
    second = annotate(make_task(project), annotator, "A")
    withdraw(second, annotator)
    withdraw(first, annotator)
    with pytest.raises(AnnotationRefused, match="undone before"):
        withdraw(first, annotator)


def test_not_after_another_vote() -> None:
    project = make_project(overlap=2)
    task = make_task(project)
    said = annotate(task, make_member(project), "A")
    annotate(task, make_member(project), "A")
    refused(said, "somebody else has acted")


def test_not_after_a_model_built_on_it() -> None:
    project = make_project()
    task = make_task(project)
    said = annotate(task, make_member(project), "A")
    annotate(task, model_annotator("m"), "A", approach=Approach.ANSWER_DRIVEN, rationale="r", copied_from=said)
    refused(said, "somebody else has acted")


def test_not_after_an_adjudicator_decided() -> None:
    project = make_project()
    task = make_task(project)
    said = annotate(task, make_member(project), "A")
    reviewer = make_member(project, Membership.Role.REVIEWER)
    adjudicate(task=task, answer=frozenset("B"), person=reviewer, idempotency_key="k")
    refused(said, "somebody else has acted")


def test_not_after_a_review() -> None:
    project = make_project()
    task = make_task(project)
    said = annotate(task, make_member(project), "A")
    reviewer = make_member(project, Membership.Role.REVIEWER)
    review(task=task, annotation=None, verdict="accepted", person=reviewer, idempotency_key="k")
    refused(said, "reviewer has acted")


def test_not_after_a_version_froze_it() -> None:
    project = make_project()
    said = annotate(make_task(project), make_member(project), "A")
    manager = make_member(project, Membership.Role.MANAGER)
    version = start_freeze(project=project, name="v1", person=manager)
    freeze_version(version)
    refused(said, "frozen")


def test_a_version_that_froze_before_hinders_nothing() -> None:
    project = make_project()
    task = make_task(project)
    project.frozen_at = timezone.now() - timedelta(seconds=1)
    project.save()
    annotator = make_member(project)
    withdraw(annotate(task, annotator, "A"), annotator)
    assert Task.objects.get().state == "open"
