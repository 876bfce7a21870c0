"""Runs whose completions are checked: rejections are counted and asked again, a re-solve comes before acceptance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.jobs.models import Job
from annotation_server.projects.models import Project
from annotation_server.runs import preparation, selectors, services
from annotation_server.runs.models import Attempt, Endpoint, Run, RunTask, WordingKey
from annotation_server.runs.selection import Wanted
from tests.server.factories import annotate, make_member
from tests.workers.conftest import FakeEndpoint, KilledAt, MakeEndpoint, Processes
from tests.workers.scenes import project_with_tasks
from trainer.contract.feedback import Objection, feedback

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]
Until = Callable[[Callable[[], bool], float], None]


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    return make_endpoint()


def explained(count: int, **fields: object) -> Project:
    """A project whose tasks wait for the reasoning of one answer: A."""
    project, tasks = project_with_tasks(count, **fields)
    person = make_member(project)
    for task in tasks:
        annotate(task, person, "A")
    return project


def start(project: Project, endpoint: Endpoint, approach: Approach = Approach.ANSWER_DRIVEN, **fields: Any) -> Run:
    return services.start_run(Wanted(project=project, endpoint=endpoint, approach=approach), **fields)


def outcomes() -> list[tuple[str, str, bool]]:
    """Every attempt in order: its outcome, reason, and whether it is a re-solve."""
    rows = Attempt.objects.order_by("run_task_id", "number")
    return [(row.outcome, row.reason, row.resolves_id is not None) for row in rows]


def question(fake: FakeEndpoint) -> str:
    text: str = fake.seen()["last_request"]["messages"][0]["content"][-1]["text"]
    return text


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("different", "answer_differs"),
        ("no_rationale", "no_rationale"),
        ("too_long", "too_long"),
        ("too_short", "too_short"),
        ("leak", "leaks"),
        ("parrot", "leaks"),
        ("empty_talk", "empty_talk"),
        ("contradiction", "contradicts"),
    ],
)
def test_a_refused_reasoning_is_asked_again_with_a_word_about_it_and_every_attempt_is_kept(
    mode: str, reason: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(script=[mode])
    run = start(explained(1), endpoint)
    work()
    assert outcomes() == [("rejected", reason, False), ("accepted", "", False)]
    assert Attempt.objects.order_by("number")[0].response.body
    assert feedback(reason) in question(fake)
    assert Annotation.objects.get(approach=Approach.ANSWER_DRIVEN).prompt_version == "explain-1+feedback-1"
    assert selectors.refusals(run) == {reason: 1}
    counts = {check.objection: check.times for check in selectors.check_counts(run, selectors.refusals(run))}
    assert counts == dict.fromkeys(Objection, 0) | {Objection(reason): 1}


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("too_long", "too_long"),
        ("too_short", "too_short"),
        ("empty_talk", "empty_talk"),
        ("contradiction", "contradicts"),
    ],
)
def test_an_automated_completion_meets_the_checks_that_make_sense_for_it(
    mode: str, reason: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    project, _ = project_with_tasks(1)
    fake.control(mode=mode)
    start(project, endpoint, Approach.AUTOMATED)
    work()
    assert outcomes() == [("rejected", reason, False)] * 3
    assert (RunTask.objects.get().state, RunTask.objects.get().reason) == ("rejected", reason)


def test_nobody_told_an_automated_completion_anything(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, _ = project_with_tasks(1)
    fake.control(mode="leak")
    start(project, endpoint, Approach.AUTOMATED)
    work()
    assert outcomes() == [("accepted", "", False)]


def test_the_projects_limits_are_those_that_count(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(mode="too_short")
    start(explained(1, rationale_min_words=0), endpoint)
    work()
    assert outcomes() == [("accepted", "", False)]


def test_the_words_of_another_task_are_refused_across_chunks_and_runs(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tasks in three chunks, told alike: the first is accepted, the others only in words of their own."""
    monkeypatch.setattr(preparation, "CHUNK_TASKS", 1)
    project = explained(3, near_copy=0.8)
    fake.control(script=["copy", "copy", "own_words", "copy"], mode="own_words")
    start(project, endpoint, max_attempts=2)
    work()
    assert outcomes() == [
        ("accepted", "", False),
        ("rejected", "near_copy", False),
        ("accepted", "", False),
        ("rejected", "near_copy", False),
        ("accepted", "", False),
    ]
    first = RunTask.objects.order_by("pk")[0]
    detail = Attempt.objects.filter(reason="near_copy").first()
    assert detail is not None
    assert detail.detail == f"100% of its words are those about {first.task.sample.external_id}, physical_shadow"
    assert WordingKey.objects.filter(run_task=first).count() == 6

    more, tasks = project_with_tasks(1, near_copy=0.8)
    annotate(tasks[0], make_member(more), "A")
    fake.control(mode="copy")
    start(more, endpoint, max_attempts=1)
    work()
    assert outcomes()[-1] == ("accepted", "", False)  # what another project says is its own business


