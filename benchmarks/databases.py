"""One part of the benchmarks on SQLite and on PostgreSQL, each in a process and a home of its own.

Django's settings are fixed once read, so the part's second module (…_load.py) is run with the database in the
environment and prints its measurements. PostgreSQL is a throw-away server; where none is installed, its lines are left
out and standard error says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from urllib.parse import quote

from benchmarks.measurement import Measurement
from tests.postgresql import throw_away_postgresql


def on_both(module: str, *, scale: bool) -> Iterator[Measurement]:
    """The lines that the module prints, of both databases."""
    with tempfile.TemporaryDirectory() as home:
        yield from _measure_in(home, f"sqlite:///{quote(home)}/winnow.sqlite3", module, scale=scale)
    with tempfile.TemporaryDirectory() as home, throw_away_postgresql() as server:
        if server:
            yield from _measure_in(home, server.url, module, scale=scale)
        else:
            print(f"{module}: without PostgreSQL, none is installed (apt-get install postgresql)", file=sys.stderr)


def _measure_in(home: str, database_url: str, module: str, *, scale: bool) -> Iterator[Measurement]:
    env = {name: value for name, value in os.environ.items() if name not in ("DJANGO_SETTINGS_MODULE", "STORAGE_URL")}
    env |= {
        "WINNOW_HOME": home,
        "DATABASE_URL": database_url,
        "REDIS_URL": f"redis+socket://{home}/nobody-listens.sock",
    }
    command = [sys.executable, "-m", module, *(["--scale"] if scale else [])]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        for line in load.stdout:
            yield json.loads(line)
    if load.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
