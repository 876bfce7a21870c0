"""`manage.py run_scheduler`: the reconciler, every two seconds, until SIGTERM or Ctrl-C.

Several may run at once: each change is a conditional update. Not here: what a pass does (jobs/services.py).
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from django.core.management.base import BaseCommand
from django.db import Error as DatabaseError
from django.db import connection

from annotation_server.jobs import services

EVERY_SECONDS = 2.0

log = logging.getLogger(__name__)


class Command(BaseCommand):
    """The reconciler's loop."""

    help = "Send jobs that are due and take back those whose worker died, every two seconds, until it is stopped."

    def handle(self, *args: object, **options: object) -> None:
        """Pass after pass; a database that is away for a while costs a line in the log, not the process."""
        stop = threading.Event()

        def stop_soon(signum: int, frame: FrameType | None) -> None:
            stop.set()

        signal.signal(signal.SIGTERM, stop_soon)
        signal.signal(signal.SIGINT, stop_soon)
        while not stop.wait(EVERY_SECONDS):
            try:
                done = services.reconcile()
            except DatabaseError as error:
                log.warning("The database is away: %s", error)
                connection.close()
                continue
            if done.sent or done.taken_back or done.given_up:
                log.info("sent %s, taken back %s, given up %s", done.sent, done.taken_back, done.given_up)
