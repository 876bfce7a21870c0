"""A run whose worker is killed again and again, whose broker is emptied and whose database restarts; then the sums.

`python -m tests.workers.killing` in a home of its own, with DATABASE_URL and REDIS_URL set; `--postgresql PLACE` names
a server it may restart. Prints what it found as JSON and judges nothing. Not here: what must hold (test_kills.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")
django.setup()

import redis  # noqa: E402 - after the set-up
from django.conf import settings  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import OperationalError, connection  # noqa: E402

from annotation_server.annotations.models import Annotation, Approach  # noqa: E402
from annotation_server.launcher import queue_binary  # noqa: E402
from annotation_server.runs import selectors, services  # noqa: E402
from annotation_server.runs.models import Attempt, Run, RunTask  # noqa: E402
from annotation_server.runs.selection import Wanted  # noqa: E402
from tests.postgresql import PostgreSQL, postgresql_programs  # noqa: E402
from tests.workers.conftest import FakeEndpoint  # noqa: E402
from tests.workers.scenes import project_with_tasks  # noqa: E402

CONCURRENCY = 8
_LONGEST = 900.0
"""Seconds after which the run counts as stuck."""


class Winnow:
    """The processes of a platform: queue server, scheduler, worker, each in a process group of its own."""

    def __init__(self, queue_socket: Path) -> None:
        self._socket = queue_socket
        self._running: list[subprocess.Popen[bytes]] = []
        self._start([queue_binary(), "--port", "0", "--unixsocket", str(queue_socket), "--save", ""])
        self._start([sys.executable, "manage.py", "run_scheduler"])
        self.worker = self._new_worker()

    def kill_worker(self) -> None:
        """SIGKILL to it and its children, so that none gets to tidy up; another one starts at once."""
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()
        self.worker = self._new_worker()

    def empty_the_broker(self) -> None:
        redis.Redis(unix_socket_path=str(self._socket)).flushall()

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _new_worker(self) -> subprocess.Popen[bytes]:
        quietly = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")
        celery = (sys.executable, "-m", "celery", "--app", "annotation_workers.celery", "worker")
        return self._start([*celery, "--concurrency", "2", *quietly])

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            argv, cwd=settings.BASE_DIR, start_new_session=True, stdout=sys.stderr, stderr=sys.stderr
        )
        self._running.append(process)
        return process


def kill_and_see(tasks: int, kills: int, seed: int, database: PostgreSQL | None) -> dict[str, Any]:
    """Everything that can be counted after the run."""
    dice = random.Random(seed)
    call_command("migrate", verbosity=0)
    project, _ = project_with_tasks(tasks)
    fake = FakeEndpoint()
    winnow = Winnow(Path(settings.REDIS_URL.removeprefix("redis+socket://")))
    try:
        fake.control(delay=1.0)
        endpoint = services.create_endpoint(
            name="fake", base_url=f"{fake.base}/v1", model="fake", concurrency=CONCURRENCY, timeout_seconds=20,
            input_price=Decimal(1000), output_price=Decimal(1000), image_side=32,
        )  # fmt: skip
        run = services.start_run(Wanted(project=project, endpoint=endpoint, approach=Approach.AUTOMATED))
        began = time.monotonic()
        done = 0
        while done < kills and not _finished(run):
            time.sleep(dice.uniform(0.5, 14.0))
            winnow.kill_worker()
            done += 1
            if done == kills // 3:
                winnow.empty_the_broker()
            if done == 2 * kills // 3 and database is not None:
                connection.close()
                database.stop("immediate")
                database.start()
        while not _finished(run) and time.monotonic() - began < _LONGEST:
            time.sleep(1.0)
        return _counted(run, fake.charges()) | {"kills": done, "seconds": round(time.monotonic() - began)}
    finally:
        winnow.stop()
        fake.stop()


def _finished(run: Run) -> bool:
    try:
        run.refresh_from_db()
    except OperationalError:
        connection.close()
        return False
    return run.state not in Run.LIVE


def _counted(run: Run, charges: dict[str, dict[str, int]]) -> dict[str, Any]:
    attempts = {str(attempt.request_id): attempt for attempt in Attempt.objects.filter(run_task__run=run)}
    unknown = {name for name, attempt in attempts.items() if attempt.outcome == Attempt.Outcome.UNKNOWN}
    committed = attempts.keys() - unknown
    charged = {name: charge["input_tokens"] + charge["output_tokens"] for name, charge in charges.items()}
    progress = selectors.run_progress(run)
    annotated = Counter(Annotation.objects.filter(task__run_tasks__run=run).values_list("task", flat=True))
    return {
        "state": run.state,
        "error": run.error,
        "concurrency": CONCURRENCY,
        "tasks": dict(Counter(RunTask.objects.filter(run=run).values_list("state", flat=True))),
        "tasks_without_annotation_or_reason": RunTask.objects.filter(run=run, annotation=None, reason="").count(),
        "annotations_per_task": dict(Counter(annotated.values())),
        "calls_per_request": dict(Counter(charge["calls"] for charge in charges.values())),
        "completed_calls_per_task": dict(Counter(Counter(attempts[name].run_task_id for name in committed).values())),
        "charges_of_no_attempt": len(charges.keys() - attempts.keys()),
        "charged_of_unknown_outcome": len(unknown & charges.keys()),
        "spent_tokens": progress.input_tokens + progress.output_tokens,
        "charged_tokens_of_committed": sum(charged.get(name, 0) for name in committed),
        "spent_usd": str(progress.cost_usd),
        "reserved_usd": str(sum(chunk.reserved_usd for chunk in run.chunks.all())),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgresql", type=Path)
    asked = parser.parse_args()
    programs = postgresql_programs()
    database = PostgreSQL(asked.postgresql, programs) if asked.postgresql and programs else None
    print(json.dumps(kill_and_see(asked.tasks, asked.kills, asked.seed, database)))


if __name__ == "__main__":
    main()
