"""One chunk of a run through the endpoint's Batch API: its requests in files, their answers within a day, for less.

The job does what can be done now and ends; it is due again when the endpoint is worth another look, so no worker waits.
Each step is committed before the next. A batch that might have been made, because a kill or a lost connection cut off
the answer, is looked for among the endpoint's; only one that is surely not there is asked for again.
Once all of a chunk's batches are home, its answers are judged, and what is missing goes into its next batch.
A paused run's batches come home, a cancelled or failed run's are cancelled; what was answered is kept in either case.
Not here: the requests about batches (batch_client.py), what an answer means (judging.py), the rows
(annotation_server/runs/batches.py), live calls (annotate.py).
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from typing import IO, Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from annotation_server.jobs.services import LeaseLost
from annotation_server.jobs.working import ComeBack, HeldJob
from annotation_server.runs import batch_selectors, batches, ledger, selectors
from annotation_server.runs import services as runs_services
from annotation_server.runs.batches import RemoteBatch
from annotation_server.runs.ledger import Answered, Fact, Intent, Refused, Reserve, RunStopped
from annotation_server.runs.models import Attempt, RequestBatch, Run, RunChunk
from annotation_workers.batch_client import URL, BatchClient, BatchFailure
from annotation_workers.judging import NEVER_CHARGED, Judging, Step, Waiting
from annotation_workers.model_client import (
    EndpointUnusable,
    Means,
    classify_status,
    encoded,
    error_message,
    read_reply,
    storable,
)
from annotation_workers.pictures import PictureMissing, Pictures
from annotation_workers.stopping import EndpointAway, RunEnded, check_prompt, stopping

REQUESTS_PER_BATCH = 50_000
BYTES_PER_BATCH = 200_000_000
"""What OpenAI takes in one file: "up to 50,000 requests, and can be up to 200 MB in size" (API reference, Batches)."""
BYTES_PER_LINE = 16_000_000
"""A line of results that is longer is no completion."""
LINES_PER_WRITE = 100
TASKS_PER_WRITE = 25
"""Answers kept, and tasks judged, per transaction: some ten milliseconds for which others wait."""
FIRST_LOOK = 5.0
LOOKS_SLOW_BY = 1.5
LAST_LOOK = 600.0
"""Seconds between looks at a batch: they grow to ten minutes, which is little of the day that it may take."""
CREATE_SETTLES = 120.0
"""A batch that was asked for and cannot be found after so many seconds was not made: a request takes no longer."""
DAY = timedelta(hours=24)
AGAIN_SECONDS = 30.0
"""After trouble with the endpoint while something is out there."""
QUEUE_FULL_SECONDS = 300.0
BARREN_BATCHES = 3
"""So many batches of a chunk expire in a row without one answer, and the run pauses rather than ask for ever."""
MANY_REQUESTS = 10
"""Where so many requests of one batch failed and none was answered, that one is enough."""

_REFUSALS = frozenset({400, 401, 402, 403, 404, 405, 413, 415, 422, 429})
"""Answers that leave no doubt: no batch was made."""
_ENDED_ALREADY = frozenset({400, 409})
"""Answers to cancelling a batch."""
_FINAL = frozenset({"completed", "expired", "cancelled", "failed"})
OF_RUN = frozenset({"unauthorised", "quota", "not_found"})
"""Reasons of attempts which say that no other will be answered either."""
_NEVER = frozenset({"context_length", "content_filter", "bad_request", "image_missing"})
"""Reasons of attempts after which a task is not asked again."""
_OF_LINES = {"batch_expired": "expired", "batch_cancelled": "cancelled"}
NOTHING_HELD = Reserve(Decimal(0), 0)
"""What is held for a batch is given back when the whole of it is home."""


def work_on_batches(job: HeldJob) -> None:
    """Bring a chunk as far as it goes just now. Called again, it goes on where it was."""
    chunk = RunChunk.objects.select_related("run__endpoint__annotator", "run__project").get(pk=job.object_id)
    goes = runs_services.begin(chunk.run_id)
    if not goes and not batch_selectors.batches_not_home(chunk):
        job.outcome = "The run is not going."
        return
    chunk.run.refresh_from_db(fields=["state", "going_since"])
    with stopping(job, chunk.run):
        try:
            with BatchClient(chunk.run.endpoint) as client:
                _ChunkInHand(job, chunk, client).work()
        except (RunEnded, EndpointUnusable) as error:
            if not batch_selectors.batches_not_home(chunk):
                raise
            # Whatever became of the run, what is paid for comes home. Without a key it has to wait for one.
            if isinstance(error, EndpointUnusable):
                runs_services.pause(chunk.run, reason=str(error))
                raise ComeBack(str(error), seconds=LAST_LOOK) from None
            runs_services.fail(chunk.run, str(error))
            raise ComeBack(str(error), seconds=FIRST_LOOK) from None


class _ChunkInHand:
    """The state of one chunk's work in this process."""

    def __init__(self, job: HeldJob, chunk: RunChunk, client: BatchClient) -> None:
        self._job = job
        self._chunk = chunk
        self._run = chunk.run
        self._client = client
        progress = selectors.run_progress(chunk.run)
        self._judging = Judging(chunk.run, ever_answered=progress.accepted + progress.rejected > 0)

    @cached_property
    def _pictures(self) -> Pictures:
        # A signed address would be too old by the time the endpoint comes to it.
        return Pictures(self._run.endpoint, by_address=False)

    def work(self) -> None:
        """Every batch as far as it goes; once all are home, judge, and make the next."""
        self._bring_on()
        while waiting := self._judge():
            self._write_down(waiting)
            self._bring_on()

    def _state(self) -> str:
        return Run.objects.values_list("state", flat=True).get(pk=self._run.pk)

    def _say_progress(self) -> None:
        settled = self._chunk.accepted + self._chunk.rejected + self._chunk.failed
        self._job.progress(settled, self._chunk.tasks)

    # Bringing batches home

    def _bring_on(self) -> None:
        """Take each batch as far as it goes. Raises ComeBack while one is out, RunStopped where one may not go out."""
        pauses: list[float] = []
        held_back = False
        seen: set[int] = set()
        # Asked for again after each: one that is too large becomes two.
        while batch := next((b for b in batch_selectors.batches_not_home(self._chunk) if b.pk not in seen), None):
            seen.add(batch.pk)
            pause = self._step(batch)
            if pause is not None:
                pauses.append(pause)
            held_back = held_back or (pause is None and batch.state != RequestBatch.State.HOME)
        if pauses:
            raise ComeBack(str(batch_selectors.batch_progress(self._run)), seconds=min(pauses))
        if held_back:
            raise RunStopped

    def _step(self, batch: RequestBatch) -> float | None:
        """One batch as far as it goes: in how many seconds to look again, None where it is home or held back."""
        try:
            if batch.state == RequestBatch.State.OUT:
                return self._look(batch)
            if batch.create_asked_at is not None:
                return self._find(batch)
            match self._state():
                case Run.State.RUNNING:
                    return self._send(batch)
                case Run.State.PAUSED:
                    return None
            self._withdraw(batch)
        except BatchFailure as failure:
            return self._in_trouble(batch, failure)
        return None

    def _send(self, batch: RequestBatch) -> float | None:
        check_prompt(self._run)
        if batch.state == RequestBatch.State.WRITTEN:
            self._upload(batch)
        return self._create(batch) if batch.state == RequestBatch.State.UPLOADED else None

    def _upload(self, batch: RequestBatch) -> None:
        """Write its requests into a file, as many as it takes, and send that up."""
        with tempfile.TemporaryFile(prefix="winnow-batch-") as file:
            if not self._write_file(batch, file):
                with transaction.atomic():
                    self._job.fence()
                    batches.home(self._chunk, batch, {})
                return
            file.seek(0)
            file_id = self._client.upload(f"winnow-{batch.key}.jsonl", file)
        with transaction.atomic():
            self._job.fence()
            batches.uploaded(batch, file_id)

    def _write_file(self, batch: RequestBatch, file: IO[bytes]) -> int:
        """The requests that are in it. What goes beyond the limits is moved to a batch of its own."""
        attempts = list(batch_selectors.attempts_on_their_way(batch))
        in_hand = self._as_asked({attempt.run_task_id for attempt in attempts})
        written = 0
        for place, attempt in enumerate(attempts):
            waiting = in_hand[attempt.run_task_id]
            try:
                line = self._line(waiting, attempt)
            except PictureMissing as error:
                self._keep(_unanswered(attempt, Attempt.Outcome.ERROR, "image_missing", str(error)))
                continue
            if written and (written >= REQUESTS_PER_BATCH or file.tell() + len(line) > BYTES_PER_BATCH):
                with transaction.atomic():
                    self._job.fence()
                    batches.split(batch, attempts[place:])
                break
            file.write(line)
            written += 1
        return written

    def _as_asked(self, run_tasks: set[int]) -> dict[int, Waiting]:
        """Tasks as they were when their requests were written down: a reasoning waits to be solved again, samples for
        others to vote with. What its answers mean was written then, if it was to be."""
        asked: dict[int, Waiting] = {}
        for run_task in selectors.waiting_tasks(self._chunk).filter(pk__in=run_tasks):
            waiting = asked[run_task.pk] = self._judging.waiting(run_task)
            for attempt, body in self._judging.best_first(waiting):
                self._judging.answered(waiting, attempt, read_reply(body))
        return asked

    def _line(self, waiting: Waiting, attempt: Attempt) -> bytes:
        images = self._pictures.urls(selectors.images_of(waiting.run_task.task))
        body = encoded(self._judging.request(waiting, attempt, images).body(self._run.endpoint.model))
        return b'{"custom_id": "%s", "method": "POST", "url": "%s", "body": %s}\n' % (
            str(attempt.request_id).encode(), URL.encode(), body,
        )  # fmt: skip

    def _create(self, batch: RequestBatch) -> float | None:
        """Ask the endpoint to make it. From the commit before on it counts as perhaps made."""
        if self._state() != Run.State.RUNNING:
            return self._step(batch)  # since its file began to go up
        with transaction.atomic():
            self._job.fence()
            batches.about_to_create(batch)
        if not self._job.still_mine():
            raise LeaseLost(f"job {self._job.id} was taken back or cancelled")
        try:
            told = self._client.create(batch.file_id, str(batch.key))
        except BatchFailure as failure:
            if failure.means is Means.UNREACHABLE or failure.status in _REFUSALS:
                with transaction.atomic():
                    self._job.fence()
                    batches.surely_not_created(batch, str(failure))
            raise
        return self._out(batch, told)

    def _find(self, batch: RequestBatch) -> float | None:
        """It was asked for, and what the endpoint answered is not known."""
        told = self._client.find(str(batch.key), batch.file_id, batch.written_at)
        if told is not None:
            return self._out(batch, told)
        asked_at = batch.create_asked_at or timezone.now()
        rest = (asked_at - timezone.now()).total_seconds() + CREATE_SETTLES
        if rest > 0:
            return min(rest, AGAIN_SECONDS)
        with transaction.atomic():
            self._job.fence()
            batches.surely_not_created(batch, "")
        return self._step(batch)

    def _out(self, batch: RequestBatch, told: RemoteBatch) -> float:
        with transaction.atomic():
            self._job.fence()
            batches.created(batch, told)
        return _pause(batch)

    def _look(self, batch: RequestBatch) -> float | None:
        if batch.cancel_asked_at is None and self._state() in (Run.State.CANCELLED, Run.State.FAILED):
            self._cancel(batch)
        try:
            told = self._client.retrieve(batch.batch_id)
        except BatchFailure as failure:
            # One answer may be a proxy's: only where its list does not know the batch either is it lost, perhaps
            # worked and paid for.
            if failure.status != 404 or self._client.find(str(batch.key), batch.file_id, batch.written_at) is not None:
                raise
            self._settle_rest(batch, Attempt.Outcome.UNKNOWN, "batch_lost", str(failure), Counter())
            return None
        with transaction.atomic():
            self._job.fence()
            batches.looked_at(batch, told)
        if told.status not in _FINAL:
            return _pause(batch)
        if told.status == "failed":
            return self._failed(batch, told)
        self._read(batch, told)
        return None

    def _cancel(self, batch: RequestBatch) -> None:
        try:
            self._client.cancel(batch.batch_id)
        except BatchFailure as failure:
            if failure.status not in _ENDED_ALREADY:
                raise
        with transaction.atomic():
            self._job.fence()
            batches.cancel_asked(batch)

    def _failed(self, batch: RequestBatch, told: RemoteBatch) -> float | None:
        """The endpoint looked through its file and refused the whole of it: nothing was asked, nothing charged."""
        said = f"{self._run.endpoint} refused a batch: {told.error or told.error_code or 'it says no more'}"
        if "limit" in told.error_code and self._state() in (Run.State.RUNNING, Run.State.PAUSED):
            with transaction.atomic():
                self._job.fence()
                batches.refused_for_now(batch, said)
            return QUEUE_FULL_SECONDS if self._state() == Run.State.RUNNING else None
        self._settle_rest(batch, Attempt.Outcome.ERROR, "batch_failed", said, Counter())
        runs_services.fail(self._run, said)
        raise RunEnded(said)

    def _withdraw(self, batch: RequestBatch) -> None:
        """Its run has ended before it went out."""
        self._settle_rest(batch, Attempt.Outcome.ERROR, "unsent", "the run ended before it was asked", Counter())

    def _in_trouble(self, batch: RequestBatch, failure: BatchFailure) -> float:
        """What a failed request means. While something is out, nothing but waiting helps."""
        out = batch.state == RequestBatch.State.OUT or batch.create_asked_at is not None
        if not out and failure.means is Means.UNREACHABLE:
            raise EndpointAway(str(failure))
        if not out and failure.means in (Means.RUN, Means.BAD_REQUEST, Means.TASK):
            self._withdraw(batch)
            raise RunEnded(str(failure))
        with transaction.atomic():
            self._job.fence()
            batches.in_trouble(batch, str(failure))
        if out and failure.means is Means.RUN:
            # A key that was taken back, say: somebody has to look. The batch stays out there until then.
            runs_services.pause(self._run, reason=str(failure))
            return LAST_LOOK
        return max(AGAIN_SECONDS, failure.retry_after or 0.0)

    # Reading results

    def _read(self, batch: RequestBatch, told: RemoteBatch) -> None:
        """Keep every line word for word, some at a time; those that a killed worker kept are passed over."""
        ignored: Counter[str] = Counter()
        seen: set[str] = set()
        came = 0
        for file_id in filter(None, (told.output_file_id, told.error_file_id)):
            with tempfile.TemporaryFile(prefix="winnow-results-") as file:
                self._client.download(file_id, file)
                file.seek(0)
                lines: list[tuple[str, str, dict[str, Any]]] = []
                for text in map(self._client.without_key, _lines(file)):
                    came += 1
                    named = _named(text)
                    if named is None:
                        ignored["malformed"] += 1
                    elif named[0] in seen:
                        ignored["twice"] += 1
                    else:
                        seen.add(named[0])
                        lines.append((named[0], text, named[1]))
                    if len(lines) == LINES_PER_WRITE:
                        ignored["unknown"] += self._keep_lines(batch, lines)
                        lines = []
                ignored["unknown"] += self._keep_lines(batch, lines)
        owed = told.answered + told.failed
        if (came < owed or (owed and not seen)) and timezone.now() < (told.expires_at or told.created_at + DAY):
            # A page of a proxy's, or the half of a file: what is not read now would be asked, and paid for, again.
            raise BatchFailure(Means.UNKNOWN, f"of {owed} lines of results {len(seen)} could be read")
        match told.status:
            case "expired" | "cancelled" as why:
                self._settle_rest(batch, Attempt.Outcome.ERROR, why, f"the batch was {why}", ignored)
            case _:
                # Asked or not, charged or not: nobody knows.
                missing = "the batch came home without it"
                self._settle_rest(batch, Attempt.Outcome.UNKNOWN, "no_line", missing, ignored)

    def _keep_lines(self, batch: RequestBatch, lines: list[tuple[str, str, dict[str, Any]]]) -> int:
        """How many name no request of the batch."""
        ids = [found for found in (_uuid(name) for name, _, _ in lines) if found is not None]
        attempts = {str(attempt.request_id): attempt for attempt in batch.attempts.filter(request_id__in=ids)}
        ours = [(attempts[name], text, line) for name, text, line in lines if name in attempts]
        self._keep(*[_answer(a, text, line) for a, text, line in ours if a.outcome == Attempt.Outcome.SENT])
        return len(lines) - len(ours)

    def _settle_rest(
        self, batch: RequestBatch, outcome: Attempt.Outcome, reason: str, detail: str, ignored: Counter[str]
    ) -> None:
        """What became of those of whom no line speaks; with that the batch is home."""
        left = list(batch_selectors.attempts_on_their_way(batch))
        for at in range(0, len(left), LINES_PER_WRITE):
            some = left[at : at + LINES_PER_WRITE]
            self._keep(*[_unanswered(attempt, outcome, reason, detail) for attempt in some])
        with transaction.atomic():
            self._job.fence()
            batches.home(self._chunk, batch, +ignored)

    def _keep(self, *facts: Fact) -> None:
        if not facts:
            return
        with transaction.atomic():
            self._job.fence()
            ledger.write(self._chunk, facts, ())

    # Judging, and the next batch

    def _judge(self) -> list[Waiting]:
        """What the answers mean; the tasks that are to be asked about again. All batches are home, so that all of a
        task's samples are there to vote."""
        tasks = selectors.waiting_tasks(self._chunk)
        in_hand = self._unsettled([self._judging.waiting(task) for task in tasks], self._judge_answers)
        self._stop_if_hopeless()
        in_hand = self._unsettled(in_hand, self._judge_failures)
        if self._state() != Run.State.RUNNING:
            raise RunStopped
        return in_hand

    def _unsettled(self, waiting: Sequence[Waiting], judge: Callable[[Waiting], bool]) -> list[Waiting]:
        """Those that `judge`, which writes, does not settle; some of them in one transaction."""
        left: list[Waiting] = []
        for at in range(0, len(waiting), TASKS_PER_WRITE):
            with transaction.atomic():
                self._job.fence()
                left += [one for one in waiting[at : at + TASKS_PER_WRITE] if not judge(one)]
            self._say_progress()
        return left

    def _judge_answers(self, waiting: Waiting) -> bool:
        settled = False
        for attempt, body in self._judging.best_first(waiting):
            if settled:
                ledger.write(self._chunk, (_not_needed(attempt),), ())
                continue
            step = self._judging.answered(waiting, attempt, read_reply(body))
            if (wording := step.unless_copied) and (copy := self._judging.near_copy_of(wording)):
                step = self._judging.copied(waiting, copy)
            settled = self._follow(waiting, step)
        waiting.unjudged.clear()
        return settled

    def _judge_failures(self, waiting: Waiting) -> bool:
        """A task that is not asked again: it never can be answered, or what came of it has used up its tries."""
        bad = (Attempt.Outcome.ERROR, Attempt.Outcome.UNKNOWN, Attempt.Outcome.REJECTED)
        reasons = [a.reason for a in sorted(waiting.run_task.attempts.all(), key=_number) if a.outcome in bad]
        never = next((reason for reason in reasons if reason in _NEVER), "")
        if never or self._judging.used_up(waiting):
            reason = never or waiting.objection or reasons[-1]
            return self._follow(waiting, self._judging.hopeless(waiting, reason))
        return False

    def _follow(self, waiting: Waiting, step: Step) -> bool:
        """Write what follows for a task; True when it is settled."""
        if step.facts:
            ledger.write(self._chunk, step.facts, ())
        after = self._judging.kept(waiting, step)
        if after is not step and after.facts:
            ledger.write(self._chunk, after.facts, ())
        return after.settled

    def _stop_if_hopeless(self) -> None:
        """Whether the last batch says that no other will be answered. A batch costs little, but half a million tasks
        must not use up what they may take."""
        last = batch_selectors.newest_home(self._chunk, BARREN_BATCHES)
        if not last:
            return
        failed = last[0].attempts.filter(outcome=Attempt.Outcome.ERROR).exclude(reason__in=NEVER_CHARGED).order_by("pk")
        ends = failed.filter(reason__in=OF_RUN) | (
            failed.none() if self._judging.ever_answered else failed.filter(reason="bad_request")
        )
        if (end := ends.first()) is not None:
            raise RunEnded(end.detail)
        # What failed uses up tries, and so ends by itself; what the endpoint never comes to does not.
        barren = [batch for batch in last if not batch.attempts.exclude(reason__in=NEVER_CHARGED).exists()]
        if last[0].answered == 0 and failed.count() >= MANY_REQUESTS:
            self._pause_for_good(f"none of the {last[0].requests} requests of a batch was answered")
        if len(barren) == BARREN_BATCHES:
            self._pause_for_good(f"{BARREN_BATCHES} batches in a row expired without one answer")

    def _pause_for_good(self, why: str) -> None:
        """Until somebody has looked."""
        runs_services.pause(self._run, reason=f"{self._run.endpoint}: {why}")

    def _write_down(self, waiting: Sequence[Waiting]) -> None:
        """The next batch: a request for every task, several where samples are missing."""
        check_prompt(self._run)
        intents: list[Intent] = []
        for one in waiting:
            for _ in range(self._judging.calls_at_once(one)):
                intents.append(self._judging.intent(one))
                one.calls += 1
        with transaction.atomic():
            self._job.fence()
            written = batches.write_down(self._chunk, intents)
        if written is None:
            raise ComeBack("The budget is held by batches that are out.", seconds=ledger.BATCH_ASKS_AGAIN)


