"""The workbench under load, on SQLite and on PostgreSQL: `make bench ONLY=workbench`.

Each database gets a process of its own (workbench_load.py), since Django's settings are fixed once read. PostgreSQL is
a throw-away server on a Unix socket; where none is installed, its lines are left out and standard error says so.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from benchmarks.measurement import Measurement


def measure(*, scale: bool) -> Iterator[Measurement]:
    """All lines of both databases; large is 100,000 tasks, with `scale` 512,000."""
    with tempfile.TemporaryDirectory() as home:
        yield from _measure_in(home, f"sqlite:///{quote(home)}/winnow.sqlite3", scale=scale)
    with tempfile.TemporaryDirectory() as home, _postgresql() as url:
        if url:
            yield from _measure_in(home, url, scale=scale)
        else:
            print("workbench: without PostgreSQL, none is installed (apt-get install postgresql)", file=sys.stderr)


def _measure_in(home: str, database_url: str, *, scale: bool) -> Iterator[Measurement]:
    env = {name: value for name, value in os.environ.items() if name not in ("DJANGO_SETTINGS_MODULE", "STORAGE_URL")}
    env |= {
        "WINNOW_HOME": home,
        "DATABASE_URL": database_url,
        "REDIS_URL": f"redis+socket://{home}/nobody-listens.sock",
    }
    command = [sys.executable, "-m", "benchmarks.workbench_load", *(["--scale"] if scale else [])]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        for line in load.stdout:
            yield json.loads(line)
    if load.returncode:
        raise SystemExit(f"{' '.join(command)} failed")


@contextmanager
def _postgresql() -> Iterator[str]:
    """The URL of a throw-away server, durable as in use; empty where no PostgreSQL is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if not found:
        yield ""
        return
    # PostgreSQL refuses to run as root; its package made a user for it.
    owner = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    with tempfile.TemporaryDirectory(prefix="winnow-pg-") as place:
        os.chown(place, owner.pw_uid, owner.pw_gid)

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [found[-1].with_name(program), *arguments],
                cwd=place,
                user=owner.pw_uid,
                group=owner.pw_gid,
                extra_groups=[],
                check=True,
                stdout=subprocess.DEVNULL,
            )

        run("initdb", "--pgdata=data", "--username=postgres", "--auth=trust", "--encoding=UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={place}"
        run("pg_ctl", "--pgdata=data", "--log=server.log", f"--options={options}", "--wait", "start")
        try:
            yield f"postgresql://postgres@{quote(place, safe='')}/postgres"
        finally:
            run("pg_ctl", "--pgdata=data", "--mode=fast", "stop")
