"""How a command follows work that workers do: wait, show progress, and say so when no worker comes.

With `here`, a worker without a broker is started for as long; as a process, since the server never imports the workers.
Not here: what is followed (the commands).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings

LOOK_SECONDS = 0.3
_NOBODY_SECONDS = 15.0
NOBODY_CAME = "no worker has taken it up yet: is `make run` running? (--here works it off in this terminal)"


@contextmanager
def worker_here(wanted: bool) -> Iterator[None]:
    """A worker of our own that ends with the work, or with the block."""
    if not wanted:
        yield
        return
    worker = subprocess.Popen([sys.executable, "-m", "annotation_workers"], cwd=settings.BASE_DIR)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


def wait_until(ended: Callable[[], bool], begun: Callable[[], bool], tell: Callable[[str], None]) -> None:
    """Look until `ended`; `tell` once where not even a beginning is seen for a while."""
    started = time.monotonic()
    told = False
    while not ended():
        if not told and time.monotonic() - started > _NOBODY_SECONDS and not begun():
            tell(NOBODY_CAME)
            told = True
        time.sleep(LOOK_SECONDS)
