"""Writing down a run's tasks: by a job, in chunks, going on after a kill where it was, and never twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, transaction

from annotation_server.annotations.models import Approach
from annotation_server.annotations.services import add_gold
from annotation_server.jobs.models import Job, JobKind
from annotation_server.runs import preparation, selection, selectors, services
from annotation_server.runs.models import Endpoint, Run, RunTask
from annotation_server.runs.selection import Wanted
from tests.server.factories import make_project, make_sample, prepare
from tests.workers.conftest import FakeEndpoint, MakeEndpoint
from tests.workers.scenes import project_with_tasks

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    return make_endpoint()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "CHUNK_TASKS", 3)
    monkeypatch.setattr(preparation, "CHUNKS_PER_TRANSACTION", 2)


def run_over(samples: int, endpoint: Endpoint, **wanted: Any) -> Run:
    project = make_project(dimensions=["physical_shadow"])
    for _ in range(samples):
        make_sample(project)
    return services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED, **wanted))


def test_starting_a_run_writes_one_row_and_a_job_writes_the_rest(endpoint: Endpoint) -> None:
    run = run_over(20, endpoint)
    assert (run.state, run.chunks.count(), run.prepared_at) == (Run.State.PREPARING, 0, None)
    prepare(run)
    assert (run.state, run.prepared_at is not None) == (Run.State.WAITING, True)
    assert list(run.chunks.order_by("ordinal").values_list("ordinal", "tasks")) == [(n, 3) for n in range(6)] + [(6, 2)]
    assert RunTask.objects.filter(run=run).values("task").distinct().count() == 20
    assert Job.objects.filter(kind=JobKind.ANNOTATE_CHUNK).count() == services.CHUNKS_AT_ONCE


@pytest.mark.parametrize("killed_in_batch", [1, 2, 3])
def test_a_killed_preparation_goes_on_where_it_was(
    killed_in_batch: int, endpoint: Endpoint, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_over(20, endpoint, limit=17)
    write = preparation._write
    batches: list[int] = []

    def write_or_die(run: Run, ordinal: int, parts: Sequence[Any]) -> None:
        write(run, ordinal, parts)
        batches.append(ordinal)
        if len(batches) == killed_in_batch:
            raise KeyboardInterrupt  # inside the transaction: what this batch wrote is gone

    with monkeypatch.context() as crash:
        crash.setattr(preparation, "_write", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            prepare(run)
    assert RunTask.objects.filter(run=run).count() == 6 * (killed_in_batch - 1)
    Job.objects.filter(kind=JobKind.PREPARE_RUN).update(state="queued", lease_token=None, lease_expires_at=None)
    prepare(run)
    assert sorted(run.chunks.values_list("ordinal", flat=True)) == list(range(6))
    assert RunTask.objects.filter(run=run).values("task").distinct().count() == 17
    assert sum(run.chunks.values_list("tasks", flat=True)) == 17


@pytest.mark.parametrize("approach", [Approach.AUTOMATED, Approach.ANSWER_DRIVEN])
def test_others_write_while_tasks_are_written_down(
    approach: Approach, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite a query that is still being read keeps its connection from writing once anybody else has written."""
    project = make_project(dimensions=["physical_shadow"])
    for _ in range(20):
        _, (task,) = make_sample(project)
        add_gold({task: frozenset("A")})
    monkeypatch.setattr(selection, "_BATCH", 2)
    run = services.start_run(Wanted(project=project, endpoint=endpoint, approach=approach, resolved_too=True))
    write = preparation._write

    def write_after_somebody_else(*args: Any) -> None:
        write(*args)
        transaction.on_commit(lambda: in_a_thread(lambda: Endpoint.objects.update(caveat="Somebody wrote.")))

    monkeypatch.setattr(preparation, "_write", write_after_somebody_else)
    assert prepare(run).state == Run.State.WAITING
    given = run.run_tasks.order_by("task").values_list("given_answer", flat=True)
    assert list(given) == [None if approach == Approach.AUTOMATED else frozenset("A")] * 20


def in_a_thread(act: Callable[[], object]) -> None:
    """By a connection of its own."""

    def then_close() -> None:
        try:
            act()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as one:
        one.submit(then_close).result()


def test_preparing_twice_changes_nothing(endpoint: Endpoint) -> None:
    run = prepare(run_over(8, endpoint))
    Job.objects.filter(kind=JobKind.PREPARE_RUN).update(state="queued", finished_at=None)
    before = list(RunTask.objects.order_by("pk").values())
    prepare(run)
    assert list(RunTask.objects.order_by("pk").values()) == before


def test_a_run_that_is_paused_meanwhile_is_prepared_and_does_not_go(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    project, _ = project_with_tasks(5)
    run = services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED))
    assert services.pause(run)
    work()
    run.refresh_from_db()
    assert (run.state, run.prepared_at is not None, fake.charges()) == (Run.State.PAUSED, True, {})
    assert services.resume(run)
    work()
    run.refresh_from_db()
    assert (run.state, selectors.run_progress(run).accepted) == (Run.State.DONE, 5)


def test_a_run_resumed_before_it_is_prepared_is_prepared_first(endpoint: Endpoint) -> None:
    run = run_over(4, endpoint)
    assert services.pause(run)
    assert services.resume(run)
    run.refresh_from_db()
    assert run.state == Run.State.PREPARING
    assert prepare(run).state == Run.State.WAITING


def test_a_run_that_is_cancelled_meanwhile_is_written_no_further(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_over(20, endpoint)
    write = preparation._write

    def write_and_cancel(*args: Any) -> None:
        write(*args)
        services.cancel(run)

    monkeypatch.setattr(preparation, "_write", write_and_cancel)
    prepare(run)
    assert (run.state, RunTask.objects.filter(run=run).count()) == (Run.State.CANCELLED, 6)
    assert not Job.objects.filter(kind=JobKind.ANNOTATE_CHUNK).exists()


def test_a_preparation_that_fails_for_good_fails_the_run(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_over(4, endpoint)
    Job.objects.filter(kind=JobKind.PREPARE_RUN).update(tries=4)

    def broken(*args: object) -> None:
        raise ValueError("something broke")

    monkeypatch.setattr(preparation, "_write", broken)
    with pytest.raises(ValueError, match="something broke"):
        prepare(run)
    run.refresh_from_db()
    assert (run.state, run.error) == (Run.State.FAILED, "ValueError: something broke")


def test_starting_a_run_takes_as_many_queries_however_many_tasks_there_are(
    endpoint: Endpoint, django_assert_max_num_queries: Any
) -> None:
    project = make_project(dimensions=["physical_shadow"])
    for _ in range(30):
        make_sample(project)
    wanted = Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED)
    with django_assert_max_num_queries(12, connection=connection):
        services.start_run(wanted)
