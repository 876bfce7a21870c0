"""How a command follows work that workers do: wait, show progress, say so when no worker comes, and report.

With `here`, a worker without a broker is started for as long; as a process, since the server never imports the workers.
Not here: what is followed (the commands).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation

from django.conf import settings
from django.core.management.base import CommandError

from annotation_server.runs import selectors
from annotation_server.runs.batch_selectors import batch_progress
from annotation_server.runs.models import Run

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


def report(run: Run, tell: Callable[[str], object]) -> None:
    """Where a run stands, in a few lines."""
    progress = selectors.run_progress(run)
    cached = f" ({progress.cached_tokens} cached)" if progress.cached_tokens else ""
    tell(
        f"run {run.pk} {run.state}: {progress.accepted} accepted, {progress.rejected} rejected, "
        f"{progress.failed} failed of {progress.tasks} tasks; {progress.calls} calls, "
        f"{progress.input_tokens}{cached} + {progress.output_tokens} tokens, ${progress.cost_usd:.4f}"
    )
    batches = batch_progress(run)
    if batches is not None and batches.batches:
        tell(f"  {batches}")
        for reason, times in batches.ignored.items():
            tell(f"  {times} lines of results ignored: {reason}")
        if batches.trouble:
            tell(f"  {batches.trouble}")
    elif run.state == Run.State.RUNNING and progress.left:
        tell(f"  {progress.tasks_per_second:.1f} tasks per second, {progress.left} left")
    if run.error:
        tell(f"  {run.error}")
    counted = selectors.refusals(run)
    checks = selectors.check_counts(run, counted)
    tell("  checks: " + ", ".join(f"{check.objection} {check.times}" for check in checks))
    for reason, times in selectors.other_refusals(counted).items():
        tell(f"  {reason}: {times}")


def usd(option: str, text: str | None) -> Decimal | None:
    """An amount that somebody typed."""
    if text is None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        raise CommandError(f"{option} is an amount in USD such as 2.50, got {text!r}", returncode=2) from None


def wait_until(ended: Callable[[], bool], begun: Callable[[], bool], tell: Callable[[str], None]) -> None:
    """Look until `ended`; `tell` once where not even a beginning is seen for a while."""
    started = time.monotonic()
    told = False
    while not ended():
        if not told and time.monotonic() - started > _NOBODY_SECONDS and not begun():
            tell(NOBODY_CAME)
            told = True
        time.sleep(LOOK_SECONDS)
