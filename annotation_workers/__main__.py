"""A worker without a broker: `python -m annotation_workers` works off the jobs in the database, then ends.

For small set-ups, tests and `annotate --here`. It claims like every worker, so it may run beside them.
Not here: the Celery worker (celery.py), which is woken instead of looking.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

import django

LOOK_SECONDS = 0.3

log = logging.getLogger("annotation_workers")


def work_off(stop: threading.Event) -> None:
    """One job after the other, until none waits or runs, waiting for those that are due later."""
    from annotation_server.jobs import selectors, services
    from annotation_workers.celery import app

    app.loader.import_default_modules()
    while not stop.is_set():
        job = selectors.next_due_job()
        if job is not None:
            try:
                app.tasks[job.kind].run(job.pk)
            except Exception:
                # As in a Celery worker: the row says what happened, the log how; the next job is not to blame.
                log.exception("%s", job)
        elif not selectors.any_live_job():
            return
        else:
            services.take_back_silent()
            stop.wait(LOOK_SECONDS)


def main() -> None:
    """Set Django up, work, and end after the job in hand on SIGTERM or Ctrl-C."""
    from annotation_workers.celery import app  # noqa: F401 - names the settings module

    django.setup()
    stop = threading.Event()

    def stop_soon(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, stop_soon)
    signal.signal(signal.SIGINT, stop_soon)
    work_off(stop)


if __name__ == "__main__":
    main()
