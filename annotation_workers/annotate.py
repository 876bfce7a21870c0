"""One chunk of a run, from its waiting tasks to settled ones: many calls at once, every one in the ledger first.

The order for each call: the attempt is committed, the request made, the response committed with its cost, and only then
read and judged. Whoever is killed anywhere in between leaves rows from which the next worker goes on. A lane does not
wait for what becomes of its answer: it is kept in the wave that also writes its next call down.
Not here: the request (model_client.py), what a response means for its task (judging.py), writing (waves.py), how fast
the endpoint may be called (annotation_server/runs/pacing.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from functools import partial

from django.db import transaction

from annotation_server.jobs.working import HeldJob
from annotation_server.runs import ledger, pacing, selectors
from annotation_server.runs import services as runs_services
from annotation_server.runs.ledger import Answered, BudgetReached, Fact, NotYet, Opened, Reserve, RunStopped
from annotation_server.runs.models import Attempt, Run, RunChunk
from annotation_workers.judging import Judging, Step, Waiting
from annotation_workers.model_client import Failure, Means, ModelClient, Reading, Reply, read_reply
from annotation_workers.pictures import PictureMissing, Pictures
from annotation_workers.stopping import EndpointAway, RunEnded, check_prompt, stopping
from annotation_workers.waves import Waves

BUSY_ROUNDS = 8
"""So often in a row the endpoint may ask for fewer calls, with no answer in between, before it counts as away."""
_LOOK_SECONDS = 1.0
"""How often a chunk in hand looks whether its run still goes, and what its share of the endpoint is."""
_NAP_SECONDS = 0.5
_LOADED_AT_ONCE = 128


def annotate_chunk(job: HeldJob) -> None:
    """Work on a chunk until its tasks are settled or the run stops. Called again, it goes on where it was."""
    chunk = RunChunk.objects.select_related("run__endpoint__annotator", "run__project").get(pk=job.object_id)
    if not runs_services.begin(chunk.run_id):
        job.outcome = "The run is not going."
        return
    with stopping(job, chunk.run):
        check_prompt(chunk.run)
        asyncio.run(_ChunkInHand(job, chunk).work())


class _ChunkInHand:
    """The state of one chunk's work in this process."""

    def __init__(self, job: HeldJob, chunk: RunChunk) -> None:
        self._job = job
        self._chunk = chunk
        self._run = chunk.run
        self._endpoint = chunk.run.endpoint
        self._pictures = Pictures(self._endpoint)
        self._judging = Judging(chunk.run)
        self._queue: deque[Waiting] = deque()
        self._loaded_to = 0
        self._all_loaded = False
        self._in_hand = 0
        """Tasks that were taken from the queue, and may come back to it."""
        self._more = asyncio.Event()
        self._stop: Exception | None = None
        self._settled = 0
        self._allowed = 1
        self._no_call_before = 0.0
        self._busy_rounds_before = 0
        self._bad_in_a_row = 0

    async def work(self) -> None:
        """All waiting tasks, as many at once as the endpoint allows. Raises what stopped the work, if something did."""
        async with Waves(self._job, self._chunk) as waves, ModelClient(self._endpoint) as client:
            self._waves, self._client = waves, client
            await waves.in_thread(self._load)
            try:
                async with asyncio.TaskGroup() as self._group:
                    looking = self._group.create_task(self._keep_looking())
                    self._group.create_task(self._load_rest())
                    places = range(min(self._endpoint.concurrency, self._chunk.tasks - self._settled))
                    lanes = [self._group.create_task(self._lane(place)) for place in places]
                    if lanes:
                        await asyncio.wait(lanes)
                    looking.cancel()
            except BaseExceptionGroup as errors:
                raise _first(errors) from None
            await waves.in_thread(self._say_progress)
        if self._stop is not None:
            raise self._stop

    def _load(self) -> None:
        with transaction.atomic():
            self._job.fence()
            ledger.recover(self._chunk)
        progress = selectors.run_progress(self._run)
        self._judging.ever_answered = progress.accepted + progress.rejected > 0
        self._settled = self._chunk.accepted + self._chunk.rejected + self._chunk.failed
        self._load_some()
        self._busy_rounds_before = pacing.pace_of(self._endpoint).busy_rounds
        self._look()

    async def _load_rest(self) -> None:
        while self._stop is None and not self._all_loaded:
            await self._waves.in_thread(self._load_some)
            self._more.set()

    def _load_some(self) -> None:
        """The next tasks: calls begin before all of a chunk's are read."""
        tasks = selectors.waiting_tasks(self._chunk).filter(pk__gt=self._loaded_to)[:_LOADED_AT_ONCE]
        waiting = [self._judging.waiting(run_task) for run_task in tasks]
        self._queue.extend(waiting)
        self._all_loaded = len(waiting) < _LOADED_AT_ONCE
        if waiting:
            self._loaded_to = waiting[-1].run_task.pk

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self._waves.in_thread(self._look)

    def _look(self) -> None:
        """Does the run still go, is the endpoint there, and how much of it is for this chunk?

        What the endpoint takes at once is for all workers together: each chunk in work gets its share.
        """
        self._say_progress()
        if not Run.objects.filter(pk=self._run.pk, state=Run.State.RUNNING).exists():
            self._stop = self._stop or RunStopped()
        pace = pacing.pace_of(self._endpoint)
        self._busy_rounds_before = min(self._busy_rounds_before, pace.busy_rounds)
        if pace.busy_rounds - self._busy_rounds_before >= BUSY_ROUNDS:
            asked = f"{self._endpoint} asked for fewer calls {BUSY_ROUNDS} times in a row and answered none"
            self._stop = self._stop or EndpointAway(asked)
        at_once = pacing.calls_at_once(pace.endpoint, pace)
        self._waves.endpoint_is_easy = pacing.is_easy(pace.endpoint, pace)
        self._allowed = selectors.share_of(self._chunk, at_once)

    def _say_progress(self) -> None:
        self._job.progress(self._settled, self._chunk.tasks)

    # Calling

    async def _lane(self, place: int) -> None:
        """Calls, one after the other, about whichever task is next."""
        while (waiting := await self._next_task(place)) is not None:
            if await self._catch_up(waiting):
                self._put_down(waiting, settled=True)
                continue
            try:
                images = await self._images(waiting)
            except PictureMissing:
                self._put_down(
                    waiting, settled=await self._follow(waiting, self._judging.hopeless(waiting, "image_missing"))
                )
                continue
            if (opened := await self._open(waiting)) is None:
                return
            attempt, reserve = opened
            request = self._judging.request(waiting, attempt, images)
            result = await self._client.complete(request, request_id=attempt.request_id)
            if isinstance(result, Failure):
                # Waited for: the next call may be one too many.
                self._put_down(waiting, settled=await self._take_failure(waiting, attempt, reserve, result))
            else:
                reading = read_reply(result.body)
                self._judging.count(reading)
                kept = self._waves.put(_answered(attempt, reserve, result, reading))
                self._group.create_task(self._conclude(waiting, attempt, reading, kept))

    async def _next_task(self, place: int) -> Waiting | None:
        """None once there is none and none can come back, or when the work stops."""
        while self._stop is None and (self._queue or self._in_hand or not self._all_loaded):
            if place >= self._allowed:
                await asyncio.sleep(_NAP_SECONDS)
            elif self._queue:
                self._in_hand += 1
                return self._queue.popleft()
            else:
                self._more.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._more.wait(), _NAP_SECONDS)
        return None

    def _put_down(self, waiting: Waiting, *, settled: bool) -> None:
        self._in_hand -= 1
        if settled:
            self._settled += 1
        else:
            self._queue.appendleft(waiting)
        if not settled or not self._in_hand:
            self._more.set()

    async def _catch_up(self, waiting: Waiting) -> bool:
        """What was paid for before this worker began; True when the task is settled by it."""
        for attempt, body in waiting.unjudged:
            if await self._judge(waiting, attempt, read_reply(body)):
                return True
        waiting.unjudged.clear()
        return await self._follow(waiting, self._judging.resumed(waiting))

    async def _images(self, waiting: Waiting) -> list[str]:
        images = selectors.images_of(waiting.run_task.task)
        ready = self._pictures.ready(images)
        return await asyncio.to_thread(self._pictures.urls, images) if ready is None else ready

    async def _open(self, waiting: Waiting) -> tuple[Attempt, Reserve] | None:
        """The next call's row and what is held for it, once budget and pace allow it; None when the work stops.

        That the run goes is looked at in the transaction that writes the row: no call begins after a pause.
        """
        while self._stop is None:
            if (rest := self._no_call_before - time.monotonic()) > 0:
                await asyncio.sleep(min(rest, _NAP_SECONDS))
                continue
            intent = self._judging.intent(waiting)
            try:
                opened = await self._waves.intend(intent)
            except (RunStopped, BudgetReached) as error:
                self._stop = error
                return None
            if not isinstance(opened, NotYet):
                waiting.calls += 1
                return opened, intent.reserve
            self._no_call_before = time.monotonic() + opened.seconds
        return None

    # What came of it

    async def _conclude(
        self, waiting: Waiting, attempt: Attempt, reading: Reading, kept: asyncio.Future[Opened | None]
    ) -> None:
        """Once a response is kept, find out what it means for its task."""
        await kept
        self._put_down(waiting, settled=await self._judge(waiting, attempt, reading))

    async def _take_failure(self, waiting: Waiting, attempt: Attempt, reserve: Reserve, failure: Failure) -> bool:
        """Keep a call that brought no response, and what that means; True when the task is settled by it."""
        self._notice(failure)
        answered = Answered(
            attempt=attempt,
            reserve=reserve,
            outcome=Attempt.Outcome.UNKNOWN if failure.means is Means.UNKNOWN else Attempt.Outcome.ERROR,
            reason=failure.reason,
            detail=failure.detail,
            http_status=failure.status,
            body=failure.body,
            latency_ms=failure.latency_ms,
            busy=failure.means is Means.BUSY,
            retry_after=failure.retry_after,
        )
        return await self._follow(waiting, self._judging.failed(waiting, failure.means, failure.reason), answered)

    async def _judge(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> bool:
        """Turn a kept response into an annotation, or refuse it; True when the task is settled by it."""
        if reading.problem:
            self._count_bad(reading.detail)
        else:
            self._bad_in_a_row = 0
        step = self._judging.answered(waiting, attempt, reading)
        if (wording := step.unless_copied) is not None:
            copy = await self._waves.in_thread(partial(self._judging.near_copy_of, wording))
            if copy is not None:
                step = self._judging.copied(waiting, copy)
        return await self._follow(waiting, step)

    async def _follow(self, waiting: Waiting, step: Step, *before: Fact) -> bool:
        """Commit what follows for a task; True when it is settled."""
        if before or step.facts:
            await self._waves.keep(*before, *step.facts)
        after = self._judging.kept(waiting, step)
        if after is not step and after.facts:
            await self._waves.keep(*after.facts)
        return after.settled

    def _notice(self, failure: Failure) -> None:
        """What a failed call means for the rest of the work."""
        match failure.means:
            case Means.UNREACHABLE:
                self._stop = self._stop or EndpointAway(failure.detail)
            case Means.RUN:
                self._stop = RunEnded(failure.detail)
            case Means.BAD_REQUEST if not self._judging.ever_answered:
                self._stop = RunEnded(failure.detail)
            case Means.BROKEN | Means.UNKNOWN:
                self._count_bad(failure.detail)

    def _count_bad(self, detail: str) -> None:
        """An endpoint that fails every call must not use up the attempts of half a million tasks."""
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self._endpoint.concurrency + 10:
            self._stop = self._stop or EndpointAway(f"{detail} ({self._bad_in_a_row} calls in a row failed)")


def _answered(attempt: Attempt, reserve: Reserve, reply: Reply, reading: Reading) -> Answered:
    return Answered(
        attempt=attempt,
        reserve=reserve,
        outcome=Attempt.Outcome.ANSWERED,
        http_status=reply.status,
        body=reply.body,
        input_tokens=reading.input_tokens,
        cached_tokens=reading.cached_tokens,
        output_tokens=reading.output_tokens,
        latency_ms=reply.latency_ms,
    )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the work: those after it are mostly the same, said to others."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
