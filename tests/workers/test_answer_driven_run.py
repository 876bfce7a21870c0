"""Answer-driven annotation: the reasoning for an answer a person gave; another answer is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from annotation_server.annotations import services as annotations_services
from annotation_server.annotations.models import Annotation, Approach, Resolution
from annotation_server.projects.models import Project
from annotation_server.runs import services
from annotation_server.runs.models import Attempt, Endpoint, Run, RunTask
from annotation_server.runs.selection import Wanted
from tests.server.factories import annotate, make_member
from tests.workers.conftest import FakeEndpoint, MakeEndpoint
from tests.workers.scenes import project_with_tasks

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    return make_endpoint()


def start(project: Project, endpoint: Endpoint) -> Run:
    return services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.ANSWER_DRIVEN))


def test_it_works(endpoint: Endpoint, work: Work) -> None:
    project, (task,) = project_with_tasks(1)
    vote = annotate(task, make_member(project), "AC")
    start(project, endpoint)
    work()
    explained = Annotation.objects.get(approach=Approach.ANSWER_DRIVEN)
    assert (explained.answer, explained.copied_from, explained.standing) == (frozenset("AC"), vote, "advice")
    assert explained.prompt_version == "explain-1"
    resolution = Resolution.objects.get()
    assert (resolution.rationale_from, resolution.votes) == (explained, 1)


def test_none_is_an_answer_that_can_be_explained(endpoint: Endpoint, work: Work) -> None:
    project, (task,) = project_with_tasks(1)
    annotate(task, make_member(project), "")
    start(project, endpoint)
    work()
    assert Annotation.objects.get(approach=Approach.ANSWER_DRIVEN).answer == frozenset()


def test_another_answer_is_refused_and_asked_again(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, (task,) = project_with_tasks(1)
    annotate(task, make_member(project), "B")
    fake.control(script=["different"])
    start(project, endpoint)
    work()
    first, second = Attempt.objects.order_by("number")
    assert (first.outcome, first.reason) == ("rejected", "answer_differs")
    assert first.detail == "given B, the completion says none"
    assert second.outcome == "accepted"
    assert fake.seen()["last_request"]["temperature"] > 0


@pytest.mark.parametrize(("mode", "reason"), [("different", "answer_differs"), ("no_rationale", "no_rationale")])
def test_a_completion_that_explains_nothing_never_becomes_an_annotation(
    mode: str, reason: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    project, (task,) = project_with_tasks(1)
    annotate(task, make_member(project), "B")
    fake.control(mode=mode)
    start(project, endpoint)
    work()
    run_task = RunTask.objects.get()
    assert (run_task.state, run_task.reason) == (RunTask.State.REJECTED, reason)
    assert not Annotation.objects.filter(approach=Approach.ANSWER_DRIVEN).exists()
    assert Resolution.objects.get().rationale_from is None


def test_gold_is_explained_where_nobody_voted(endpoint: Endpoint, work: Work) -> None:
    project, (task,) = project_with_tasks(1)
    annotations_services.add_gold({task: frozenset("D")})
    start(project, endpoint)
    work()
    explained = Annotation.objects.get(approach=Approach.ANSWER_DRIVEN)
    assert (explained.answer, explained.copied_from) == (frozenset("D"), None)


def test_it_explains_what_stands_not_what_was_outvoted(endpoint: Endpoint, work: Work) -> None:
    project, (task,) = project_with_tasks(1, overlap=3, resolution_rule=Project.ResolutionRule.MAJORITY)
    people = [make_member(project) for _ in range(3)]
    votes = [annotate(task, person, answer) for person, answer in zip(people, ("A", "B", "B"), strict=True)]
    start(project, endpoint)
    work()
    explained = Annotation.objects.get(approach=Approach.ANSWER_DRIVEN)
    assert (explained.answer, explained.copied_from) == (frozenset("B"), votes[1])


def test_there_is_nothing_to_explain_where_nobody_answered_or_somebody_gave_reasons(endpoint: Endpoint) -> None:
    project, (task, _) = project_with_tasks(2)
    annotate(task, make_member(project), "A", rationale="A stands; the others float.")
    with pytest.raises(services.RunRefused, match="nothing to explain"):
        start(project, endpoint)
