"""A run's figures in one database: how much of a bare client's speed is left, statements per task, a worker's memory.

Both sides call the same endpoint (quick_endpoint.py: 200 ms, whatever is asked) with the same bodies, 64 at once over
two processes, in turns. The run's workers are real ones without a broker. Run by runs.py with the database in the
environment.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")
django.setup()

from django.core.management import call_command  # noqa: E402 - after the set-up
from django.db import connection  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402
from django.db.models import Max, Min  # noqa: E402

from annotation_server.annotations.models import Approach  # noqa: E402
from annotation_server.jobs.models import Job  # noqa: E402
from annotation_server.jobs.selectors import next_due_job  # noqa: E402
from annotation_server.projects.models import Project  # noqa: E402
from annotation_server.runs import services  # noqa: E402
from annotation_server.runs.models import Attempt, Endpoint, Run, RunTask  # noqa: E402
from annotation_server.runs.selection import Wanted  # noqa: E402
from annotation_server.samples.models import Candidate, Image, Sample  # noqa: E402
from annotation_server.tasks.services import create_tasks  # noqa: E402
from annotation_workers import automated  # noqa: E402
from annotation_workers.celery import app  # noqa: E402
from annotation_workers.pictures import Pictures  # noqa: E402
from annotation_workers.verdicts import Question  # noqa: E402
from benchmarks.measurement import Measurement  # noqa: E402
from benchmarks.pictures import stored_pictures  # noqa: E402
from trainer.contract.dimensions import Dimension, Polarity  # noqa: E402
from trainer.contract.prompts import openai_messages  # noqa: E402

_DELAY = 0.2
_AT_ONCE, _PROCESSES = 64, 2
_SIDE = 512
_ROUNDS = 3
_SAMPLES = 500
"""Of the runs whose speed is measured: 2,000 tasks each, some ten seconds."""
_SMALL, _LARGE, _SCALE = 250, 25_000, 128_000
"""Samples of the runs whose statements are counted; each is four tasks."""
_COUNTED_CHUNKS = 5


def measure(samples: int) -> Iterator[Measurement]:
    """Speed in turns with the bare clients, then statements and memory in a small and a large run."""
    call_command("migrate", verbosity=0)
    with _endpoint_process() as url, tempfile.TemporaryDirectory() as scratch:
        yield from _throughput(url, Path(scratch) / "bodies.jsonl")
        yield from _growth(url, samples)


# Speed


def _throughput(url: str, bodies: Path) -> Iterator[Measurement]:
    pictures = _pictures()
    bodies.write_text("\n".join(json.dumps(body) for body in _bodies(pictures)))
    ours, openai, aiohttp = [], [], []
    for round_number in range(_ROUNDS):
        project = _project(_SAMPLES, pictures)
        endpoint = _endpoint(url, round_number)
        ours.append(_our_rate(project, endpoint))
        openai.append(_bare_rate("openai", url, bodies))
        aiohttp.append(_bare_rate("aiohttp", url, bodies))
    rate = statistics.median(ours)
    for peer, rates in (("AsyncOpenAI", openai), ("aiohttp", aiohttp)):
        bare = statistics.median(rates)
        yield {
            "name": "runs.throughput_ratio",
            "value": round(rate, 1),
            "unit": "tasks/s",
            "peer": round(bare, 1),
            "ratio": round(rate / bare, 3),
            "setting": f"{connection.vendor}, {4 * _SAMPLES} tasks, {_DELAY * 1000:.0f} ms, {_AT_ONCE} at once in "
            f"{_PROCESSES} processes, five images of {_SIDE} pixels; medians of {_ROUNDS}; peer: bare {peer}",
        }


def _our_rate(project: Project, endpoint: Endpoint) -> float:
    """Tasks per second from the first call to the last answer that was kept."""
    run = services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED))
    connection.close()
    workers = [subprocess.Popen([sys.executable, "-m", "annotation_workers"]) for _ in range(_PROCESSES)]
    if any(worker.wait() for worker in workers):
        raise SystemExit("a worker failed")
    run.refresh_from_db()
    if run.state != Run.State.DONE:
        raise SystemExit(f"the run is {run.state}: {run.error}")
    times = Attempt.objects.filter(run_task__run=run).aggregate(began=Min("sent_at"), ended=Max("answered_at"))
    seconds: float = (times["ended"] - times["began"]).total_seconds()
    return RunTask.objects.filter(run=run).count() / seconds


def _bare_rate(client: str, url: str, bodies: Path) -> float:
    calls = 4 * _SAMPLES // _PROCESSES
    share = str(_AT_ONCE // _PROCESSES)
    command = [sys.executable, "-m", "benchmarks.bare_calls", client, url, str(bodies), "--calls", str(calls)]

    def one(_: int) -> tuple[float, float]:
        said = subprocess.run([*command, "--at-once", share], stdout=subprocess.PIPE, check=True)
        began, ended = json.loads(said.stdout)
        return began, ended

    with ThreadPoolExecutor(_PROCESSES) as both:
        spans = list(both.map(one, range(_PROCESSES)))
    return _PROCESSES * calls / (max(ended for _, ended in spans) - min(began for began, _ in spans))


# Growth


def _growth(url: str, samples: int) -> Iterator[Measurement]:
    small, _ = _counted_chunks(url, _SMALL)
    large, memory = _counted_chunks(url, samples)
    setting = f"{connection.vendor}, {_COUNTED_CHUNKS} chunks of a run of {4 * samples:,} tasks"
    yield {
        "name": "runs.queries_per_task",
        "value": round(large, 2),
        "unit": "statements",
        "peer": round(small, 2),
        "ratio": round(small / large, 2),
        "setting": f"{setting}; peer: of a run of {4 * _SMALL:,}, same process",
    }
    yield {
        "name": "runs.worker_rss_mb",
        "value": round(memory, 1),
        "unit": "MB",
        "peer": None,
        "ratio": None,
        "setting": f"{setting}; the most a worker of its own ever took",
    }


def _counted_chunks(url: str, samples: int) -> tuple[float, float]:
    """Database statements per task while some chunks are worked, and the worker's largest size in MB."""
    project = _project(samples, _pictures())
    run = services.start_run(Wanted(project=project, endpoint=_endpoint(url, samples), approach=Approach.AUTOMATED))
    connection.close()
    command = [sys.executable, "-m", "benchmarks.runs_load", "--work-chunks", str(_COUNTED_CHUNKS)]
    worked = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    said = json.loads(worked.stdout)
    services.cancel(run)
    Job.objects.filter(state=Job.State.QUEUED).update(state=Job.State.CANCELLED)
    return said["statements"] / said["tasks"], said["megabytes"]


