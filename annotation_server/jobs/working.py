"""Holding a job while it is worked: claim it, keep its lease alive from a thread, end it by how the work ended.

Not here: the state changes themselves (services.py), the work (annotation_workers/jobs.py).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import Error as DatabaseError
from django.db import connection

from annotation_server.jobs import services

BEAT_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5

log = logging.getLogger(__name__)


class JobRefused(Exception):
    """The work cannot be done and no retry mends it; the message is one line for the person who asked for it."""


class TryLater(Exception):
    """The work cannot be done just now, for a reason outside of it; the message is one line."""


class ComeBack(Exception):
    """What is left of the work waits for others, who need no worker meanwhile; the message is one line."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass
class HeldJob:
    """A claimed job in a worker's hands."""

    id: int
    object_id: int
    token: uuid.UUID
    last_chance: bool
    """Whether a failure now is final: the job has no try left."""
    outcome: str | None = None
    """What the job came to, in one line; set by the work, shown when it is done."""
    _kept_until: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _said_at: float = 0.0

    def still_mine(self) -> bool:
        """Whether the work may go on writing. Costs no query: the heartbeat knows."""
        return time.monotonic() < self._kept_until

    def fence(self) -> None:
        """Inside a transaction: commit only while the job is held. Raises LeaseLost."""
        services.fence(self.id, self.token)

    def progress(self, done: int, total: int = 0, message: str = "") -> None:
        """Say how far the work is; cheap to call often. Raises LeaseLost."""
        now = time.monotonic()
        if now - self._said_at < _PROGRESS_SECONDS and done != total:
            return
        self._said_at = now
        if not services.progress(self.id, self.token, done=done, total=total, message=message):
            raise services.LeaseLost(f"job {self.id} was taken back or cancelled")

    def keep_alive(self) -> None:
        """The heartbeat's loop, in a thread of its own with a database connection of its own."""
        pause = BEAT_SECONDS
        try:
            while not self._stop.wait(pause) and self.still_mine():
                asked_at = time.monotonic()
                try:
                    kept = services.beat(self.id, self.token)
                except DatabaseError as error:
                    # The database is away for a moment: the lease runs on by the clock, a new connection tries again.
                    log.warning("job %s: heartbeat failed: %s", self.id, error)
                    connection.close()
                    pause = 1.0
                else:
                    self._kept_until = asked_at + services.LEASE.total_seconds() if kept else 0.0
                    pause = BEAT_SECONDS
        finally:
            connection.close()

    def let_go(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()


@contextmanager
def working(job_id: int) -> Iterator[HeldJob | None]:
    """Work on a job: `with working(id) as job:`, where `job` is None when somebody else has it or it has ended.

    Leaving the block finishes the job. JobRefused fails it for good; ComeBack makes it due again as often as need be,
    TryLater and any other error until its tries are used up. Only an error nobody expected is raised on, with its
    traceback.
    """
    claimed_at = time.monotonic()
    job = services.claim(job_id)
    if job is None or job.lease_token is None:
        yield None
        return
    held = HeldJob(
        id=job.pk,
        object_id=job.object_id,
        token=job.lease_token,
        last_chance=job.tries >= job.max_tries,
        _kept_until=claimed_at + services.LEASE.total_seconds(),
    )
    heart = threading.Thread(target=held.keep_alive, name=f"heartbeat-of-job-{job.pk}", daemon=True)
    heart.start()
    try:
        yield held
        _stop(held, heart)
        services.finish(held.id, held.token, message=held.outcome)
    except services.LeaseLost as error:
        log.warning("%s: another worker goes on with it", error)
    except JobRefused as error:
        _stop(held, heart)
        log.warning("%s %s: %s", job.get_kind_display(), job.object_id, error)
        services.refuse(held.id, held.token, str(error))
    except ComeBack as wait:
        _stop(held, heart)
        services.put_off(held.id, held.token, seconds=wait.seconds, message=str(wait))
    except TryLater as error:
        _stop(held, heart)
        log.warning("%s %s, try %s of %s: %s", job.get_kind_display(), job.object_id, job.tries, job.max_tries, error)
        services.fail(held.id, held.token, str(error))
    except Exception as error:
        _stop(held, heart)
        services.fail(held.id, held.token, f"{type(error).__name__}: {error}")
        raise
    finally:
        _stop(held, heart)


def _stop(held: HeldJob, heart: threading.Thread) -> None:
    held.let_go()
    heart.join()
