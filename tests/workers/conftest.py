"""What the workers' tests stand on: a fake endpoint, a queue server, workers and a scheduler, all real processes."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from django.conf import settings
from django.db import connection

from annotation_server.jobs import broker
from annotation_server.launcher import queue_binary
from annotation_server.runs import services as runs_services
from annotation_server.runs.models import Endpoint
from annotation_workers.__main__ import work_off

FAKE_ENDPOINT = Path(__file__).with_name("fake_endpoint.py")


class FakeEndpoint:
    """The fake's process, and its back door."""

    def __init__(self) -> None:
        argv = [sys.executable, str(FAKE_ENDPOINT)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.base = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def control(self, **told: Any) -> None:
        httpx2.post(f"{self.base}/control", json=told).raise_for_status()

    def seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = httpx2.get(f"{self.base}/charges").json()
        return seen

    def charges(self) -> dict[str, dict[str, int]]:
        charges: dict[str, dict[str, int]] = self.seen()["charges"]
        return charges

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def fake_process() -> Iterator[FakeEndpoint]:
    fake = FakeEndpoint()
    yield fake
    fake.stop()


@pytest.fixture
def fake(fake_process: FakeEndpoint) -> FakeEndpoint:
    """The fake endpoint, well behaved."""
    fake_process.control(reset=True)
    return fake_process


MakeEndpoint = Callable[..., Endpoint]


@pytest.fixture
def make_endpoint(fake: FakeEndpoint) -> MakeEndpoint:
    """An endpoint of ours at the fake, a dollar per thousand tokens."""

    def make(**fields: Any) -> Endpoint:
        defaults: dict[str, Any] = {
            "name": "fake", "base_url": f"{fake.base}/v1", "model": "fake", "input_price": 1000, "output_price": 1000,
            "concurrency": 4, "timeout_seconds": 5, "image_side": 32,
        }  # fmt: skip
        return runs_services.create_endpoint(**defaults | fields)

    return make


@pytest.fixture
def work() -> Callable[[], None]:
    """Works off every job in this process, as a worker without a broker would."""
    return lambda: work_off(threading.Event())


KilledAt = Callable[[str], None]


@pytest.fixture
def work_killed_at(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> KilledAt:
    """The same, until something is called: there the worker dies, and as with a kill nobody catches that."""

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    def work_until(target: str) -> None:
        with monkeypatch.context() as crash:
            crash.setattr(target, die)
            with pytest.raises(KeyboardInterrupt):
                work()
        # Tasks left behind complain when they are collected; in the middle of a later ast.parse that is a SystemError.
        gc.collect()

    return work_until


class Processes:
    """Real processes on the tests' database and home, stopped at the end of a test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.socket = home / "q"
        self.running: list[subprocess.Popen[bytes]] = []

    def queue(self) -> subprocess.Popen[bytes]:
        argv = [queue_binary(), "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--loglevel", "warning"]
        process = self._start(argv)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(os.fsencode(self.socket)) == 0:
                    return process
            time.sleep(0.02)
        raise AssertionError("the queue server did not start")

    def worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            [
                *(sys.executable, "-m", "celery", "--app", "annotation_workers.celery", "worker"),
                *("--concurrency", "2", "--loglevel", "WARNING"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            ]
        )

    def scheduler(self) -> subprocess.Popen[bytes]:
        return self._start([sys.executable, "manage.py", "run_scheduler"])

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the process and all its children, so that none gets to tidy up."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop_all(self) -> None:
        for process in self.running:
            if process.poll() is None:
                self.kill(process)

    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "annotation_server.settings",
            "WINNOW_HOME": str(settings.WINNOW_HOME),
            "DATABASE_URL": database_url(),
            "REDIS_URL": f"redis+socket://{self.socket}",
        }

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, env=self.env(), cwd=settings.BASE_DIR, start_new_session=True)
        self.running.append(process)
        return process


def database_url() -> str:
    """The database that the test itself uses, for processes it starts."""
    config = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{quote(str(config['NAME']))}"
    where = quote(str(config["HOST"]), safe="")
    port = f":{config['PORT']}" if config["PORT"] else ""
    password = f":{quote(config['PASSWORD'], safe='')}" if config["PASSWORD"] else ""
    return f"postgresql://{quote(config['USER'])}{password}@{where}{port}/{config['NAME']}"


@pytest.fixture
def processes(
    transactional_db: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Processes]:
    """A short directory holds the queue's socket: the kernel bounds its path."""
    started = Processes(tmp_path_factory.mktemp("w"))
    monkeypatch.setattr(broker, "producer", broker.make_producer(f"redis+socket://{started.socket}"))
    yield started
    started.stop_all()
    broker.producer.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool], float], None]:
    """Waits for something that other processes bring about."""

    def wait(happened: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"it did not happen within {seconds} seconds"
            time.sleep(0.05)

    return wait
