"""A run through the endpoint's Batch API: what comes home, what does not, and that nothing is asked or paid twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from django.conf import settings
from django.utils import timezone

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.jobs import services as jobs_services
from annotation_server.jobs.models import Job, JobKind
from annotation_server.jobs.selectors import next_due_job
from annotation_server.projects.models import Project
from annotation_server.runs import batch_selectors, preparation, selectors, services
from annotation_server.runs.batches import RemoteBatch
from annotation_server.runs.models import Attempt, Endpoint, RawResponse, RequestBatch, Run, RunTask
from annotation_server.runs.selection import Wanted
from annotation_server.samples.models import Candidate, Image
from annotation_workers import batches, jobs  # noqa: F401 - registers them
from annotation_workers.batch_client import BatchClient
from annotation_workers.celery import app
from tests.server.factories import annotate, make_member
from tests.workers.conftest import FakeEndpoint, MakeEndpoint, database_url
from tests.workers.scenes import project_with_tasks, stored_picture
from trainer.contract.feedback import feedback

pytestmark = pytest.mark.django_db(transaction=True)

Work = Callable[[], None]
Until = Callable[[Callable[[], bool], float], None]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every tenth of a second."""
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.1)
    monkeypatch.setattr(batches, "LAST_LOOK", 0.1)
    monkeypatch.setattr(batches, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(batches, "QUEUE_FULL_SECONDS", 0.2)
    monkeypatch.setattr(batches, "CREATE_SETTLES", 1.0)


@pytest.fixture
def endpoint(make_endpoint: MakeEndpoint) -> Endpoint:
    endpoint = make_endpoint()
    services.change_endpoint(endpoint, {"overrides": {"batches": True}})
    return endpoint


@pytest.fixture(autouse=True)
def charged_once(fake: FakeEndpoint) -> Iterator[None]:
    """After every test: no request was ever charged twice, and every charge is of an attempt."""
    yield
    charges = fake.charges()
    assert {charge["calls"] for charge in charges.values()} <= {1}
    assert set(charges) <= {str(name) for name in Attempt.objects.values_list("request_id", flat=True)}


def start(project: Project, endpoint: Endpoint, approach: Approach = Approach.AUTOMATED, **fields: object) -> Run:
    wanted = Wanted(project=project, endpoint=endpoint, approach=approach)
    return services.start_run(wanted, batched=True, **fields)  # type: ignore[arg-type]


def states(run: Run) -> dict[str, int]:
    return dict(Counter(RunTask.objects.filter(run=run).values_list("state", flat=True)))


def test_it_works(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, tasks = project_with_tasks(6)
    run = start(project, endpoint)
    work()

    run.refresh_from_db()
    assert (run.state, run.error) == (Run.State.DONE, "")
    annotations = Annotation.objects.filter(annotator=endpoint.annotator)
    assert sorted(a.task_id for a in annotations) == [task.pk for task in tasks]
    assert {(a.answer, a.rationale) for a in annotations} == {
        (frozenset("A"), "A stands on the ground; B floats above it.")
    }
    batch = RequestBatch.objects.get()
    assert (batch.state, batch.requests, batch.answered, batch.ignored) == ("home", 6, 6, {})
    assert set(fake.charges()) == {str(name) for name in Attempt.objects.values_list("request_id", flat=True)}
    progress = selectors.run_progress(run)
    assert (progress.accepted, progress.calls, progress.cost_usd) == (6, 6, Decimal("3.15"))
    chunk = run.chunks.get()
    assert (chunk.reserved_usd, chunk.on_their_way) == (Decimal(0), 0)
    body = RawResponse.objects.first()
    assert body is not None
    assert body.body.startswith('{"id": "req-')


def test_answers_are_found_by_their_names_whatever_the_lines_are_like(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    ignored = {"disorder": {}, "duplicates": {"twice": 6}, "foreign": {"malformed": 1, "unknown": 1}}
    for mode, what in ignored.items():
        fake.control(batch_mode=mode)
        project, _ = project_with_tasks(6)
        run = start(project, endpoint)
        work()
        assert states(run) == {"accepted": 6}
        batch = RequestBatch.objects.get(chunk__run=run)
        assert (batch.answered, batch.ignored) == (6, what)


def test_lines_of_several_tasks_are_not_mixed_up(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    """Every other one is refused; the results come in reverse."""
    fake.control(batch_mode="disorder", script=["good", "malformed"] * 3)
    project, _ = project_with_tasks(6)
    run = start(project, endpoint, max_attempts=1)
    work()
    rows = RunTask.objects.filter(run=run).order_by("pk").values_list("state", "reason")
    assert list(rows) == [("accepted", ""), ("rejected", "no_answer")] * 3


def test_what_expired_is_asked_again_and_uses_up_no_try(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(batch_script=["half_expired", "half_expired", "half_expired"])
    project, _ = project_with_tasks(8)
    run = start(project, endpoint, max_attempts=1)
    work()
    assert states(run) == {"accepted": 8}
    assert selectors.refusals(run) == {"expired": 7}
    batches_made = RequestBatch.objects.order_by("pk").values_list("requests", "answered", "failed")
    assert list(batches_made) == [(8, 4, 4), (4, 2, 2), (2, 1, 1), (1, 1, 0)]
    assert selectors.run_progress(run).cost_usd == Decimal("4.2")


def test_batches_that_always_expire_pause_the_run(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(batch_mode="expired")
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, run.error) == ("paused", "fake: 3 batches in a row expired without one answer")
    fake.control(batch_mode="good")
    assert services.resume(run)
    work()
    assert states(run) == {"accepted": 2}


def test_a_request_without_a_line_is_of_unknown_outcome_and_asked_again(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(batch_script=["missing"])
    project, _ = project_with_tasks(4)
    run = start(project, endpoint)
    work()
    assert states(run) == {"accepted": 4}
    unknown = Attempt.objects.filter(outcome="unknown")
    assert {attempt.reason for attempt in unknown} == {"no_line"}
    assert unknown.count() == 2


def test_errors_of_single_requests_mean_what_they_mean_to_single_calls(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    """Too long a prompt ends its task; a broken endpoint, a full one and a refusal are asked again."""
    fake.control(script=["context_length", "error", "overloaded", "refusal", "good"])
    project, _ = project_with_tasks(5)
    run = start(project, endpoint)
    work()
    assert [row.reason for row in RunTask.objects.filter(run=run, state="failed")] == ["context_length"]
    assert states(run) == {"failed": 1, "accepted": 4}
    assert selectors.refusals(run) == {"context_length": 1, "server_error": 1, "overloaded": 1, "refusal": 1}


@pytest.mark.parametrize(("mode", "said"), [("unauthorised", "answered 401"), ("bad_request", "answered 400")])
def test_what_no_retry_mends_ends_the_run(
    mode: str, said: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(mode=mode)
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, said in run.error, states(run)) == ("failed", True, {"waiting": 2})


def test_a_batch_of_which_every_request_fails_pauses_the_run(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(mode="error")
    project, _ = project_with_tasks(12)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, run.error) == ("paused", "fake: none of the 12 requests of a batch was answered")
    assert states(run) == {"waiting": 12}


def test_one_task_that_is_never_answered_is_given_up_and_does_not_stop_the_others(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(script=["error", "good", "error", "error"])
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, states(run)) == ("done", {"failed": 1, "accepted": 1})
    assert RunTask.objects.get(run=run, state="failed").reason == "server_error"


def test_a_batch_that_is_refused_ends_the_run_and_costs_nothing(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(batch_mode="failed")
    project, _ = project_with_tasks(3)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, run.error) == ("failed", "fake refused a batch: It is failed.")
    assert fake.charges() == {}
    assert run.chunks.get().reserved_usd == 0


def test_a_full_queue_is_waited_for_with_the_same_file(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(batch_script=["queue_full", "queue_full"])
    project, _ = project_with_tasks(3)
    run = start(project, endpoint)
    work()
    assert states(run) == {"accepted": 3}
    assert [batch["status"] for batch in fake.seen()["batches"]] == ["failed", "failed", "completed"]
    assert len({batch["input_file_id"] for batch in fake.seen()["batches"]}) == 1
    assert (RequestBatch.objects.count(), Attempt.objects.count()) == (1, 3)


def test_refused_completions_go_into_the_next_batch_with_a_word_about_it(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(script=["good", "malformed"])
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    work()
    assert states(run) == {"accepted": 2}
    assert [batch.requests for batch in RequestBatch.objects.order_by("pk")] == [2, 1]
    last = fake.seen()["last_request"]
    assert feedback("no_answer") in last["messages"][0]["content"][-1]["text"]
    assert last["temperature"] == 0.3


def test_a_reasoning_is_solved_again_in_the_next_batch(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, tasks = project_with_tasks(3, blind_resolve=True)
    person = make_member(project)
    for task in tasks:
        annotate(task, person, "A")
    run = start(project, endpoint, Approach.ANSWER_DRIVEN)
    work()
    assert states(run) == {"accepted": 3}
    assert [batch.requests for batch in RequestBatch.objects.order_by("pk")] == [3, 3]
    rows = Attempt.objects.order_by("run_task_id", "number").values_list("outcome", "resolves")
    assert [(outcome, resolves is not None) for outcome, resolves in rows] == [("accepted", False), ("read", True)] * 3


@pytest.mark.parametrize("can_choose", [True, False])
def test_samples_are_asked_for_in_one_batch(
    can_choose: bool, fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    services.change_endpoint(endpoint, {"overrides": {"batches": True, "choices": can_choose}})
    project, _ = project_with_tasks(2)
    run = start(project, endpoint, samples=3, temperature=0.7)
    work()
    assert states(run) == {"accepted": 2}
    assert [batch.requests for batch in RequestBatch.objects.all()] == [2 if can_choose else 6]
    assert {a.confidence for a in Annotation.objects.filter(annotator=endpoint.annotator)} == {1.0}
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"accepted"}


def test_good_samples_vote_before_bad_ones_use_up_the_task(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(script=["malformed", "malformed", "malformed", "good", "good"])
    project, _ = project_with_tasks(1)
    run = start(project, endpoint, samples=5, temperature=0.7, max_attempts=2)
    work()
    assert states(run) == {"accepted": 1}
    assert Annotation.objects.get(annotator=endpoint.annotator).confidence == 0.4
    assert selectors.refusals(run) == {"no_answer": 2, "not_needed": 1}


def test_samples_see_the_candidates_in_another_order(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, _ = project_with_tasks(1)
    run = start(project, endpoint, samples=4, permute=True)
    work()
    assert states(run) == {"accepted": 1}
    shown = list(Attempt.objects.order_by("number").values_list("shown", flat=True))
    assert (len(shown), shown[0], len(set(shown)) > 1) == (4, "", True)
    votes = Annotation.objects.get(annotator=endpoint.annotator).meta["votes"]
    assert sum(votes.values()) == 4
    assert len(votes) > 1  # always the first of them: another candidate each time


def test_too_large_a_batch_becomes_several(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BYTES_PER_BATCH", 20_000)
    project, _ = project_with_tasks(9)
    run = start(project, endpoint, budget_usd=Decimal(1000))
    work()
    assert states(run) == {"accepted": 9}
    made = RequestBatch.objects.order_by("pk")
    assert len(made) > 1
    assert sum(batch.requests for batch in made) == 9
    sizes = [size for name, size in fake.seen()["files"].items() if name in {batch.file_id for batch in made}]
    assert len(sizes) == len(made)
    assert max(sizes) <= 20_000
    assert run.chunks.get().reserved_usd == 0


def test_a_batch_takes_as_many_requests_as_the_budget_allows(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    project, _ = project_with_tasks(6)
    run = start(project, endpoint, budget_calls=4)
    work()
    run.refresh_from_db()
    assert (run.state, run.error) == ("paused", "the budget of 4 calls is reached")
    assert states(run) == {"waiting": 2, "accepted": 4}
    assert services.resume(run, budget_calls=6)
    work()
    assert states(run) == {"accepted": 6}


def test_money_is_held_for_all_requests_of_a_batch_before_it_is_made(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    """A request may cost (261 + 512) / 1000 / 2 dollars, and costs 1050 / 1000 / 2."""
    project, _ = project_with_tasks(6)
    run = start(project, endpoint, budget_usd=Decimal("1.2"))
    work()
    run.refresh_from_db()
    assert run.state == "paused"
    assert "the budget of 1.2000 USD is reached" in run.error
    assert [batch.requests for batch in RequestBatch.objects.all()] == [3]
    assert selectors.run_progress(run).cost_usd == Decimal("1.575")


def test_a_missing_image_ends_its_task_alone(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    project, tasks = project_with_tasks(3)
    gone = stored_picture(250)
    Candidate.objects.filter(sample=tasks[1].sample_id, letter="B").update(image=gone)
    Image.objects.filter(pk=gone.pk).update(withdrawn_at=timezone.now())
    run = start(project, endpoint)
    work()
    assert states(run) == {"accepted": 2, "failed": 1}
    assert RunTask.objects.get(run=run, state="failed").reason == "image_missing"
    assert run.chunks.get().reserved_usd == 0


def test_an_endpoint_without_batches_is_one_clear_line(make_endpoint: MakeEndpoint) -> None:
    project, _ = project_with_tasks(1)
    with pytest.raises(services.RunRefused, match="batches: fake is not known to have that feature"):
        start(project, make_endpoint())


def test_nobody_there_pauses_the_run(endpoint: Endpoint, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_services, "FIRST_RETRY", timedelta(seconds=0.01))
    Endpoint.objects.filter(pk=endpoint.pk).update(base_url="http://127.0.0.1:9/v1")
    endpoint.refresh_from_db()
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    work()
    run.refresh_from_db()
    assert (run.state, "cannot be reached" in run.error) == ("paused", True)
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"sent"}


def one_pass() -> None:
    """What a worker does with the jobs that are due now."""
    while (job := next_due_job()) is not None:
        app.tasks[job.kind].run(job.pk)


def until_out(run: Run) -> RequestBatch:
    """The run's batch once it is out at the endpoint."""
    deadline = time.monotonic() + 5
    while True:
        one_pass()
        batch = RequestBatch.objects.filter(chunk__run=run, state="out").first()
        if batch is not None:
            return batch
        assert time.monotonic() < deadline


def test_no_worker_is_held_while_a_batch_is_out(fake: FakeEndpoint, endpoint: Endpoint, work: Work) -> None:
    fake.control(batch_delay=1.0)
    project, _ = project_with_tasks(3)
    run = start(project, endpoint)
    until_out(run)
    job = Job.objects.get(kind=JobKind.BATCH_CHUNK)
    assert (job.state, job.tries, job.due_at > timezone.now()) == ("queued", 0, True)
    said = batch_selectors.batch_progress(run)
    assert said is not None
    assert (said.batches, said.out, said.requests, said.answered) == (1, 1, 3, 0)
    assert str(said).startswith("1 of 1 batch out, 0 of 3 requests answered, at the latest 20")
    work()
    assert states(run) == {"accepted": 3}


def test_looks_grow_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pauses = [batches._pause(RequestBatch(looks=looks)) for looks in range(40)]
    assert (pauses[0], pauses[-1]) == (5.0, 600.0)
    assert pauses == sorted(pauses)


def test_a_paused_runs_batch_comes_home_and_nothing_else_goes_out(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    fake.control(batch_delay=0.5, script=["good", "malformed"])
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    until_out(run)
    assert services.pause(run)
    work()
    assert states(run) == {"accepted": 1, "waiting": 1}
    assert RequestBatch.objects.count() == 1
    assert services.resume(run)
    work()
    assert states(run) == {"accepted": 2}


def test_a_cancelled_runs_batch_is_cancelled_and_what_came_is_kept(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_LOOK", 60.0)  # it is seen to at once all the same
    fake.control(batch_delay=60)
    project, _ = project_with_tasks(4)
    run = start(project, endpoint)
    until_out(run)
    assert services.cancel(run)
    work()
    run.refresh_from_db()
    assert (run.state, states(run)) == ("cancelled", {"accepted": 2, "waiting": 2})
    assert selectors.refusals(run) == {"cancelled": 2}
    assert selectors.run_progress(run).cost_usd == Decimal("1.05")
    assert run.chunks.get().reserved_usd == 0


def test_an_endpoint_in_trouble_while_a_batch_is_out_is_waited_for(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    """A proxy's page instead of the batch, twice, is no answer and no end."""
    fake.control(batch_delay=0.2)
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    batch = until_out(run)
    fake.control(api_script=["html", "html"])
    time.sleep(0.3)
    one_pass()
    batch.refresh_from_db()
    assert "not a batch" in batch.trouble
    work()
    assert states(run) == {"accepted": 2}
    batch.refresh_from_db()
    assert batch.trouble == ""


def test_a_page_instead_of_the_results_is_not_taken_for_missing_answers(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work
) -> None:
    """They would be asked, and paid for, again."""
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    until_out(run)
    fake.control(page_for_content=True)
    time.sleep(0.15)
    one_pass()
    assert "lines of results" in RequestBatch.objects.get().trouble
    fake.control(page_for_content=False)
    work()
    assert states(run) == {"accepted": 2}
    assert Attempt.objects.count() == 2


@pytest.mark.parametrize("moment", ["uploaded", "created", "retrieved", "content"])
def test_a_worker_killed_at_this_moment_leaves_nothing_asked_twice(
    moment: str, fake: FakeEndpoint, endpoint: Endpoint, work: Work, until: Until
) -> None:
    """The endpoint kills it when what it asked for is done, and before it learns so."""
    project, _ = project_with_tasks(10)
    run = start(project, endpoint)
    worker = start_worker()
    fake.control(kill={"pid": worker.pid, "at": moment})
    assert worker.wait(30) == -signal.SIGKILL
    Job.objects.filter(state="running").update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    work()
    assert states(run) == {"accepted": 10}
    assert len(fake.seen()["batches"]) == 1
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"accepted"}
    assert Attempt.objects.count() == RawResponse.objects.count() == 10
    assert selectors.run_progress(run).cost_usd == Decimal("5.25")
    assert run.chunks.get().reserved_usd == 0


def test_a_batch_that_was_never_asked_for_after_all_is_made_once(
    fake: FakeEndpoint, endpoint: Endpoint, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between saying that it would ask and asking."""
    project, _ = project_with_tasks(2)
    run = start(project, endpoint)
    monkeypatch.setattr(BatchClient, "create", _killed)
    with pytest.raises(RuntimeError):
        one_pass()
    monkeypatch.undo()
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.1)
    monkeypatch.setattr(batches, "CREATE_SETTLES", 0.5)
    batch = RequestBatch.objects.get()
    assert (batch.state, batch.create_asked_at is not None) == ("uploaded", True)
    work()
    assert states(run) == {"accepted": 2}
    assert len(fake.seen()["batches"]) == 1


def _killed(*args: object) -> RemoteBatch:
    raise RuntimeError("killed")


def start_worker() -> subprocess.Popen[bytes]:
    env = {**os.environ, "DATABASE_URL": database_url(), "WINNOW_HOME": str(settings.WINNOW_HOME)}
    env |= {"DJANGO_SETTINGS_MODULE": "annotation_server.settings"}
    argv = [sys.executable, "-m", "tests.workers.batch_worker"]
    return subprocess.Popen(argv, env=env, cwd=settings.BASE_DIR, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most_kills", "seed"),
    [(5, 7), *(pytest.param(20, seed, marks=[pytest.mark.soak, pytest.mark.timeout(300)]) for seed in (1, 2, 3))],
)
def test_killed_again_and_again_every_task_is_settled_once_and_nothing_is_charged_twice(
    most_kills: int, seed: int, fake: FakeEndpoint, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each beginning the endpoint is in another mood: what it answers badly or not at all goes out again."""
    monkeypatch.setattr(preparation, "CHUNK_TASKS", 12)
    dice = random.Random(seed)
    project, _ = project_with_tasks(60)
    run = start(project, endpoint, max_attempts=10)
    one_pass_of(JobKind.PREPARE_RUN)
    kills = 0
    while not is_finished(run):
        assert run.state != "paused", run.error
        settling = kills >= most_kills
        mood = "good" if settling else dice.choice(["good", "half_expired", "disorder", "duplicates"])
        bad = [] if settling else dice.choices(["good", "malformed", "error"], k=12)
        fake.control(batch_delay=0.3 if settling else 0.8, batch_mode=mood, script=bad)
        worker = start_worker()
        try:
            worker.wait(60 if settling else dice.uniform(1.2, 2.2))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            kills += 1
        Job.objects.filter(state="running").update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    print(kills, "kills,", len(fake.seen()["batches"]), "batches,", Attempt.objects.count(), "attempts")
    assert kills >= 3
    assert (run.state, states(run)) == ("done", {"accepted": 60})
    counted = Counter(Annotation.objects.filter(annotator=endpoint.annotator).values_list("task", flat=True))
    assert set(counted.values()) == {1}
    spent = {str(a.request_id): a.input_tokens + a.output_tokens for a in Attempt.objects.all()}
    charged = {name: c["input_tokens"] + c["output_tokens"] for name, c in fake.charges().items()}
    assert {name: tokens for name, tokens in spent.items() if tokens} == {n: t for n, t in charged.items() if t}
    assert not run.chunks.exclude(reserved_usd=0, on_their_way=0).exists()
    assert not Attempt.objects.filter(outcome__in=("sent", "unknown", "answered")).exists()


def one_pass_of(kind: JobKind) -> None:
    app.tasks[kind].run(Job.objects.get(kind=kind).pk)


def is_finished(run: Run) -> bool:
    run.refresh_from_db()
    return run.state not in Run.LIVE
