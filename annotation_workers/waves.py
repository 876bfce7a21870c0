"""The ledger's writes of one chunk, gathered from many calls at once into short waves: one transaction each.

While a wave is being written the next one gathers, so the busier the run, the fewer statements per call. One thread
holds the one database connection. Not here: what is written (annotation_server/runs/ledger.py), when (annotate.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from django.db import connections, transaction

from annotation_server.jobs.working import HeldJob
from annotation_server.runs import ledger
from annotation_server.runs.ledger import Fact, Intent, NotYet, Opened
from annotation_server.runs.models import RunChunk

MOST_PER_WAVE = 48
"""A wave keeps others waiting for the database (SQLite has one writer): some ten milliseconds, not more."""

_SECONDS_PER_WAVE = 0.01
"""A wave begins no sooner after the one before: a twentieth of the quickest model's answer."""

T = TypeVar("T")
_Said = Opened | Exception | None
_Entry = tuple[Sequence[Fact] | Intent, "asyncio.Future[Opened | None]"]


class Waves:
    """The way to the ledger for one chunk in hand: `async with Waves(job, chunk) as waves`."""

    def __init__(self, job: HeldJob, chunk: RunChunk) -> None:
        self._job = job
        self._chunk = chunk
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._gathered: list[_Entry] = []
        self.endpoint_is_easy = False
        """Whether good answers teach nothing about the endpoint's pace; set by whoever looks at it now and then."""
        self._writer: asyncio.Task[None] | None = None
        self._began_at = 0.0
        self._must_refresh = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            await self._writer  # what was gathered is written, even when the work stops
        await self.in_thread(connections.close_all)
        self._thread.shutdown()

    async def in_thread(self, read: Callable[[], T]) -> T:
        """Run something in the thread that may use the database."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, read)

    async def intend(self, intent: Intent) -> Opened:
        """The attempt, committed, or NotYet. Raises RunStopped, and BudgetReached when no further call fits."""
        opened = await self._gather(intent)
        return opened if opened is not None else NotYet(0.0)

    async def keep(self, *facts: Fact) -> None:
        """Returns once the facts, in their order, are committed together."""
        await self.put(*facts)

    def put(self, *facts: Fact) -> asyncio.Future[Opened | None]:
        """Facts that come before whatever is gathered after this call; done once they are committed."""
        return self._gather(facts)

    def _gather(self, what: Sequence[Fact] | Intent) -> asyncio.Future[Opened | None]:
        future: asyncio.Future[Opened | None] = asyncio.get_running_loop().create_future()
        self._gathered.append((what, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return future

    async def _write_all(self) -> None:
        while self._gathered:
            # Most calls end in this while, in one wave then rather than in many: every wave costs the same again.
            await asyncio.sleep(max(0.0, self._began_at + _SECONDS_PER_WAVE - time.monotonic()))
            self._began_at = time.monotonic()
            wave, self._gathered = self._gathered[:MOST_PER_WAVE], self._gathered[MOST_PER_WAVE:]
            # A caller that was cancelled will make no call: its intent is not written down.
            wave = [(what, future) for what, future in wave if not (isinstance(what, Intent) and future.cancelled())]
            if wave:
                await self._hand_out(wave)

    async def _hand_out(self, wave: Sequence[_Entry]) -> None:
        """Write, and give every caller its result, or all of them the error: each knows best what to stop."""
        written = asyncio.ensure_future(self.in_thread(partial(self._write, wave)))
        await asyncio.wait([written])
        error = written.exception()
        results = [error] * len(wave) if error else written.result()
        for (_, future), result in zip(wave, results, strict=True):
            if future.cancelled():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _write(self, entries: Sequence[_Entry]) -> Sequence[_Said]:
        facts = [fact for what, _ in entries if not isinstance(what, Intent) for fact in what]
        intents = [what for what, _ in entries if isinstance(what, Intent)]
        try:
            with transaction.atomic():
                self._job.fence()
                if self._must_refresh:
                    ledger.refresh(self._chunk)
                opened = ledger.write(self._chunk, facts, intents, pace_learns=not self.endpoint_is_easy)
        except BaseException:
            self._must_refresh = True
            raise
        self._must_refresh = False
        rest = iter([opened] * len(intents) if isinstance(opened, Exception) else opened)
        return [next(rest) if isinstance(what, Intent) else None for what, _ in entries]
