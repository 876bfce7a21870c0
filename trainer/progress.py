"""What a run shows and how it is stopped: one line on stderr with the time left, and a stop between two steps.

Not here: what is kept of a run (checkpoint.py).
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.optimization import Budget

_SECONDS_BETWEEN_LINES = 10.0  # where stderr is not a terminal, so that a log stays readable


class Progress:
    """A line that is rewritten on a terminal, and written now and then into a log."""

    def __init__(self, name: str, shown: bool = True) -> None:
        """`shown` False is silent: of several processes one talks."""
        self._name = name
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._last = float("-inf")

    def show(self, fraction: float, seconds_left: float, **figures: float) -> None:
        """How far the run is, how long it will still take, and a few figures."""
        now = time.monotonic()
        if not self._shown or now - self._last < (0.2 if self._terminal else _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        left = "" if seconds_left == float("inf") else f", {clock(seconds_left)} left"
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        line = f"{self._name} {fraction:4.0%}{left}  {shown}"
        print(f"\r\033[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)

    def say(self, text: str) -> None:
        """A line that stays; nothing of nothing."""
        if self._shown and text:
            print(f"\r\033[K{text}" if self._terminal else text, file=sys.stderr)


def told_pace(seconds: float, budget: Budget) -> str:
    """One line after a first step: how long it took, and what that makes of the run."""
    if budget.minutes:
        return f"a step takes {seconds:.2g} s: about {60 * budget.minutes * (1 - budget.fraction) / seconds:.0f} steps"
    return f"a step takes {seconds:.2g} s: about {clock(seconds * (budget.steps - budget.done_steps))} for the run"


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class StopBetweenSteps:
    """Inside, the first Ctrl-C or SIGTERM is only noted: a step cut in its middle would leave half-updated weights.

    The second one interrupts as usual. Handlers are put back on leaving.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopBetweenSteps:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: whoever runs us there stops us another way
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
