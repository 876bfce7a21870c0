"""How fast an endpoint is called, by the clock: its limits per minute, fewer calls when it asks for that, pausing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from django.db import connection, transaction

from annotation_server.annotations.models import Approach
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Project
from annotation_server.runs import pacing, selectors, services
from annotation_server.runs.models import Attempt, Endpoint, Pace, Run, RunTask
from annotation_server.runs.selection import Wanted
from annotation_workers.__main__ import work_off
from annotation_workers.celery import app
from tests.workers.conftest import FakeEndpoint, MakeEndpoint
from tests.workers.scenes import project_with_tasks

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]


def start(project: Project, endpoint: Endpoint, **fields: Any) -> Run:
    return services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED), **fields)


def learn(endpoint: Endpoint, outcomes: list[pacing.Outcome]) -> None:
    with transaction.atomic():
        pacing.learn(endpoint.pk, outcomes)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run of a dozen tasks has several, worked at once."""
    monkeypatch.setattr("annotation_server.runs.preparation.CHUNK_TASKS", 4)


def in_two_workers() -> None:
    """Two at once, as threads: each claims jobs, and has a connection to the database, of its own."""

    def one() -> None:
        try:
            work_off(threading.Event())
        finally:
            connection.close()

    app.loader.import_default_modules()  # as every process does for itself, before it begins
    workers = [threading.Thread(target=one) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_requests_per_minute_hold_for_all_workers_together(fake: FakeEndpoint, make_endpoint: MakeEndpoint) -> None:
    """At 120 a minute four come within two seconds; the fake turns away a sixth, the fifth is what its way may vary."""
    fake.control(limit=[5, 2.0])
    project, _ = project_with_tasks(14)
    run = start(project, make_endpoint(concurrency=8, requests_per_minute=120))
    in_two_workers()
    run.refresh_from_db()
    assert (run.state, selectors.run_progress(run).accepted) == (Run.State.DONE, 14)
    seen = fake.seen()
    assert (seen["turned_away"], len(seen["called_at"])) == (0, 14)
    assert seen["called_at"][-1] - seen["called_at"][0] < 9  # 13 × 0.5 s, and not much more


@pytest.mark.slow
def test_tokens_per_minute_are_estimated_before_and_corrected_after(
    fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work
) -> None:
    """A call is thought to take some 300 tokens and really takes 1,050: at 63,000 a minute, one per second."""
    project, _ = project_with_tasks(6)
    run = start(project, make_endpoint(concurrency=1, tokens_per_minute=63_000), max_tokens=50)
    work()
    run.refresh_from_db()
    assert run.state == Run.State.DONE
    called_at = fake.seen()["called_at"]
    assert 4.5 < called_at[-1] - called_at[0] < 7


@pytest.mark.slow
def test_an_endpoint_that_asks_for_fewer_calls_gets_fewer_and_then_more_again(
    fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work
) -> None:
    fake.control(script=["rate_limit"], retry_after="0.3", delay=0.05)
    endpoint = make_endpoint(concurrency=8)
    project, _ = project_with_tasks(60)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, selectors.refusals(run)) == (Run.State.DONE, {"rate_limit": 1})
    pace = Pace.objects.get(endpoint=endpoint)
    assert (pace.busy_rounds, pacing.calls_at_once(endpoint, pace)) == (0, 8)  # halved to 4, and grown back since
    assert pace.slowed_at is not None


def test_calls_sent_before_it_said_so_halve_nothing_twice(make_endpoint: MakeEndpoint) -> None:
    endpoint = make_endpoint(concurrency=64)
    sent_at = datetime.now(UTC)
    refused = pacing.Outcome(sent_at=sent_at, good=False, busy=True, retry_after=None, tokens_reserved=0, tokens_used=0)
    learn(endpoint, [refused] * 64)
    pace = Pace.objects.get()
    assert (pace.at_once, pace.busy_rounds) == (32.0, 1)
    again = pacing.Outcome(
        sent_at=datetime.now(UTC), good=False, busy=True, retry_after=7.0, tokens_reserved=0, tokens_used=0
    )
    learn(endpoint, [again])
    pace = Pace.objects.get()
    assert (pace.at_once, pace.busy_rounds) == (16.0, 2)
    assert pace.resting_until is not None
    assert 6 < (pace.resting_until - datetime.now(UTC)).total_seconds() <= 7


