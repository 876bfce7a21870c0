"""Keeps a set of processes running: starts them, restarts what dies, and in the end leaves none of them behind.

Each child leads its own session, so that Ctrl-C in a terminal reaches only us and we choose the order of stopping.
On Linux the kernel helps twice: it tells the children when we are killed outright, and hands us grandchildren whose
parent died, so that they can be ended too. Elsewhere the process groups have to do.

Not here: which processes there are (launcher.py). Only the standard library, and one thread: fork needs that.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

STEADY_SECONDS = 30.0
"""A child that lived this long is restarted at once when it dies; one that did not waits longer each time."""
LONGEST_WAIT_SECONDS = 30.0
LOG_BYTES = 10_000_000
"""A log larger than this is set aside when its child starts: one old log per child is kept."""


def on_linux() -> bool:
    return sys.platform == "linux"


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def restart_delay(failures: int) -> float:
    return float(min(LONGEST_WAIT_SECONDS, 0.5 * 2 ** min(failures, 10)))


@dataclass(kw_only=True)
class Child:
    """One process that should be running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    stop_seconds: float = 8.0
    """How long it may take to finish what it is doing before it is killed."""
    stops_last: bool = False
    """The others still talk to it while they finish."""
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    due_at: float = field(default=0.0)
    """When to start it again, on the monotonic clock."""

    def start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        parent = os.getpid()

        def follow_parent() -> None:
            if on_linux():
                prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:  # we were killed before the kernel knew
                    os._exit(1)

        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=follow_parent,
            )
        self.started_at = time.monotonic()

    def signal_group(self, number: signal.Signals) -> None:
        """Everything in the child's group: after a kill, its own children may still hold its port."""
        if self.process is not None:
            # Nobody may be left in it; PermissionError is what macOS says of a group of zombies.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def last_words(self) -> str:
        try:
            lines = self.log.read_bytes()[-4000:].decode(errors="replace").split("\n")
        except OSError:
            return ""
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:200] if said else ""


def processes_below(ancestor: int) -> list[int]:
    """Every living or unreaped descendant, nearest first. Linux only: it reads /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it ended while we looked
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = list(children.get(ancestor, []))
    while waiting:
        found.append(waiting[0])
        waiting.extend(children.get(waiting.pop(0), []))
    return found


class Supervisor:
    """The children, and what happens to all of them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.children: list[Child] = []
        self.reap_until = 0.0
        """Looking for orphans reads all of /proc: only for a while after a death, which is when there are some."""
        if on_linux():
            prctl(PR_SET_CHILD_SUBREAPER, 1)

    def add(self, child: Child) -> None:
        self.children.append(child)
        child.start()

    def watch(self) -> None:
        """One look at every child: note who died, start again who is due."""
        for child in self.children:
            now = time.monotonic()
            if child.process is None:
                if now >= child.due_at:
                    child.start()
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.signal_group(signal.SIGKILL)
            child.process = None
            child.failures = 0 if now - child.started_at > STEADY_SECONDS else child.failures + 1
            wait = restart_delay(child.failures)
            child.due_at = now + wait
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self.say(f"{child.name} {how}; starting it again in {wait:g} s. Its last line in {child.log}:")
            self.say(f"  {child.last_words() or '(nothing)'}")
            self.reap_until = now + 5.0
        if time.monotonic() < self.reap_until:
            self.reap_orphans()

    def stop(self) -> None:
        """Ask the children to finish, kill those that do not, then whatever they left behind."""
        self.finish([child for child in self.children if not child.stops_last])
        self.finish([child for child in self.children if child.stops_last])
        if on_linux():
            self.kill_descendants()

    def finish(self, children: list[Child]) -> None:
        for child in children:
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()  # the leader alone: it knows how to stop its own children
        asked_at = time.monotonic()
        for child in children:
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.0, asked_at + child.stop_seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.say(f"{child.name} did not stop within {child.stop_seconds:g} s and is killed")
            child.signal_group(signal.SIGKILL)
            child.process.wait()
            child.process = None

    def kill_descendants(self) -> None:
        """Those that left their group: as the subreaper we are their parent now, so none can hide."""
        while below := processes_below(os.getpid()):
            for pid in below:
                with suppress(ProcessLookupError):  # it may have ended by itself
                    os.kill(pid, signal.SIGKILL)
            self.reap_orphans()
            time.sleep(0.02)

    def reap_orphans(self) -> None:
        """Grandchildren handed to us by the kernel stay zombies until somebody waits for them."""
        if not on_linux():
            return
        ours = {child.process.pid for child in self.children if child.process is not None}
        for pid in processes_below(os.getpid()):
            if pid not in ours:
                with suppress(ChildProcessError):  # a grandchild whose own parent lives
                    os.waitpid(pid, os.WNOHANG)