def work_chunks(number: int) -> dict[str, float]:
    """As a worker: some chunks, one after the other, with every statement counted."""
    statements = 0

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(sql, params, many, context)

    def listen(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(count)

    connection_created.connect(listen)
    app.loader.import_default_modules()
    preparing = next_due_job()
    if preparing is not None:
        app.tasks[preparing.kind].run(preparing.pk)  # writes the run's tasks down, once
    statements = 0
    for _ in range(number):
        job = next_due_job()
        if job is None:
            break
        app.tasks[job.kind].run(job.pk)
    tasks = RunTask.objects.exclude(state=RunTask.State.WAITING).filter(run=Run.objects.latest("pk")).count()
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"statements": statements, "tasks": tasks, "megabytes": megabytes}


# What is measured on


@contextmanager
def _endpoint_process() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.quick_endpoint", "--delay", str(_DELAY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.terminate()


def _endpoint(url: str, number: int) -> Endpoint:
    name = f"quick-{number}"
    return services.create_endpoint(
        name=name, base_url=url, model="quick", concurrency=_AT_ONCE, image_side=_SIDE,
        input_price=Decimal(1), output_price=Decimal(1),
    )  # fmt: skip


@functools.cache
def _pictures() -> list[Image]:
    """Prepared once by a run, since the four tasks of a sample share them."""
    return stored_pictures(5, _SIDE)


def _bodies(pictures: list[Image]) -> list[dict[str, Any]]:
    """What a run sends about one sample, as the library takes it."""
    images = Pictures(Endpoint(image_side=_SIDE)).urls(pictures)
    return [
        {
            "model": "quick",
            "temperature": 0.0,
            "max_tokens": 512,
            "messages": openai_messages(
                automated.build_prompt(Question(dimension=dimension, polarity=Polarity.ACCEPTABLE, candidates=4)),
                images,
            ),
        }
        for dimension in Dimension
    ]


def _project(samples: int, pictures: list[Image]) -> Project:
    name = uuid.uuid4().hex
    project = Project.objects.create(slug=name, name=name)
    made = Sample.objects.bulk_create(
        [
            Sample(project=project, external_id=f"sample-{n}", original=pictures[0], content_sha256="")
            for n in range(samples)
        ],
        batch_size=2000,
    )
    Candidate.objects.bulk_create(
        [
            Candidate(sample=sample, letter=letter, image=picture)
            for sample in made
            for letter, picture in zip("ABCD", pictures[1:], strict=True)
        ],
        batch_size=2000,
    )
    create_tasks(
        made,
        project=project,
        candidate_counts={sample.pk: 4 for sample in made},
        dimensions={sample.pk: project.dimensions for sample in made},
    )
    return project


def main() -> None:
    """Print one measurement a line; or work, for a measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--work-chunks", type=int)
    asked = parser.parse_args()
    if asked.work_chunks:
        print(json.dumps(work_chunks(asked.work_chunks)))
        return
    for measurement in measure(_SCALE if asked.scale else _LARGE):
        print(json.dumps(measurement), flush=True)


if __name__ == "__main__":
    main()