def test_it_grows_by_one_per_round_of_good_answers(make_endpoint: MakeEndpoint) -> None:
    endpoint = make_endpoint(concurrency=64)
    Pace.objects.create(endpoint=endpoint, at_once=8.0)
    good = pacing.Outcome(
        sent_at=datetime.now(UTC), good=True, busy=False, retry_after=None, tokens_reserved=0, tokens_used=0
    )
    learn(endpoint, [good] * 8)
    assert 8.9 < (Pace.objects.get().at_once or 0) < 9.0


@pytest.mark.slow
@pytest.mark.parametrize("as_date", [False, True])
def test_a_retry_after_is_waited_for_in_seconds_or_as_a_date(
    as_date: bool, fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work
) -> None:
    project, _ = project_with_tasks(8)
    run = start(project, make_endpoint(concurrency=4))
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=6)  # such a date has no fractions
    after = format_datetime(until, usegmt=True) if as_date else "2"
    fake.control(script=["overloaded"] * 4, retry_after=after, delay=1.0)  # all four are out by then
    work()
    run.refresh_from_db()
    assert run.state == Run.State.DONE
    called_at = fake.seen()["called_at"]
    assert len(called_at) == 4 + 8  # the first four at once were turned away, and nobody else until the time came
    assert called_at[4] >= (until.timestamp() if as_date else called_at[3] + 1.5)


@pytest.mark.slow
def test_an_endpoint_that_is_always_busy_is_away_after_few_calls(
    fake: FakeEndpoint, make_endpoint: MakeEndpoint, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotation_server.jobs.services.FIRST_RETRY", timedelta(0))
    monkeypatch.setattr("annotation_workers.annotate.BUSY_ROUNDS", 3)
    fake.control(mode="rate_limit", retry_after="0.2")
    project, _ = project_with_tasks(50)
    run = start(project, make_endpoint(concurrency=8))
    work()
    run.refresh_from_db()
    assert run.state == Run.State.PAUSED
    assert "asked for fewer calls" in run.error
    assert RunTask.objects.filter(run=run, state="waiting").count() == 50  # none was used up
    assert len(fake.seen()["called_at"]) < 60


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_calls_at_once_hold_for_all_workers_together(fake: FakeEndpoint, make_endpoint: MakeEndpoint) -> None:
    fake.control(delay=0.15)
    project, _ = project_with_tasks(16)
    run = start(project, make_endpoint(concurrency=3))
    in_two_workers()
    run.refresh_from_db()
    assert (run.state, fake.seen()["most_at_once"]) == (Run.State.DONE, 3)
    assert not run.chunks.exclude(on_their_way=0).exists()


@pytest.mark.slow
@pytest.mark.parametrize("why", ["calls are slow", "the endpoint rests", "requests are few"])
def test_no_call_begins_later_than_two_seconds_after_a_pause(
    why: str, fake: FakeEndpoint, make_endpoint: MakeEndpoint
) -> None:
    limits = {}
    match why:
        case "calls are slow":
            fake.control(delay=0.4)
        case "the endpoint rests":
            fake.control(script=["rate_limit"] * 4, retry_after="3")
        case "requests are few":
            limits["requests_per_minute"] = 60
    project, _ = project_with_tasks(40)
    run = start(project, make_endpoint(concurrency=4, **limits))
    paused: list[float] = []

    def pause() -> None:
        try:
            deadline = time.monotonic() + 30
            while not fake.seen()["called_at"] and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(1.0)
            assert services.pause(run)
            paused.append(time.time())
        finally:
            connection.close()

    person = threading.Thread(target=pause)
    person.start()
    work_off(threading.Event())
    ended = time.time()
    person.join()
    run.refresh_from_db()
    assert run.state == Run.State.PAUSED
    called_at = fake.seen()["called_at"]
    assert called_at
    assert max(called_at) < paused[0] + 0.3
    assert ended < paused[0] + 2.5  # nobody waits on for the endpoint's sake: a resumed run finds its chunk free
    assert Job.objects.get(kind=JobKind.ANNOTATE_CHUNK).state == Job.State.DONE
    assert not Attempt.objects.filter(outcome="sent").exists()

    fake.control(reset=True)
    Endpoint.objects.update(requests_per_minute=0)
    assert services.resume(run)
    work_off(threading.Event())
    run.refresh_from_db()
    assert (run.state, selectors.run_progress(run).accepted) == (Run.State.DONE, 40)