def _pause(batch: RequestBatch) -> float:
    return min(FIRST_LOOK * LOOKS_SLOW_BY ** min(batch.looks, 20), LAST_LOOK)


def _number(attempt: Attempt) -> int:
    return attempt.number


def _not_needed(attempt: Attempt) -> Refused:
    detail = "its task was settled without it"
    return Refused(attempt=attempt, outcome=Attempt.Outcome.REJECTED, reason="not_needed", detail=detail)


def _unanswered(attempt: Attempt, outcome: Attempt.Outcome, reason: str, detail: str) -> Answered:
    return Answered(attempt=attempt, reserve=NOTHING_HELD, outcome=outcome, reason=reason, detail=detail)


def _lines(file: IO[bytes]) -> Iterator[str]:
    """A file's lines, as they are; one that is too long to be a completion is empty."""
    while line := file.readline(BYTES_PER_LINE):
        too_long = not line.endswith(b"\n") and len(line) == BYTES_PER_LINE
        while too_long and (more := file.readline(BYTES_PER_LINE)) and not more.endswith(b"\n"):
            pass
        if too_long or line.strip():
            yield "" if too_long else storable(line.decode("utf-8", "replace").rstrip("\r\n"))


def _named(text: str) -> tuple[str, dict[str, Any]] | None:
    """The request that a line of results is about, and what it says; None where it says neither."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = line.get("custom_id") if isinstance(line, dict) else None
    return (name, line) if isinstance(name, str) else None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _answer(attempt: Attempt, text: str, line: dict[str, Any]) -> Answered:
    """What a line says of its request. The line is kept as it came."""
    response = line.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(status, int):
        error = line.get("error")
        code = str(error.get("code") or "") if isinstance(error, dict) else ""
        said = str(error.get("message") or code) if isinstance(error, dict) else str(error)
        answered = _unanswered(attempt, Attempt.Outcome.ERROR, _OF_LINES.get(code, "request_failed"), said)
        return replace(answered, body=text)
    if status != 200:
        said = error_message(json.dumps(response.get("body")))
        _, reason = classify_status(status, f"{json.dumps(response.get('body'))}".lower())
        answered = _unanswered(attempt, Attempt.Outcome.ERROR, reason, f"answered {status}: {said}")
        return replace(answered, http_status=status, body=text)
    reading = read_reply(text)
    return Answered(
        attempt=attempt,
        reserve=NOTHING_HELD,
        outcome=Attempt.Outcome.ANSWERED,
        http_status=status,
        body=text,
        input_tokens=reading.input_tokens,
        cached_tokens=reading.cached_tokens,
        output_tokens=reading.output_tokens,
    )
