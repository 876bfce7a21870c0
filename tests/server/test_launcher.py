"""The launcher, with real processes: it serves, restarts what dies, does not start twice, leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from django.conf import settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s: {what}"
        time.sleep(0.1)


class Launched:
    """A launcher on a home and a port of its own, without the demo and the local model, which have their own tests."""

    def __init__(self, home: Path, port: int, **env: str) -> None:
        self.home, self.port = home, port
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "annotation_server.launcher"],
            env={**kept, "WINNOW_HOME": str(home), "PORT": str(port), "MODEL": "none", "DEMO": "False", **env},
            cwd=settings.BASE_DIR,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.finish()
        return self.status("/readyz") == 200

    def children(self) -> dict[str, psutil.Process]:
        """Those that the launcher itself started, by what they are.

        They lead their sessions; an orphan that the kernel handed to the launcher, with the same words, does not.
        """
        words = {"queue": "valkey-server", "web": "gunicorn", "workers": "celery", "scheduler": "run_scheduler"}
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                line = " ".join(child.cmdline()) if os.getsid(child.pid) == child.pid else ""
            except (psutil.Error, ProcessLookupError):
                continue  # it ended while we looked
            found.update({name: child for name, word in words.items() if word in line})
        return found

    def everything_below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self) -> str:
        """What it said, once it has ended."""
        self.output += self.process.communicate(timeout=60)[0]
        return self.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launcher") / "home"


@pytest.fixture(scope="module")
def winnow(home: Path) -> Iterator[Launched]:
    launched = Launched(home, free_port())
    try:
        until(launched.is_ready, "Winnow is ready", seconds=60)
        yield launched
    finally:
        with launched.process:  # closes the pipe and waits
            launched.process.kill()


def test_it_serves(winnow: Launched) -> None:
    assert winnow.status("/healthz") == 200
    until(lambda: set(winnow.children()) == {"queue", "web", "workers", "scheduler"}, "four children run")


def test_only_its_owner_reads_the_home(winnow: Launched) -> None:
    assert winnow.home.stat().st_mode & 0o077 == 0


def test_a_second_start_on_the_same_home_is_one_line(winnow: Launched) -> None:
    second = Launched(winnow.home, free_port())
    said = second.finish()
    assert second.process.returncode == 1
    assert said.count("\n") == 1
    assert str(winnow.home) in said
    assert str(winnow.process.pid) in said


def test_a_port_in_use_is_one_line(winnow: Launched, tmp_path: Path) -> None:
    second = Launched(tmp_path / "other", winnow.port)
    said = second.finish()
    assert second.process.returncode == 1
    assert said.count("\n") == 1
    assert f"PORT {winnow.port}" in said


@pytest.mark.parametrize("name", ["queue", "web", "workers", "scheduler"])
def test_a_killed_child_comes_back(winnow: Launched, name: str) -> None:
    until(lambda: name in winnow.children(), f"{name} runs")
    before = winnow.children()[name]
    below = before.children(recursive=True)
    before.kill()

    def is_back() -> bool:
        now = winnow.children().get(name)
        return now is not None and now.pid != before.pid

    until(is_back, f"{name} is back")
    until(winnow.is_ready, "Winnow is ready again")
    until(lambda: not any(process.is_running() for process in below), "its own children are gone, and waited for")


# The last test of this module to use the shared launcher: it ends it.
def test_sigterm_leaves_no_process_behind(winnow: Launched) -> None:
    until(lambda: len(winnow.children()) == 4, "four children run")
    until(lambda: len(winnow.everything_below()) >= 4 + 2 + 2, "each of them, two web processes and two workers run")
    below = winnow.everything_below()
    winnow.process.send_signal(signal.SIGTERM)
    said = winnow.finish()
    assert winnow.process.returncode == 0, said
    assert f"Winnow is at http://127.0.0.1:{winnow.port}" in said
    assert [process for process in below if process.is_running()] == []


def test_a_kill_of_the_launcher_leaves_no_process_behind(tmp_path: Path) -> None:
    """Even SIGKILL, which nobody can answer, leaves nothing running: the kernel tells the children."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent died")
    launched = Launched(tmp_path / "home", free_port())
    until(launched.is_ready, "Winnow is ready", seconds=60)
    below = launched.everything_below()
    launched.process.kill()
    launched.finish()
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []


def test_a_setting_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    launched = Launched(tmp_path / "home", free_port(), WEB_PROCESSES="many")
    assert launched.finish() == "Winnow cannot start: WEB_PROCESSES='many': use a whole number from 1 to 64\n"
    assert launched.process.returncode == 1


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    launched = Launched(tmp_path / "home", free_port(), DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/none")
    said = launched.finish()
    assert launched.process.returncode == 1
    assert said.startswith("Winnow cannot start: the database could not be prepared:")
    assert "Traceback" not in said
