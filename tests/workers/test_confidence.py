"""Several samples of a task that vote, candidates in another order for each, and probabilities of answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.jobs.models import Job
from annotation_server.projects.models import Project
from annotation_server.runs import selectors, services
from annotation_server.runs.models import Attempt, Endpoint, Run, RunTask
from annotation_server.runs.selection import Wanted
from annotation_workers.confidence import Sample, answer_probability, in_order, mapped_back, order_shown, vote
from tests.workers.conftest import FakeEndpoint, KilledAt, MakeEndpoint
from tests.workers.scenes import project_with_tasks
from trainer.contract.answers import Completion
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.prompts import ask, openai_messages

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    return make_endpoint()


def start(project: Project, endpoint: Endpoint, **fields: Any) -> Run:
    wanted = Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED)
    return services.start_run(wanted, **{"temperature": 0.7} | fields)


def test_it_works(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    """Of five samples one says something else, and one cannot be read and is asked for again."""
    project, _ = project_with_tasks(1, model_confidence=0.9)
    fake.control(script=["good", "different", "malformed", "good", "good", "good"])
    run = start(project, endpoint, samples=5)
    work()
    annotation = Annotation.objects.get()
    assert (annotation.answer, annotation.confidence) == (frozenset("A"), 0.8)
    assert annotation.meta["votes"] == {"A": 4, "none": 1}
    assert annotation.rationale == "A stands on the ground; B floats above it."
    outcomes = list(Attempt.objects.order_by("number").values_list("outcome", "reason"))
    assert outcomes == [
        ("accepted", ""), ("rejected", "outvoted"), ("rejected", "no_answer"), ("accepted", ""), ("accepted", ""),
        ("accepted", ""),
    ]  # fmt: skip
    assert selectors.refusals(run) == {"no_answer": 1, "outvoted": 1}
    assert annotation.task.state == "open"  # 0.8 is below the project's 0.9: it goes to people


def test_samples_that_agree_resolve_a_task_at_the_projects_confidence(endpoint: Endpoint, work: Work) -> None:
    project, _ = project_with_tasks(1, model_confidence=0.9)
    start(project, endpoint, samples=3)
    work()
    annotation = Annotation.objects.get()
    assert (annotation.confidence, annotation.task.state) == (1.0, "resolved")


def test_one_request_gives_all_samples_where_the_endpoint_can(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    services.change_endpoint(endpoint, {"overrides": {"choices": True}})
    project, _ = project_with_tasks(1)
    fake.control(script=["good", "different", "malformed", "good"])
    start(project, endpoint, samples=4)
    work()
    # Three of four could be read: one more was asked for.
    assert (Attempt.objects.count(), fake.seen()["last_request"].get("n")) == (2, None)
    assert (Annotation.objects.get().confidence, Annotation.objects.get().meta["votes"]) == (0.75, {"A": 3, "none": 1})


def test_an_endpoint_that_ignores_n_is_called_until_there_are_enough(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    services.change_endpoint(endpoint, {"overrides": {"choices": True}})
    fake.control(can=["data_uri"])
    project, _ = project_with_tasks(1)
    start(project, endpoint, samples=3)
    work()
    assert (Attempt.objects.count(), Annotation.objects.get().confidence) == (3, 1.0)


def test_samples_that_never_come_count_against_the_answer(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, _ = project_with_tasks(1)
    fake.control(script=["good", "good"], mode="malformed")
    start(project, endpoint, samples=4, max_attempts=2)
    work()
    assert (RunTask.objects.get().state, Annotation.objects.get().confidence) == ("accepted", 0.5)


def test_candidates_change_places_and_answers_are_mapped_back(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    """The fake always says A, whichever candidate that is: a model that likes the first place best is not sure."""
    project, (task,) = project_with_tasks(1)
    start(project, endpoint, samples=5, permute=True, temperature=0.0)
    work()
    attempts = list(Attempt.objects.order_by("number"))
    assert [attempt.shown for attempt in attempts] == [order_shown(task.pk, number, 4) for number in range(1, 6)]
    assert attempts[0].shown == ""
    firsts = [(attempt.shown or "ABCD")[0] for attempt in attempts]
    annotation = Annotation.objects.get()
    assert annotation.meta["votes"] == {letter: firsts.count(letter) for letter in firsts}
    assert annotation.confidence == max(map(firsts.count, firsts)) / 5
    content = fake.seen()["last_request"]["messages"][0]["content"]
    assert [part["text"] for part in content[0:-1:2]] == ["Original:", *(f"Candidate {x}:" for x in "ABCD")]


def test_the_samples_of_a_killed_worker_are_not_asked_for_again(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, work_killed_at: KilledAt
) -> None:
    project, _ = project_with_tasks(1)
    run = start(project, endpoint, samples=3)
    work_killed_at("annotation_workers.judging.Judging._vote")
    assert list(Attempt.objects.values_list("outcome", flat=True)) == ["answered"] * 3
    Job.objects.filter(state="running").update(state="queued", lease_token=None, lease_expires_at=None)
    work()
    run.refresh_from_db()
    assert (run.state, len(fake.charges()), Annotation.objects.get().confidence) == (Run.State.DONE, 3, 1.0)


def test_confidence_from_the_probabilities_of_the_answers_tokens(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    project, _ = project_with_tasks(1)
    with pytest.raises(services.RunRefused, match="logprobs: fake is not known to have that feature"):
        start(project, endpoint, logprobs=True)
    services.change_endpoint(endpoint, {"overrides": {"logprobs": True}})
    start(project, endpoint, logprobs=True)
    work()
    assert Annotation.objects.get().confidence == pytest.approx(math.exp(-0.1))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"samples": 3, "temperature": 0.0}, "at temperature 0 all samples are the same"),
        ({"permute": True}, "two samples per task or more"),
        ({"samples": 16}, "expected 1 to 15, got 16"),
        ({"samples": 0}, "expected 1 to 15, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], line: str, endpoint: Endpoint) -> None:
    project, _ = project_with_tasks(1)
    with pytest.raises(services.RunRefused, match=line):
        start(project, endpoint, **fields)


def sample(number: int, answer: str, rationale: str = "") -> Sample:
    return Sample(Attempt(pk=number), Completion(rationale, frozenset(answer)))


def test_of_equals_the_answer_given_first_wins_and_says_how_unsure_it_is() -> None:
    voted = vote([sample(1, "B"), sample(2, "A"), sample(3, "A", "why"), sample(4, "B", "because")], 4)
    assert (voted.answer, voted.confidence, voted.rationale) == (frozenset("B"), 0.5, "because")
    assert [attempt.pk for attempt in voted.agreeing] == [1, 4]
    assert [attempt.pk for attempt in voted.outvoted] == [2, 3]


def test_pictures_change_places_and_names_stay() -> None:
    messages = openai_messages(ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 3), ["o", "a", "b", "c"])
    (message,) = in_order(messages, "CAB")
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert urls == ["o", "c", "a", "b"]
    assert in_order(messages, "") == messages
    # The model calls the first one A: that is C.
    assert mapped_back(Completion("A stands", frozenset("AB")), "CAB") == Completion("", frozenset("CA"))
    assert mapped_back(Completion("A stands", frozenset("A")), "") == Completion("A stands", frozenset("A"))


@pytest.mark.parametrize("candidates", range(1, 9))
def test_an_order_holds_every_candidate_once_and_is_the_same_again(candidates: int) -> None:
    for number in range(1, 20):
        shown = order_shown(7, number, candidates)
        assert shown == order_shown(7, number, candidates)
        assert shown == "" or sorted(shown) == list("ABCDEFGH"[:candidates])
    assert order_shown(7, 1, candidates) == ""


def test_only_the_tokens_of_the_answer_count() -> None:
    tokens = [("<think>A", -3.0), ("</think>", -3.0), ("<answer>", -3.0), ("A", -0.1), (",", 0.0), ("C</", -0.3)]
    expected = (math.exp(-0.1) + 1 + math.exp(-0.3)) / 3
    assert answer_probability([*tokens, ("answer>", -9.0)]) == pytest.approx(expected)
    in_json = [('{"answer": ["A', -0.2), ('"]', -4.0), ("}", -4.0)]
    assert answer_probability(in_json) == pytest.approx((math.exp(-0.2) + math.exp(-4.0)) / 2)
    assert answer_probability([("Hello", -0.1)]) is None
    assert answer_probability([]) is None
