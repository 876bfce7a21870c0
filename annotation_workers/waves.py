"""The ledger's writes of one chunk, gathered from many calls at once into short waves: one transaction each.

While a wave is being written the next one gathers, so the busier the run, the fewer statements per call. One thread
holds the one database connection. Not here: what is written (annotation_server/runs/ledger.py), when (annotate.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from django.db import connections, transaction

from annotation_server.jobs.working import HeldJob
from annotation_server.runs import ledger
from annotation_server.runs.ledger import Accepted, Answered, GivenUp, Intent, NotYet, Read, Refused
from annotation_server.runs.models import Attempt, RunChunk

MOST_PER_WAVE = 32
"""A wave keeps others waiting for the database (SQLite has one writer): some ten milliseconds, not more."""

T = TypeVar("T")
Fact = Answered | Accepted | Refused | Read | GivenUp
Opened = Attempt | NotYet
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
        """The attempt, committed, or NotYet. Raises as open_attempts does."""
        opened = await self._gather(intent)
        return opened if opened is not None else NotYet(0.0)

    async def keep(self, *facts: Fact) -> None:
        """Returns once the facts, in their order, are committed together."""
        await self._gather(facts)

    async def _gather(self, what: Sequence[Fact] | Intent) -> Opened | None:
        future: asyncio.Future[Opened | None] = asyncio.get_running_loop().create_future()
        self._gathered.append((what, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return await future

    async def _write_all(self) -> None:
        while self._gathered:
            wave, self._gathered = self._gathered[:MOST_PER_WAVE], self._gathered[MOST_PER_WAVE:]
            # Facts first, in a transaction of their own: a paused run refuses intents, and must still keep answers.
            facts = [entry for entry in wave if not isinstance(entry[0], Intent)]
            if facts:
                await self._hand_out(facts, partial(self._write_facts, facts))
            # A caller that was cancelled will make no call: its intent is not written down.
            intents = [entry for entry in wave if isinstance(entry[0], Intent) and not entry[1].cancelled()]
            if intents:
                await self._hand_out(intents, partial(self._write_intents, intents))

    async def _hand_out(self, entries: Sequence[_Entry], write: Callable[[], Sequence[Opened | None]]) -> None:
        """Write, and give every caller its result, or all of them the error: each knows best what to stop."""
        written = asyncio.ensure_future(self.in_thread(write))
        await asyncio.wait([written])
        error = written.exception()
        results = [None] * len(entries) if error else written.result()
        for (_, future), result in zip(entries, results, strict=True):
            if future.cancelled():
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def _write_facts(self, entries: Sequence[_Entry]) -> Sequence[None]:
        chunk, run = self._chunk, self._chunk.run
        facts = [fact for what, _ in entries if not isinstance(what, Intent) for fact in what]
        answered = [fact for fact in facts if isinstance(fact, Answered)]
        accepted = [fact for fact in facts if isinstance(fact, Accepted)]
        refused = [fact for fact in facts if isinstance(fact, Refused)]
        read = [fact for fact in facts if isinstance(fact, Read)]
        given_up = [fact for fact in facts if isinstance(fact, GivenUp)]
        with transaction.atomic():
            self._job.fence()
            if answered:
                ledger.record_answers(run.endpoint, chunk.pk, answered)
            if accepted:
                ledger.accept(run, run.endpoint.annotator, chunk.pk, accepted)
            if refused:
                ledger.refuse(chunk.pk, refused)
            if read:
                ledger.mark_read(read)
            if given_up:
                ledger.give_up(chunk.pk, given_up)
            all_good = all(answer.outcome == Attempt.Outcome.ANSWERED for answer in answered)
            if answered and not (all_good and self.endpoint_is_easy):
                ledger.keep_pace(run.endpoint, answered)
        return [None] * len(entries)

    def _write_intents(self, entries: Sequence[_Entry]) -> Sequence[Opened | None]:
        intents = [what for what, _ in entries if isinstance(what, Intent)]
        with transaction.atomic():
            self._job.fence()
            return ledger.open_attempts(self._chunk.run_id, self._chunk.pk, intents)
