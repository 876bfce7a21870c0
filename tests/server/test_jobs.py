"""Jobs: the row decides, the broker only wakes; a worker that falls silent loses its lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from annotation_server.jobs import broker, services, working
from annotation_server.jobs.models import Job, JobKind
from annotation_server.jobs.working import ComeBack, JobRefused, TryLater

pytestmark = pytest.mark.django_db(transaction=True)

KIND = JobKind.FREEZE_VERSION


class Broker:
    """Takes what is sent, while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[int] = []

    def send(self, kind: str, job_id: int) -> bool:
        if self.up:
            self.sent.append(job_id)
        return self.up


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Broker:
    queue = Broker()
    monkeypatch.setattr(broker, "send", queue.send)
    return queue


@pytest.fixture
def settled() -> Iterator[list[tuple[int, str]]]:
    """The jobs whose end was heard of."""
    heard: list[tuple[int, str]] = []

    def hear(sender: type[Job], job: Job, **kwargs: object) -> None:
        heard.append((job.pk, job.state))

    services.job_settled.connect(hear)
    yield heard
    services.job_settled.disconnect(hear)


def fall_silent(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))


def work_and_raise(job: Job, error: Exception) -> None:
    with working.working(job.pk):
        raise error


def make_due(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(due_at=timezone.now())


def test_it_works(queue: Broker, settled: list[tuple[int, str]]) -> None:
    job = services.enqueue(KIND, 7)
    assert queue.sent == [job.pk]
    with working.working(job.pk) as held:
        assert held is not None
        assert (held.object_id, held.still_mine()) == (7, True)
        held.progress(3, 10, "records")
        job.refresh_from_db()
        assert (job.state, job.progress_done, job.progress_total) == (Job.State.RUNNING, 3, 10)
    job.refresh_from_db()
    assert (job.state, job.lease_token, job.error) == (Job.State.DONE, None, "")
    assert settled == [(job.pk, "done")]


def test_a_worker_is_woken_only_after_the_commit(queue: Broker) -> None:
    with transaction.atomic():
        services.enqueue(KIND, 7)
        assert queue.sent == []
    assert len(queue.sent) == 1


def test_an_object_has_one_live_job(queue: Broker) -> None:
    first = services.enqueue(KIND, 7)
    assert services.enqueue(KIND, 7) == first
    assert services.enqueue(KIND, 8) != first
    assert services.enqueue(JobKind.EXPORT_VERSION, 7) != first
    claimed = services.claim(first.pk)
    assert claimed is not None
    assert services.enqueue(KIND, 7) == first
    assert claimed.lease_token is not None
    services.finish(first.pk, claimed.lease_token)
    assert services.enqueue(KIND, 7) != first


def test_a_job_is_claimed_once(queue: Broker) -> None:
    job = services.enqueue(KIND, 7)
    assert services.claim(job.pk) is not None
    assert services.claim(job.pk) is None
    with working.working(job.pk) as held:
        assert held is None


def test_of_many_workers_one_claims(queue: Broker) -> None:
    job = services.enqueue(KIND, 7)
    won: list[Job] = []

    def claim() -> None:
        if claimed := services.claim(job.pk):
            won.append(claimed)
        connection.close()

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_job_for_later_waits(queue: Broker) -> None:
    job = services.enqueue(KIND, 7, due_at=timezone.now() + timedelta(hours=1))
    assert queue.sent == []
    assert services.reconcile().sent == 0
    assert services.claim(job.pk) is None
    make_due(job)
    assert services.reconcile().sent == 1


def test_a_broker_that_is_down_loses_nothing(queue: Broker) -> None:
    queue.up = False
    with transaction.atomic():
        job = services.enqueue(KIND, 7)
    assert Job.objects.filter(pk=job.pk, state=Job.State.QUEUED).exists()
    assert services.reconcile().sent == 0
    queue.up = True
    assert services.reconcile().sent == 1
    assert queue.sent == [job.pk]


def test_a_message_that_got_lost_is_sent_again(queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    job = services.enqueue(KIND, 7)
    assert services.reconcile().sent == 0  # it may just wait its turn
    monkeypatch.setattr(services, "RESEND_AFTER", timedelta(0))
    assert services.reconcile().sent == 1
    assert queue.sent == [job.pk, job.pk]


def test_a_silent_worker_loses_its_job_and_may_no_longer_write(queue: Broker) -> None:
    job = services.enqueue(KIND, 7)
    dead = services.claim(job.pk)
    assert dead is not None
    assert dead.lease_token is not None
    fall_silent(job)
    assert services.reconcile() == services.Reconciled(sent=1, taken_back=1, given_up=0)
    assert not services.beat(job.pk, dead.lease_token)
    assert not services.progress(job.pk, dead.lease_token, done=1, total=2)
    assert not services.finish(job.pk, dead.lease_token)
    with pytest.raises(services.LeaseLost), transaction.atomic():
        services.fence(job.pk, dead.lease_token)
    assert services.claim(job.pk) is not None


def test_a_beating_worker_keeps_its_job(queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(services, "LEASE", timedelta(seconds=0.5))
    job = services.enqueue(KIND, 7)
    with working.working(job.pk) as held:
        assert held is not None
        deadline = time.monotonic() + 1.2
        while time.monotonic() < deadline:
            assert services.reconcile().taken_back == 0
            time.sleep(0.05)
        assert held.still_mine()
    job.refresh_from_db()
    assert job.state == Job.State.DONE


def test_a_lost_lease_is_noticed_and_the_new_holder_goes_on(queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "BEAT_SECONDS", 0.02)
    went_on = False
    job = services.enqueue(KIND, 7)
    with working.working(job.pk) as held:
        assert held is not None
        fall_silent(job)
        services.reconcile()
        second = services.claim(job.pk)
        assert second is not None
        deadline = time.monotonic() + 5
        while held.still_mine():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.progress(1, 2)  # raises: the block ends here, and nothing more is written
        went_on = True
    assert not went_on
    job.refresh_from_db()
    assert (job.state, job.lease_token) == (Job.State.RUNNING, second.lease_token)


def test_a_cancelled_job_is_noticed(queue: Broker, settled: list[tuple[int, str]]) -> None:
    job = services.enqueue(KIND, 7)
    with working.working(job.pk) as held:
        assert held is not None
        assert services.cancel(job)
        held.progress(1, 2)
    job.refresh_from_db()
    assert job.state == Job.State.CANCELLED
    assert not services.cancel(job)
    assert settled == [(job.pk, "cancelled")]


def test_a_refusal_fails_at_once_with_its_line(queue: Broker, settled: list[tuple[int, str]]) -> None:
    job = services.enqueue(KIND, 7)
    work_and_raise(job, JobRefused("samples.jsonl, row 3: no field 'original'"))
    job.refresh_from_db()
    assert (job.state, job.error) == (Job.State.FAILED, "samples.jsonl, row 3: no field 'original'")
    assert settled == [(job.pk, "failed")]


def test_what_fails_is_tried_again_later_until_its_tries_are_used_up(
    queue: Broker, settled: list[tuple[int, str]]
) -> None:
    job = services.enqueue(KIND, 7)
    pauses: list[float] = []
    for _ in range(job.max_tries):
        assert settled == []
        make_due(job)
        work_and_raise(job, TryLater("the endpoint is down"))
        job.refresh_from_db()
        pauses.append((job.due_at - timezone.now()).total_seconds())
    assert (job.state, job.error, job.tries) == (Job.State.FAILED, "the endpoint is down", 5)
    assert [round(pause) for pause in pauses[:4]] == [2, 4, 8, 16]
    assert settled == [(job.pk, "failed")]


def test_what_waits_for_others_comes_back_as_often_as_need_be_and_can_be_hastened(
    queue: Broker, settled: list[tuple[int, str]]
) -> None:
    job = services.enqueue(KIND, 7)
    for _ in range(job.max_tries + 2):
        work_and_raise(job, ComeBack("the batch is out", seconds=600))
        job.refresh_from_db()
        assert (job.state, job.tries, job.message, job.error) == ("queued", 0, "the batch is out", "")
        assert job.due_at > timezone.now() + timedelta(seconds=590)
        assert services.claim(job.pk) is None
        assert services.hasten(JobKind.EXPORT_VERSION, [7]) == services.hasten(KIND, [8]) == 0
        assert services.hasten(KIND, [7]) == 1
    assert services.reconcile().sent == 1
    assert settled == []


def test_an_error_nobody_expected_is_raised_on_and_tried_again(queue: Broker) -> None:
    job = services.enqueue(KIND, 7)
    with pytest.raises(ZeroDivisionError):
        work_and_raise(job, ZeroDivisionError("division by zero"))
    job.refresh_from_db()
    assert (job.state, job.error) == (Job.State.QUEUED, "ZeroDivisionError: division by zero")


def test_a_job_that_kills_its_workers_is_given_up(queue: Broker, settled: list[tuple[int, str]]) -> None:
    job = services.enqueue(KIND, 7)
    for _ in range(job.max_tries):
        assert services.claim(job.pk) is not None
        fall_silent(job)
        last = services.reconcile()
    assert last == services.Reconciled(sent=0, taken_back=0, given_up=1)
    job.refresh_from_db()
    assert job.state == Job.State.FAILED
    assert "died 5 times in a row" in job.error
    assert settled == [(job.pk, "failed")]


def test_a_job_that_gets_on_survives_any_number_of_kills(queue: Broker) -> None:
    job = services.enqueue(KIND, 7)
    for done in range(1, 12):
        claimed = services.claim(job.pk)
        assert claimed is not None
        assert claimed.lease_token is not None
        services.progress(job.pk, claimed.lease_token, done=done, total=20)
        fall_silent(job)
        assert services.reconcile().taken_back == 1


def test_the_signal_is_heard_in_the_transaction_that_ends_the_job(queue: Broker) -> None:
    """Whoever listens writes with the end or not at all."""
    job = services.enqueue(KIND, 7)
    claimed = services.claim(job.pk)
    assert claimed is not None
    assert claimed.lease_token is not None

    def object_to_it(sender: type[Job], **kwargs: object) -> None:
        raise RuntimeError("no")

    services.job_settled.connect(object_to_it)
    try:
        with pytest.raises(RuntimeError):
            services.finish(job.pk, claimed.lease_token)
    finally:
        services.job_settled.disconnect(object_to_it)
    job.refresh_from_db()
    assert job.state == Job.State.RUNNING
