"""`python -m tests.workers.batch_worker`: a worker without a broker that looks at batches often. Tests kill it."""

from __future__ import annotations

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "annotation_server.settings")
django.setup()

from annotation_workers import __main__ as worker  # noqa: E402 - after the set-up
from annotation_workers import batches  # noqa: E402


def hurry() -> None:
    """Every tenth of a second instead of every few minutes; few lines per transaction, so that kills come between."""
    batches.FIRST_LOOK = batches.LAST_LOOK = 0.1
    batches.AGAIN_SECONDS = 0.2
    batches.CREATE_SETTLES = 1.5
    batches.LINES_PER_WRITE = 4
    batches.TASKS_PER_WRITE = 4


if __name__ == "__main__":
    hurry()
    worker.main()