def test_of_two_alike_at_the_same_moment_one_is_accepted(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(mode="copy")
    start(explained(4, near_copy=0.8), endpoint, max_attempts=1)
    work()
    assert sorted(outcomes()) == [("accepted", "", False)] + [("rejected", "near_copy", False)] * 3
    assert (
        sorted(RunTask.objects.values_list("state", "reason")) == [("accepted", "")] + [("rejected", "near_copy")] * 3
    )
    assert Annotation.objects.filter(approach=Approach.ANSWER_DRIVEN).count() == 1


@pytest.mark.parametrize("threshold", [None, 0, 1.0])
def test_without_a_threshold_near_copies_are_not_looked_for_and_at_one_only_copies(
    threshold: float | None, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    start(explained(2, near_copy=threshold), endpoint, max_attempts=1)
    work()
    assert sum(outcome == "accepted" for outcome, _, _ in outcomes()) == (1 if threshold == 1.0 else 2)
    assert WordingKey.objects.exists() is (threshold == 1.0)


def test_a_reasoning_is_solved_again_by_somebody_who_does_not_see_its_answer(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    run = start(explained(1, blind_resolve=True), endpoint)
    work()
    assert outcomes() == [("accepted", "", False), ("read", "", True)]
    reasoned, resolved = Attempt.objects.order_by("number")
    assert resolved.resolves == reasoned
    assert "Somebody reasoned: A stands on the ground; B floats above it. Following" in question(fake)
    assert Annotation.objects.filter(approach=Approach.ANSWER_DRIVEN).count() == 1
    progress = selectors.run_progress(run)
    assert (progress.accepted, progress.calls, progress.input_tokens) == (1, 2, 2000)
    assert progress.cost_usd == reasoned.cost_usd + resolved.cost_usd
    assert len(fake.charges()) == 2
    assert selectors.refusals(run) == {}
    assert not run.chunks.exclude(reserved_usd=0).exists()


def test_an_estimate_counts_re_solves_by_themselves(endpoint: Endpoint) -> None:
    project = explained(2)
    wanted = Wanted(project=project, endpoint=endpoint, approach=Approach.ANSWER_DRIVEN)
    without = selectors.estimate(wanted, 100)
    assert (without.resolve_calls, without.resolve_cost_usd) == (0, Decimal(0))
    project.blind_resolve = True
    said = selectors.estimate(wanted, 100)
    assert said.resolve_calls == 2
    # The images and the question again, with a completion of full length in it, and one more that comes out.
    assert said.input_tokens == 2 * without.input_tokens + 2 * 100
    assert said.resolve_cost_usd == without.cost_usd + Decimal(2 * 100) / 1000
    assert said.cost_usd == without.cost_usd + said.resolve_cost_usd
    automated = selectors.estimate(replace(wanted, approach=Approach.AUTOMATED), 100)
    assert (automated.tasks, automated.resolve_calls) == (0, 0)
    automated = selectors.estimate(replace(wanted, approach=Approach.AUTOMATED, resolved_too=True), 100)
    assert (automated.tasks, automated.cost_usd, automated.resolve_calls) == (2, without.cost_usd, 0)


def test_a_reasoning_that_leads_somebody_else_elsewhere_is_refused(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(script=["good", "different"])
    run = start(explained(1, blind_resolve=True), endpoint)
    work()
    assert outcomes() == [
        ("rejected", "resolve_differs", False),
        ("read", "", True),
        ("accepted", "", False),
        ("read", "", True),
    ]
    assert selectors.refusals(run) == {"resolve_differs": 1}
    assert Attempt.objects.order_by("number")[0].detail == "its answer is A, who read it without says none"


def test_a_task_whose_reasonings_never_convince_is_given_up(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(script=["good", "different"] * 3)
    start(explained(1, blind_resolve=True), endpoint)
    work()
    assert outcomes() == [("rejected", "resolve_differs", False), ("read", "", True)] * 3
    assert (RunTask.objects.get().state, RunTask.objects.get().reason) == ("rejected", "resolve_differs")
    assert len(fake.charges()) == 6


@pytest.mark.parametrize(
    ("mode", "outcome", "reason"),
    [
        ("malformed", "rejected", "no_answer"),
        ("html", "error", "not_json"),
        ("error", "error", "server_error"),
        ("rate_limit", "error", "rate_limit"),
    ],
)
def test_a_resolve_that_says_nothing_is_asked_for_again(
    mode: str, outcome: str, reason: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(script=["good", mode], retry_after="0.1")
    start(explained(1, blind_resolve=True), endpoint)
    work()
    assert outcomes() == [("accepted", "", False), (outcome, reason, True), ("read", "", True)]


@pytest.mark.parametrize(
    ("mode", "outcome", "reason"),
    [("malformed", "rejected", "no_answer"), ("html", "error", "not_json"), ("error", "error", "server_error")],
)
def test_where_no_resolve_can_be_had_the_reasoning_is_refused_with_the_task(
    mode: str, outcome: str, reason: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(script=["good"], mode=mode)
    start(explained(1, blind_resolve=True), endpoint)
    work()
    assert outcomes() == [("rejected", "resolve_unread", False)] + [(outcome, reason, True)] * 3
    assert (RunTask.objects.get().state, RunTask.objects.get().reason) == ("rejected", reason)


def test_an_automated_run_is_not_solved_again(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, _ = project_with_tasks(1, blind_resolve=True)
    start(project, endpoint, Approach.AUTOMATED)
    work()
    assert outcomes() == [("accepted", "", False)]


def test_a_near_copy_is_not_worth_a_second_call(fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work) -> None:
    fake.control(mode="copy")
    project, tasks = project_with_tasks(2, blind_resolve=True, near_copy=0.8)
    person, endpoint = make_member(project), make_endpoint(concurrency=1)
    for task in tasks:
        annotate(task, person, "A")
        start(project, endpoint, max_attempts=1)
        work()
    assert outcomes() == [("accepted", "", False), ("read", "", True), ("rejected", "near_copy", False)]


@pytest.mark.parametrize("verdict", ["good", "different"])
def test_a_worker_killed_between_the_resolve_and_its_judgement_repeats_no_call(
    verdict: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work, work_killed_at: KilledAt
) -> None:
    fake.control(script=["good", verdict])
    run = start(explained(1, blind_resolve=True), endpoint, max_attempts=1)
    work_killed_at("annotation_workers.judging.Judging._judge_resolve")
    assert outcomes() == [("answered", "", False), ("answered", "", True)]
    _somebody_else_goes_on()
    work()
    run.refresh_from_db()
    assert (run.state, len(fake.charges())) == (Run.State.DONE, 2)
    kept = ("accepted", "", False) if verdict == "good" else ("rejected", "resolve_differs", False)
    assert outcomes() == [kept, ("read", "", True)]


def test_a_worker_killed_before_the_resolve_makes_that_call_alone(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, work_killed_at: KilledAt
) -> None:
    run = start(explained(1, blind_resolve=True), endpoint)
    work_killed_at("annotation_workers.judging.resolving.build_prompt")
    assert [outcome for outcome in outcomes() if not outcome[2]] == [("answered", "", False)]
    _somebody_else_goes_on()
    work()
    run.refresh_from_db()
    assert (run.state, len(fake.charges())) == (Run.State.DONE, 2)
    assert outcomes()[0] == ("accepted", "", False)
    assert outcomes()[-1] == ("read", "", True)


def test_a_worker_killed_between_a_near_copy_and_its_end_asks_no_more(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, work_killed_at: KilledAt
) -> None:
    fake.control(mode="copy")
    project = explained(2, near_copy=0.8)
    run = start(project, endpoint, max_attempts=1)
    work_killed_at("annotation_workers.judging.Judging._refused")
    _somebody_else_goes_on()
    work()
    run.refresh_from_db()
    assert (run.state, len(fake.charges())) == (Run.State.DONE, 2)
    assert sorted(RunTask.objects.values_list("state", "reason")) == [("accepted", ""), ("rejected", "near_copy")]


def test_a_project_that_no_longer_wants_it_still_listens_to_a_resolve_that_was_paid_for(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, work_killed_at: KilledAt
) -> None:
    fake.control(script=["good", "different"])
    start(explained(1, blind_resolve=True), endpoint, max_attempts=1)
    work_killed_at("annotation_workers.judging.Judging._judge_resolve")
    Project.objects.update(blind_resolve=False)
    _somebody_else_goes_on()
    work()
    assert outcomes() == [("rejected", "resolve_differs", False), ("read", "", True)]


def test_a_budget_holds_for_resolves_too(fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work) -> None:
    run = start(explained(1, blind_resolve=True), make_endpoint(concurrency=1), budget_usd=2)
    work()
    run.refresh_from_db()
    assert (run.state, len(fake.charges())) == (Run.State.PAUSED, 1)
    assert outcomes() == [("answered", "", False)]
    assert services.resume(run, budget_usd=100)  # type: ignore[arg-type]
    work()
    assert outcomes() == [("accepted", "", False), ("read", "", True)]
    assert len(fake.charges()) == 2


def _somebody_else_goes_on() -> None:
    Job.objects.update(state=Job.State.QUEUED, lease_token=None, lease_expires_at=None)


@pytest.mark.slow
def test_killed_workers_repeat_no_call_of_a_run_that_is_solved_again(
    processes: Processes, make_endpoint: MakeEndpoint, fake: FakeEndpoint, until: Until
) -> None:
    """Real workers, killed in the middle: every task ends, and every answered call is charged and judged once."""
    fake.control(delay=0.2)
    processes.queue()
    processes.scheduler()
    first = processes.worker()
    project = explained(24, blind_resolve=True)
    run = start(project, make_endpoint(concurrency=4))
    until(lambda: Attempt.objects.filter(outcome=Attempt.Outcome.READ).count() >= 5, 40)
    until(Attempt.objects.filter(outcome=Attempt.Outcome.SENT, resolves__isnull=False).exists, 10)
    processes.kill(first)
    processes.worker()

    def is_done() -> bool:
        run.refresh_from_db()
        return run.state == Run.State.DONE

    until(is_done, 60)
    assert RunTask.objects.filter(run=run, state=RunTask.State.ACCEPTED).count() == 24
    assert Annotation.objects.filter(approach=Approach.ANSWER_DRIVEN).count() == 24
    assert all(charge["calls"] == 1 for charge in fake.charges().values())
    counted = Counter((outcome, resolve) for outcome, _, resolve in outcomes())
    assert counted["accepted", False] == counted["read", True] == 24
    cut = counted["unknown", False] + counted["unknown", True]
    assert 1 <= cut <= 4
    assert sum(counted.values()) == 48 + cut
