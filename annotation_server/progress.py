"""How long work says how far it is; for commands, on stderr: one line that moves in a terminal, few lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

OnProgress = Callable[[int, int, str], None]
"""How services say how far they are: (done, total, what is being done); total is 0 while unknown."""


def quiet(done: int, total: int, message: str) -> None:
    """For whoever does not want to know."""


class Progress:
    """An OnProgress that prints, at most some times a second."""

    def __init__(self) -> None:
        self._said_at = 0.0
        self._moving = sys.stderr.isatty()
        self._pause = 0.2 if self._moving else 5.0

    def __call__(self, done: int, total: int, message: str) -> None:
        now = time.monotonic()
        if now - self._said_at < self._pause:
            return
        self._said_at = now
        line = f"{message}: {done} of {total}" if total else message
        print(f"\r{line:<70}" if self._moving else line, end="" if self._moving else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the moving line, so that what is printed next starts on its own."""
        if self._moving and self._said_at:
            print(file=sys.stderr)
