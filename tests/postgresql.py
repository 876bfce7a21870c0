"""A throw-away PostgreSQL server on a Unix socket, for tests and benchmarks that need one of their own.

Not here: the one that .ci/run starts for all database tests, which DATABASE_URL names.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True)
class PostgreSQL:
    """A running server, durable as in use."""

    place: Path
    programs: Path

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{quote(str(self.place), safe='')}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.place}"
        self.run("pg_ctl", "--pgdata=data", "--log=server.log", f"--options={options}", "--wait", "start")

    def stop(self, mode: str = "fast") -> None:
        """`mode` immediate is a crash: the next start recovers."""
        self.run("pg_ctl", "--pgdata=data", f"--mode={mode}", "--wait", "stop")

    def run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root; its package made a user for it.
        owner = _owner()
        subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.place,
            user=owner.pw_uid,
            group=owner.pw_gid,
            extra_groups=[],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def _owner() -> pwd.struct_passwd:
    return pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


def postgresql_programs() -> Path | None:
    """Where initdb and pg_ctl are; None where no PostgreSQL is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def throw_away_postgresql() -> Iterator[PostgreSQL | None]:
    """A new server, gone with the block; None where no PostgreSQL is installed."""
    programs = postgresql_programs()
    if programs is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="winnow-pg-") as place:
        owner = _owner()
        os.chown(place, owner.pw_uid, owner.pw_gid)
        server = PostgreSQL(Path(place), programs)
        server.run("initdb", "--pgdata=data", "--username=postgres", "--auth=trust", "--encoding=UTF8")
        server.start()
        try:
            yield server
        finally:
            server.stop()
