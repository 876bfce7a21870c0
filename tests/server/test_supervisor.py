"""Supervision, on children that misbehave."""

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from annotation_server.supervisor import restart_delay


def test_it_waits_longer_after_each_failure_but_not_for_ever() -> None:
    assert [restart_delay(failures) for failures in (0, 1, 2, 3, 50)] == [0.5, 1, 2, 4, 30]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that leaves its group is not ours to find")
def test_a_grandchild_that_hides_in_a_session_of_its_own_is_ended(tmp_path: Path) -> None:
    """A child starts a process that leaves the group and ignores SIGTERM, and then dies without it."""
    child = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid)"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    program = f"""
        import sys, time
        from pathlib import Path
        from annotation_server.supervisor import Child, Supervisor
        log = Path({str(tmp_path)!r}) / "child.log"
        supervisor = Supervisor(print)
        argv = [sys.executable, "-c", {child!r}, sys.executable, "-c", {deaf!r}]
        supervisor.add(Child(name="child", argv=argv, env={{}}, cwd=log.parent, log=log))
        while not log.read_text().strip():
            time.sleep(0.05)
        supervisor.stop()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=settings.BASE_DIR, timeout=30, check=True)
    assert not psutil.pid_exists(int((tmp_path / "child.log").read_text().split()[0]))


def test_a_child_that_fails_is_reported_with_its_last_line_and_started_again(tmp_path: Path) -> None:
    program = f"""
        import sys, time
        from pathlib import Path
        from annotation_server.supervisor import Child, Supervisor
        log = Path({str(tmp_path)!r}) / "child.log"
        supervisor = Supervisor(print)
        argv = [sys.executable, "-c", "raise SystemExit('no such table')"]
        supervisor.add(Child(name="child", argv=argv, env={{}}, cwd=log.parent, log=log))
        until = time.monotonic() + 10
        while log.read_text().count("no such table") < 2 and time.monotonic() < until:
            supervisor.watch()
            time.sleep(0.05)
        supervisor.stop()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=settings.BASE_DIR,
        timeout=30,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "child ended with exit code 1; starting it again in 1 s" in done.stdout
    assert "no such table" in done.stdout
    assert (tmp_path / "child.log").read_text().count("no such table") == 2
