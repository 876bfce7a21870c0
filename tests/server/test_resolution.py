"""Which answer stands: the project's rule over the ledger."""

from __future__ import annotations

import pytest

from annotation_server.annotations.decisions import adjudicate
from annotation_server.annotations.models import Approach, Resolution
from annotation_server.annotations.resolution import agreed_answer
from annotation_server.annotations.services import add_gold, model_annotator
from annotation_server.projects.models import Project
from annotation_server.tasks.models import Task
from tests.server.factories import annotate, make_member, make_project, make_task

pytestmark = pytest.mark.django_db


def vote(task: Task, *answers: str) -> Task:
    for answer in answers:
        annotate(task, make_member(task.project), answer)
    task.refresh_from_db()
    return task


def resolution_of(task: Task) -> Resolution | None:
    return Resolution.objects.filter(task=task).first()


def test_it_works() -> None:
    task = vote(make_task(make_project(overlap=2)), "AB", "AB")
    resolution = resolution_of(task)
    assert resolution is not None
    assert (task.state, resolution.answer, resolution.source) == ("resolved", frozenset("AB"), "agreement")
    assert (resolution.votes, resolution.agreement) == (2, 1.0)


def test_a_task_waits_for_all_its_votes() -> None:
    task = vote(make_task(make_project(overlap=2)), "A")
    assert task.state == "open"
    assert resolution_of(task) is None


def test_a_dispute_leaves_nothing_standing() -> None:
    task = vote(make_task(make_project(overlap=2)), "A", "B")
    assert task.state == "disputed"
    assert resolution_of(task) is None


def test_a_majority_per_candidate_resolves() -> None:
    task = vote(make_task(make_project(overlap=3, resolution_rule="majority")), "A", "AB", "BC")
    resolution = resolution_of(task)
    assert resolution is not None
    assert resolution.answer == {"A", "B"}
    assert resolution.agreement == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("rule", "votes", "agreed"),
    [
        ("unanimity", ["", ""], ""),
        ("unanimity", ["A", "AB"], None),
        ("majority", ["A", "B"], None),
        ("majority", ["A", "A", "B", "B"], None),
        ("majority", ["A", "A", "A", "B"], "A"),
        ("majority", ["A", "B", "C"], ""),
    ],
)
def test_rules(rule: str, votes: list[str], agreed: str | None) -> None:
    expected = None if agreed is None else frozenset(agreed)
    assert agreed_answer(rule, [frozenset(answer) for answer in votes], 4) == expected


def test_an_adjudicator_decides_and_later_votes_change_nothing() -> None:
    task = vote(make_task(make_project(overlap=2)), "A", "B")
    reviewer = make_member(task.project, "reviewer")

    adjudicate(task=task, answer=frozenset("AD"), person=reviewer, rationale="D is fine.", idempotency_key="1")
    adjudicate(task=task, answer=frozenset("C"), person=reviewer, idempotency_key="1")
    annotate(task, make_member(task.project), "B")

    resolution = resolution_of(task)
    task.refresh_from_db()
    assert resolution is not None
    assert (task.state, resolution.answer, resolution.source) == ("resolved", frozenset("AD"), "adjudication")
    assert resolution.decided_by == reviewer
    assert resolution.rationale_from is not None
    assert resolution.rationale_from.rationale == "D is fine."


def test_gold_stands_above_votes() -> None:
    task = vote(make_task(), "A")
    add_gold({task: frozenset("D")})
    resolution = resolution_of(task)
    assert resolution is not None
    assert (resolution.answer, resolution.source, resolution.agreement) == (frozenset("D"), "gold", 0.0)


@pytest.mark.parametrize(
    ("floor", "confidence", "resolves"),
    [(None, 0.9, False), (0.8, 0.9, True), (0.8, 0.7, False), (0.8, None, False), (0.0, None, True)],
)
def test_a_model_resolves_only_at_the_projects_confidence(
    floor: float | None, confidence: float | None, resolves: bool
) -> None:
    task = make_task(make_project(model_confidence=floor))
    annotate(task, model_annotator("m"), "B", approach=Approach.AUTOMATED, confidence=confidence)
    resolution = resolution_of(task)
    assert (resolution is not None and resolution.source == "model") is resolves


def test_votes_overrule_a_model() -> None:
    task = make_task(make_project(model_confidence=0.0))
    annotate(task, model_annotator("m"), "B", approach=Approach.AUTOMATED)
    vote(task, "A")
    resolution = resolution_of(task)
    assert resolution is not None
    assert (resolution.answer, resolution.source) == (frozenset("A"), "agreement")


def test_an_answer_driven_rationale_stands_and_is_no_vote() -> None:
    task = make_task(make_project(overlap=2))
    annotate(task, make_member(task.project), "A", rationale="short note")
    annotate(task, model_annotator("m"), "A", approach=Approach.ANSWER_DRIVEN, rationale="A: the shadow touches it.")
    task.refresh_from_db()
    assert task.state == "open"

    vote(task, "A")
    resolution = resolution_of(task)
    assert resolution is not None
    assert resolution.votes == 2
    assert resolution.rationale_from is not None
    assert resolution.rationale_from.approach == Approach.ANSWER_DRIVEN


def test_a_rationale_for_another_answer_never_stands() -> None:
    task = make_task(make_project(resolution_rule=Project.ResolutionRule.UNANIMITY))
    annotate(task, model_annotator("m"), "B", approach=Approach.AUTOMATED, rationale="B: fine.")
    vote(task, "A")
    resolution = resolution_of(task)
    assert resolution is not None
    assert resolution.rationale_from is None
