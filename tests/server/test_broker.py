"""Waking a worker: a broker that is down, silent or restarted never turns saved work into an error."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings

from annotation_server.jobs import broker
from annotation_server.launcher import queue_binary


class QueueServer:
    """A real queue server on a socket of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [queue_binary(), "--port", "0", "--unixsocket", str(self.path), "--save", ""]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=self.path.parent)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(os.fsencode(self.path)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("the queue server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def messages(self) -> list[dict[str, object]]:
        with redis.Redis(unix_socket_path=str(self.path)) as client:
            raw = client.lrange(settings.CELERY_TASK_DEFAULT_QUEUE, 0, -1)
            assert isinstance(raw, list)
            return [json.loads(message)["headers"] for message in raw]


@pytest.fixture
def queue(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueServer]:
    """A queue server that runs, and a producer that sends to it."""
    server = QueueServer(tmp_path_factory.mktemp("q") / "s")
    server.start()
    monkeypatch.setattr(broker, "producer", broker.make_producer(f"redis+socket://{server.path}"))
    yield server
    broker.producer.close()
    server.kill()


def test_it_works(queue: QueueServer) -> None:
    assert broker.send("annotation_workers.jobs.import_batch", 7)
    (headers,) = queue.messages()
    assert headers["task"] == "annotation_workers.jobs.import_batch"
    assert headers["argsrepr"] == "[7]"
    assert broker.broker_error() == ""


def test_a_broker_that_died_is_a_line_in_the_log(queue: QueueServer, caplog: pytest.LogCaptureFixture) -> None:
    assert broker.send("annotation_workers.jobs.import_batch", 7)  # so that a connection stands when it dies
    queue.kill()
    started = time.monotonic()
    assert not broker.send("annotation_workers.jobs.import_batch", 8)
    assert broker.broker_error()
    assert time.monotonic() - started < 5
    assert "did not take job 8" in caplog.text


def test_a_broker_that_comes_back_is_used_again(queue: QueueServer) -> None:
    assert broker.send("annotation_workers.jobs.import_batch", 7)
    queue.kill()
    queue.start()
    # The first may fail on the connection that died with the old server; the reconciler sends that job again.
    broker.send("annotation_workers.jobs.import_batch", 8)
    assert broker.send("annotation_workers.jobs.import_batch", 9)
    assert queue.messages()[0]["argsrepr"] == "[9]"


def test_a_silent_broker_costs_seconds_not_the_request(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.mktemp("q") / "s"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        monkeypatch.setattr(broker, "producer", broker.make_producer(f"redis+socket://{path}"))
        started = time.monotonic()
        assert not broker.send("annotation_workers.jobs.import_batch", 7)
        assert time.monotonic() - started < 5
