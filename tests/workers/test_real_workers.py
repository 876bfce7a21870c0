"""Real processes: a Celery worker, a queue server, the scheduler. What is sent runs, what is killed is finished."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from annotation_server.annotations.models import Annotation, Approach
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Project
from annotation_server.runs import selectors, services
from annotation_server.runs.models import Attempt, Endpoint, EndpointTest, Run, RunTask
from annotation_server.runs.selection import Wanted
from annotation_workers.celery import app
from tests.server.factories import annotate, make_member
from tests.workers.conftest import FakeEndpoint, MakeEndpoint, Processes
from tests.workers.scenes import project_with_tasks

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

Until = Callable[[Callable[[], bool], float], None]


def start(project: Project, endpoint: Endpoint) -> Run:
    return services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED))


def is_done(run: Run) -> bool:
    run.refresh_from_db()
    return run.state == Run.State.DONE


def test_every_kind_of_job_is_registered_in_the_worker() -> None:
    app.loader.import_default_modules()
    assert {kind.value for kind in JobKind} <= set(app.tasks)


def test_a_job_sent_by_the_server_runs_in_a_worker(
    processes: Processes, make_endpoint: MakeEndpoint, until: Until
) -> None:
    processes.queue()
    processes.worker()
    test = services.start_endpoint_test(make_endpoint())

    def answered() -> bool:
        test.refresh_from_db()
        return test.ok is not None

    until(answered, 30)
    assert (test.ok, test.report["in_grammar"]) == (True, True)
    until(lambda: Job.objects.get().state == Job.State.DONE, 5)


def test_a_run_is_worked_by_a_worker(
    processes: Processes, make_endpoint: MakeEndpoint, fake: FakeEndpoint, until: Until
) -> None:
    processes.queue()
    processes.worker()
    project, _ = project_with_tasks(10)
    run = start(project, make_endpoint())
    until(lambda: is_done(run), 30)
    assert Annotation.objects.count() == 10
    assert len(fake.charges()) == 10


def test_work_saved_while_the_broker_was_down_is_done_once_it_is_back(
    processes: Processes, make_endpoint: MakeEndpoint, until: Until
) -> None:
    test = services.start_endpoint_test(make_endpoint())
    assert EndpointTest.objects.get().ok is None
    assert Job.objects.get().sent_at is None
    processes.queue()
    processes.scheduler()
    processes.worker()
    until(lambda: EndpointTest.objects.get(pk=test.pk).ok is True, 40)


def test_a_killed_worker_costs_seconds_and_no_completed_call(
    processes: Processes,
    make_endpoint: MakeEndpoint,
    fake: FakeEndpoint,
    until: Until,
) -> None:
    fake.control(delay=0.3)
    processes.queue()
    processes.scheduler()
    first = processes.worker()
    project, _ = project_with_tasks(40)
    endpoint = make_endpoint(concurrency=4)
    run = start(project, endpoint)
    until(lambda: selectors.run_progress(run).accepted >= 8, 40)
    on_their_way = Attempt.objects.filter(outcome=Attempt.Outcome.SENT)
    until(on_their_way.exists, 5)
    processes.kill(first)
    processes.worker()
    until(lambda: is_done(run), 60)

    assert RunTask.objects.filter(run=run, state=RunTask.State.ACCEPTED).count() == 40
    assert Annotation.objects.count() == 40
    charges = fake.charges()
    assert all(charge["calls"] == 1 for charge in charges.values())
    attempts = {str(attempt.request_id): attempt for attempt in Attempt.objects.all()}
    assert set(charges) <= set(attempts)
    unknown = {name for name, attempt in attempts.items() if attempt.outcome == Attempt.Outcome.UNKNOWN}
    assert 1 <= len(unknown) <= 4
    assert {a.reason for name, a in attempts.items() if name in unknown} == {"interrupted"}
    committed = {name: attempt.input_tokens for name, attempt in attempts.items() if name not in unknown}
    assert committed == {name: charge["input_tokens"] for name, charge in charges.items() if name not in unknown}
    progress = selectors.run_progress(run)
    assert progress.input_tokens == sum(committed.values())
    assert len(committed) == 40


def test_a_project_is_annotated_from_the_command_line_without_a_queue(
    processes: Processes, make_endpoint: MakeEndpoint, fake: FakeEndpoint
) -> None:
    project, _ = project_with_tasks(3)
    make_endpoint()
    said = manage(processes, "annotate", project.slug, "--approach", "automated", "--endpoint", "fake", "--here")
    assert said.returncode == 0, said.stderr
    assert "3 accepted, 0 rejected, 0 failed of 3 tasks; 3 calls, 3000 + 150 tokens, $3.1500" in said.stdout


def test_the_same_through_the_batch_api(processes: Processes, make_endpoint: MakeEndpoint, fake: FakeEndpoint) -> None:
    project, _ = project_with_tasks(3)
    make_endpoint()
    said = manage(processes, "test_endpoint", "fake", "--here")
    assert "batches: yes (it lists its batches)" in said.stdout
    run = ("annotate", project.slug, "--approach", "automated", "--endpoint", "fake", "--batch")
    assert "at most $1.1" in manage(processes, *run, "--estimate").stdout
    said = manage(processes, *run, "--here")
    assert said.returncode == 0, said.stderr
    assert "3 accepted, 0 rejected, 0 failed of 3 tasks; 3 calls, 3000 + 150 tokens, $1.5750" in said.stdout
    assert "1 batch, home" in said.stdout


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("unauthorised", "answered 401: Incorrect API key"),
        ("not_found", "answered 404: there is no such model"),
        ("html", "the response is not JSON"),
    ],
)
def test_an_endpoint_that_does_not_work_is_one_clear_line(
    mode: str, line: str, processes: Processes, make_endpoint: MakeEndpoint, fake: FakeEndpoint
) -> None:
    fake.control(mode=mode)
    make_endpoint()
    said = manage(processes, "test_endpoint", "fake", "--here")
    assert said.returncode == 1
    assert line in said.stderr.strip().splitlines()[-1]
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (("annotate", "nowhere", "--approach", "automated", "--endpoint", "fake"), "no project 'nowhere'", 2),
        (("annotate", "here", "--approach", "automated", "--endpoint", "gone"), "there are: fake", 2),
        (("annotate", "here", "--approach", "automated", "--endpoint", "fake", "--budget", "lots"), "--budget", 2),
        (("annotate", "here", "--approach", "automated", "--endpoint", "fake", "--limit", "0"), "--limit", 2),
        (("annotate", "here", "--approach", "answer_driven", "--endpoint", "fake"), "nothing to explain in here", 1),
        (("annotate", "here", "--approach", "automated", "--endpoint", "fake", "--budget-calls", "0"), "at least 1", 2),
        (
            ("annotate", "here", "--approach", "automated", "--endpoint", "fake", "--json-answers"),
            "json_schema: fake is not known",
            1,
        ),
        (
            ("annotate", "here", "--approach", "automated", "--endpoint", "fake", "--batch"),
            "batches: fake is not known to have that feature",
            1,
        ),
        (("run", "pause", "77"), "there is no run 77", 2),
        (("run", "status", "77", "--budget", "lots"), "there is no run 77", 2),
        (("test_endpoint", "gone"), "no endpoint 'gone'", 2),
        (("add_endpoint", "fake", "--base-url", "http://vllm:8000/v1", "--model", "m"), "already exists", 2),
        (("add_endpoint", "new", "--base-url", "x y", "--model", "m"), "base_url: Expected http://host", 2),
        (
            ("add_endpoint", "new", "--base-url", "http://x/v1", "--model", "m", "--batch-price", "half"),
            "--batch-price is a share of the prices such as 0.5, got 'half'",
            2,
        ),
        (("add_endpoint", "a b", "--base-url", "http://x/v1", "--model", "m"), "name: ", 2),
    ],
)
def test_a_mistake_is_one_clear_line(
    arguments: tuple[str, ...], line: str, code: int, make_endpoint: MakeEndpoint
) -> None:
    project_with_tasks(1, slug="here")
    make_endpoint()
    with pytest.raises(CommandError, match=line) as refused:
        call_command(*arguments)
    assert refused.value.returncode == code
    assert "\n" not in str(refused.value)


def test_a_run_is_estimated_looked_at_paused_resumed_and_cancelled_from_the_command_line(
    make_endpoint: MakeEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    project, _ = project_with_tasks(2, slug="here")
    endpoint = make_endpoint()
    call_command(
        "annotate", "here", "--approach", "automated", "--endpoint", "fake", "--estimate", "--max-tokens", "100"
    )
    assert "2 tasks, about 510 tokens in, at most $0.7100 if nothing has to be asked again" in capsys.readouterr().out
    Project.objects.update(blind_resolve=True)
    annotate(project.tasks.earliest("pk"), make_member(project), "A")
    call_command("annotate", "here", "--approach", "answer_driven", "--endpoint", "fake", "--estimate")
    assert "  of it re-solves: 1 calls, $1.2790\n" in capsys.readouterr().out
    assert not Run.objects.exists()

    run = start(project, endpoint)
    call_command("run", "status", str(run.pk))
    assert f"run {run.pk} preparing: 0 accepted" in capsys.readouterr().out
    for verb, state in (("pause", "paused"), ("resume", "preparing"), ("cancel", "cancelled")):
        call_command("run", verb, str(run.pk), *(("--budget-calls", "7") if verb == "resume" else ()))
        assert f"run {run.pk} {state}" in capsys.readouterr().out
    run.refresh_from_db()
    assert run.budget_calls == 7
    with pytest.raises(CommandError, match=f"run {run.pk} is cancelled: it cannot resume now") as refused:
        call_command("run", "resume", str(run.pk))
    assert refused.value.returncode == 1
    with pytest.raises(CommandError, match="go with resume"):
        call_command("run", "pause", str(run.pk), "--budget", "2")
    with pytest.raises(CommandError, match="more than 0"):
        call_command("run", "resume", str(run.pk), "--budget", "-2")


def manage(processes: Processes, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env=processes.env(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
