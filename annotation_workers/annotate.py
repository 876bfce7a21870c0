"""One chunk of a run, from its waiting tasks to settled ones: many calls at once, every one in the ledger first.

The order for each call: the attempt is committed, the request made, the response committed with its cost, and only then
read and judged. Whoever is killed anywhere in between leaves rows from which the next worker goes on.
Where the project wants it, a reasoning that passes its checks is solved again by a call of its own before it is taken;
until that one is judged, the first stays answered, so that a restart knows what is paid for and what is missing.
Not here: the request (model_client.py), prompts and judging (automated.py, answer_driven.py, resolving.py), how samples
vote (confidence.py), writing (waves.py), how fast the endpoint may be called (annotation_server/runs/pacing.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

from django.db import transaction

from annotation_server.annotations.models import Approach
from annotation_server.jobs.working import HeldJob, JobRefused, TryLater
from annotation_server.runs import ledger, pacing, selectors
from annotation_server.runs import services as runs_services
from annotation_server.runs.costs import cost_of, input_tokens_of
from annotation_server.runs.ledger import (
    Accepted,
    Answered,
    BudgetReached,
    GivenUp,
    Intent,
    NotYet,
    Read,
    Refused,
    Reserve,
    RunStopped,
)
from annotation_server.runs.models import Attempt, Feature, Run, RunChunk, RunTask
from annotation_server.runs.near_copies import NearCopy, Wording, find_near_copy
from annotation_workers import answer_driven, automated, resolving
from annotation_workers.confidence import Sample, answer_probability, in_order, mapped_back, order_shown, vote
from annotation_workers.model_client import EndpointUnusable, Failure, Means, ModelClient, Reading, read_reply
from annotation_workers.pictures import PictureMissing, Pictures
from annotation_workers.verdicts import Limits, ModelApproach, Question, Rejected
from annotation_workers.waves import Fact, Waves
from trainer.contract.answers import Completion
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.feedback import Objection, with_feedback
from trainer.contract.prompts import PROMPT_VERSIONS, Prompt, openai_messages

APPROACHES: dict[str, ModelApproach] = {
    Approach.AUTOMATED: ModelApproach(automated.build_prompt, automated.judge),
    Approach.ANSWER_DRIVEN: ModelApproach(answer_driven.build_prompt, answer_driven.judge),
}
IN_JSON = ModelApproach(automated.build_prompt, automated.judge_json, automated.response_format)
"""Automated, where the run asks for answers in a JSON schema: the same question, held to the same answer."""
BUSY_ROUNDS = 8
"""So often in a row the endpoint may ask for fewer calls, with no answer in between, before it counts as away."""
_LOOK_SECONDS = 1.0
"""How often a chunk in hand looks whether its run still goes, and what its share of the endpoint is."""
_NAP_SECONDS = 0.5
NOBODYS_FAULT = frozenset({ledger.INTERRUPTED, "unreachable", "rate_limit", "overloaded"})
"""Reasons of attempts that do not use up what a task may take."""
_USED = frozenset({Attempt.Outcome.REJECTED, Attempt.Outcome.ERROR, Attempt.Outcome.UNKNOWN})


class EndpointAway(Exception):
    """The endpoint is down, or answers nobody for the moment; the message is one line."""


class RunEnded(Exception):
    """No call of this run can succeed; the message is one line."""


@dataclass
class Waiting:
    """A task in hand."""

    run_task: RunTask
    question: Question
    calls: int
    """Attempts written down, whatever came of them."""
    used: int
    """Attempts that count towards the run's most."""
    any_completion: bool
    objection: str
    """Why the last completion was refused: the next prompt has a word about it."""
    unjudged: list[tuple[Attempt, str]]
    """Answers that were paid for and not judged before the last worker ended, with their bodies; re-solves last."""
    samples: list[Sample] = field(default_factory=list)
    """Completions that were taken and wait for others to vote with."""
    to_resolve: tuple[Attempt, Completion] | None = None
    """A reasoning that passed its checks: the next call is its blind re-solve."""
    unread: int = 0
    """How often its re-solve could not be read."""

    @property
    def resolve_is_paid_for(self) -> bool:
        """Whether there is an answer of a re-solve that nobody has judged."""
        return any(attempt.resolves_id is not None for attempt, _ in self.unjudged)


def annotate_chunk(job: HeldJob) -> None:
    """Work on a chunk until its tasks are settled or the run stops. Called again, it goes on where it was."""
    chunk = RunChunk.objects.select_related("run__endpoint__annotator", "run__project").get(pk=job.object_id)
    run = chunk.run
    if not runs_services.begin(run.pk):
        job.outcome = "The run is not going."
        return
    try:
        current = PROMPT_VERSIONS[runs_services.PROMPT_OF[run.approach]]
        if run.prompt_version != current:
            raise RunEnded(
                f"the run asks with prompt {run.prompt_version}, this program with {current}: start a new one"
            )
        asyncio.run(_ChunkInHand(job, chunk).work())
    except (RunEnded, EndpointUnusable) as error:
        runs_services.fail(run, str(error))
        raise JobRefused(str(error)) from None
    except EndpointAway as error:
        if job.last_chance:
            # Not failed: what is missing is outside of the run, and it can go on once that is mended.
            runs_services.pause(run, reason=str(error))
        raise TryLater(str(error)) from None
    except BudgetReached as error:
        runs_services.pause(run, reason=str(error))
        job.outcome = str(error)
    except RunStopped:
        job.outcome = "The run was paused or ended."


class _ChunkInHand:
    """The state of one chunk's work in this process."""

    def __init__(self, job: HeldJob, chunk: RunChunk) -> None:
        self._job = job
        self._chunk = chunk
        self._run = chunk.run
        self._endpoint = chunk.run.endpoint
        self._approach = IN_JSON if chunk.run.json_answers else APPROACHES[chunk.run.approach]
        self._pictures = Pictures(self._endpoint)
        self._queue: deque[Waiting] = deque()
        self._stop: Exception | None = None
        self._settled = 0
        self._allowed = 1
        self._ever_answered = False
        self._no_call_before = 0.0
        self._busy_rounds_before = 0
        self._bad_in_a_row = 0
        self._most = Reserve(Decimal(0), 0)

    async def work(self) -> None:
        """All waiting tasks, as many at once as the endpoint allows. Raises what stopped the work, if something did."""
        async with Waves(self._job, self._chunk) as waves, ModelClient(self._endpoint) as client:
            self._waves, self._client = waves, client
            await waves.in_thread(self._load)
            looking = asyncio.create_task(self._keep_looking())
            lanes = min(self._endpoint.concurrency, len(self._queue))
            await _together([self._lane(place) for place in range(lanes)], beside=looking)
        if self._stop is not None:
            raise self._stop

    def _load(self) -> None:
        with transaction.atomic():
            self._job.fence()
            ledger.recover(self._chunk.pk)
        progress = selectors.run_progress(self._run)
        self._ever_answered = progress.accepted + progress.rejected > 0
        self._queue.extend(self._waiting(run_task) for run_task in selectors.waiting_tasks(self._chunk))
        self._settled = self._chunk.tasks - len(self._queue)
        self._busy_rounds_before = pacing.pace_of(self._endpoint).busy_rounds
        self._look()

    def _look(self) -> None:
        """Does the run still go, is the endpoint there, and how much of it is for this chunk?

        What the endpoint takes at once is for all workers together: each chunk in work gets its share.
        """
        if not Run.objects.filter(pk=self._run.pk, state=Run.State.RUNNING).exists():
            self._stop = self._stop or RunStopped()
        pace = pacing.pace_of(self._endpoint)
        self._busy_rounds_before = min(self._busy_rounds_before, pace.busy_rounds)
        if pace.busy_rounds - self._busy_rounds_before >= BUSY_ROUNDS:
            asked = f"{self._endpoint} asked for fewer calls {BUSY_ROUNDS} times in a row and answered none"
            self._stop = self._stop or EndpointAway(asked)
        at_once = pacing.calls_at_once(pace.endpoint, pace)
        self._waves.endpoint_is_easy = pacing.is_easy(pace.endpoint, pace)
        self._allowed = max(1, at_once // max(1, selectors.chunks_in_work(self._run)))

    def _waiting(self, run_task: RunTask) -> Waiting:
        attempts = list(run_task.attempts.all())
        answered = [attempt for attempt in attempts if attempt.outcome == Attempt.Outcome.ANSWERED]
        refused = [a for a in attempts if a.outcome == Attempt.Outcome.REJECTED and a.resolves_id is None]
        return Waiting(
            run_task=run_task,
            question=Question(
                dimension=Dimension(run_task.task.dimension),
                polarity=Polarity(self._run.project.polarity),
                candidates=run_task.task.candidate_count,
                given_answer=run_task.given_answer,
                limits=Limits(self._run.project.rationale_min_words, self._run.project.rationale_max_words),
            ),
            calls=len(attempts),
            used=sum(attempt.outcome in _USED and attempt.reason not in NOBODYS_FAULT for attempt in attempts),
            any_completion=bool(refused),
            objection=max(refused, key=lambda attempt: attempt.number).reason if refused else "",
            unjudged=[
                (attempt, attempt.response.body)
                for attempt in sorted(answered, key=lambda attempt: (attempt.resolves_id is not None, attempt.number))
            ],
        )

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self._waves.in_thread(self._look)

    async def _lane(self, place: int) -> None:
        while self._queue and self._stop is None:
            if place < self._allowed:
                await self._annotate(self._queue.popleft())
            else:
                await asyncio.sleep(_NAP_SECONDS)

    async def _annotate(self, waiting: Waiting) -> None:
        """One task to its end, or until the run stops."""
        for attempt, body in waiting.unjudged:
            if await self._judge(waiting, attempt, read_reply(body)):
                return
        if waiting.objection and self._used_up(waiting):  # the last worker ended between refusing and giving up
            await self._keep(waiting, *self._unresolved(waiting), give_up=waiting.objection)
            return
        try:
            images = await asyncio.to_thread(self._images, waiting)
        except PictureMissing:
            await self._keep(waiting, *self._unresolved(waiting), give_up="image_missing")
            return
        while (opened := await self._next_attempt(waiting)) is not None:
            if await self._call(waiting, *opened, openai_messages(self._prompt(waiting), images)):
                return

    def _images(self, waiting: Waiting) -> list[str]:
        return [self._pictures.url(image) for image in selectors.images_of(waiting.run_task.task)]

    def _prompt(self, waiting: Waiting) -> Prompt:
        """What the next call asks."""
        if waiting.to_resolve is not None:
            return resolving.build_prompt(waiting.question, waiting.to_resolve[1].rationale)
        return with_feedback(self._approach.build_prompt(waiting.question), waiting.objection)

    def _temperature(self, waiting: Waiting) -> float:
        """A refused completion would come again word for word at temperature 0; a re-solve is to be sober."""
        if waiting.to_resolve is not None:
            return 0.3 * min(3, waiting.unread)
        return min(1.0, self._run.temperature + 0.3 * waiting.used)

    def _reserve(self, waiting: Waiting) -> Reserve:
        """What is held for a call: the estimate, or what the greediest call so far really took."""
        input_tokens = input_tokens_of(self._endpoint, selectors.images_of(waiting.run_task.task))
        if waiting.to_resolve is not None:
            input_tokens += self._run.max_tokens  # a whole completion goes in again
        output_tokens = self._run.max_tokens * self._choices(waiting)
        return Reserve(
            usd=max(cost_of(self._endpoint, input_tokens, output_tokens), self._most.usd),
            tokens=max(input_tokens + output_tokens, self._most.tokens),
        )

    async def _next_attempt(self, waiting: Waiting) -> tuple[Attempt, Reserve] | None:
        """The next call's row and what is held for it, once budget and pace allow it; None when the work stops.

        That the run goes is looked at in the transaction that writes the row: no call begins after a pause.
        """
        while self._stop is None:
            if (rest := self._no_call_before - time.monotonic()) > 0:
                await asyncio.sleep(min(rest, _NAP_SECONDS))
                continue
            try:
                reserve = self._reserve(waiting)
                number = waiting.calls + 1
                intent = Intent(
                    waiting.run_task.pk,
                    number,
                    reserve,
                    shown=self._order(waiting, number),
                    resolves=waiting.to_resolve[0] if waiting.to_resolve is not None else None,
                )
                opened = await self._waves.intend(intent)
            except (RunStopped, BudgetReached) as error:
                self._stop = error
                return None
            if not isinstance(opened, NotYet):
                waiting.calls += 1
                return opened, reserve
            self._no_call_before = time.monotonic() + opened.seconds
        return None

    async def _call(self, waiting: Waiting, attempt: Attempt, reserve: Reserve, messages: list[dict[str, Any]]) -> bool:
        """Make the call and keep what came of it; True when the task is settled by it."""
        result = await self._client.complete(
            in_order(messages, attempt.shown),
            request_id=attempt.request_id,
            temperature=self._temperature(waiting),
            max_tokens=self._run.max_tokens,
            options=self._options(waiting),
        )
        if isinstance(result, Failure):
            answered = Answered(
                attempt=attempt,
                reserve=reserve,
                outcome=Attempt.Outcome.UNKNOWN if result.means is Means.UNKNOWN else Attempt.Outcome.ERROR,
                reason=result.reason,
                detail=result.detail,
                http_status=result.status,
                body=result.body,
                latency_ms=result.latency_ms,
                busy=result.means is Means.BUSY,
                retry_after=result.retry_after,
            )
            if not self._after_failure(waiting, result):
                return await self._keep(waiting, answered, give_up="")
            return await self._keep(waiting, answered, *self._unresolved(waiting), give_up=result.reason)
        reading = read_reply(result.body)
        self._count_most(reading)
        await self._waves.keep(
            Answered(
                attempt=attempt,
                reserve=reserve,
                outcome=Attempt.Outcome.ANSWERED,
                http_status=result.status,
                body=result.body,
                input_tokens=reading.input_tokens,
                cached_tokens=reading.cached_tokens,
                output_tokens=reading.output_tokens,
                latency_ms=result.latency_ms,
            )
        )
        return await self._judge(waiting, attempt, reading)

    def _options(self, waiting: Waiting) -> dict[str, Any]:
        """What a request says beside its messages."""
        form = self._approach.response_format
        options: dict[str, Any] = {"response_format": form(waiting.question)} if form else {}
        if self._run.logprobs:
            options["logprobs"] = True
        if (choices := self._choices(waiting)) > 1:
            options["n"] = choices
        return options

    def _choices(self, waiting: Waiting) -> int:
        """How many completions the next call asks for: all that are missing, where the endpoint can and they are to
        see the same."""
        missing = max(1, self._run.samples - len(waiting.samples))
        return 1 if self._run.permute or not self._endpoint.can(Feature.CHOICES) else missing

    def _order(self, waiting: Waiting, number: int) -> str:
        return order_shown(waiting.run_task.task_id, number, waiting.question.candidates) if self._run.permute else ""

    async def _judge_samples(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> bool:
        """Put what can be read to the other samples; True when they were enough to vote."""
        verdicts = [self._approach.judge(waiting.question, text) for text in (reading.text, *reading.others)]
        taken = [verdict for verdict in verdicts if not isinstance(verdict, Rejected)]
        if not taken:
            return await self._refuse(waiting, attempt, next(said for said in verdicts if isinstance(said, Rejected)))
        waiting.any_completion = True
        waiting.samples += [Sample(attempt, mapped_back(completion, attempt.shown)) for completion in taken]
        return len(waiting.samples) >= self._run.samples and await self._vote(waiting)

    async def _vote(self, waiting: Waiting, *facts: Fact) -> bool:
        """Settle a task by what most of its samples said."""
        voted = vote(waiting.samples, self._run.samples)
        accepted = Accepted(
            attempt=voted.agreeing[0],
            run_task=waiting.run_task,
            answer=voted.answer,
            rationale=voted.rationale,
            prompt_version=self._prompt(waiting).version,
            confidence=voted.confidence,
            agreeing=voted.agreeing,
            votes=voted.votes,
        )
        few = Rejected("outvoted", "other samples agreed")
        outvoted = [_refused(other, Attempt.Outcome.REJECTED, few) for other in voted.outvoted]
        return await self._accept(waiting, accepted, *facts, *outvoted)

    async def _judge(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> bool:
        """Turn a kept response into an annotation, or refuse it; True when the task is settled by it."""
        if reading.problem:
            self._count_bad(reading.detail)
            return await self._refuse_reply(waiting, attempt, Rejected(reading.problem, reading.detail), reading.final)
        self._bad_in_a_row = 0
        self._ever_answered = True
        if attempt.resolves_id is not None:
            return await self._judge_resolve(waiting, attempt, reading)
        if self._run.samples > 1:
            return await self._judge_samples(waiting, attempt, reading)
        verdict = self._approach.judge(waiting.question, reading.text)
        if isinstance(verdict, Rejected):
            return await self._refuse(waiting, attempt, verdict)
        if not self._wants_resolve and not waiting.resolve_is_paid_for:
            confidence = answer_probability(reading.tokens) if self._run.logprobs else None
            return await self._accept(waiting, self._accepted(waiting, attempt, verdict, confidence))
        if (copy := await self._near_copy(waiting, verdict)) is not None:
            # Found again where it is accepted; known before, it saves a call.
            return await self._refuse(waiting, attempt, Rejected(Objection.NEAR_COPY, str(copy)))
        waiting.to_resolve, waiting.unread = (attempt, verdict), 0
        return False

    async def _judge_resolve(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> bool:
        """What a re-solve says about the reasoning that it was shown; unreadable, it is asked for again."""
        if waiting.to_resolve is None:
            # The project asks for other things than before the restart, and they came first.
            await self._waves.keep(Read(attempt))
            return False
        resolved = resolving.read(waiting.question, reading.text)
        if isinstance(resolved, Rejected):
            return await self._refuse_reply(waiting, attempt, resolved, outcome=Attempt.Outcome.REJECTED)
        reasoned_in, reasoned = waiting.to_resolve
        waiting.to_resolve = None
        objection = resolving.compare(reasoned, resolved)
        if objection is not None:
            return await self._refuse(waiting, reasoned_in, objection, Read(attempt))
        return await self._accept(waiting, self._accepted(waiting, reasoned_in, reasoned), Read(attempt))

    def _accepted(
        self, waiting: Waiting, attempt: Attempt, completion: Completion, confidence: float | None = None
    ) -> Accepted:
        return Accepted(
            attempt=attempt,
            run_task=waiting.run_task,
            answer=completion.answer,
            rationale=completion.rationale,
            prompt_version=self._prompt(waiting).version,
            confidence=confidence,
        )

    async def _accept(self, waiting: Waiting, accepted: Accepted, *facts: Fact) -> bool:
        await self._waves.keep(*facts, accepted)
        if accepted.attempt.outcome == Attempt.Outcome.ACCEPTED:
            await self._one_settled()
            return True
        # Where it was to be accepted, the ledger found a near-copy and has refused it, and all who voted for it.
        reason = accepted.attempt.reason
        waiting.samples.clear()
        self._refused(waiting, reason)
        return await self._keep(waiting, give_up=reason if self._used_up(waiting) else "")

    async def _refuse(self, waiting: Waiting, attempt: Attempt, refusal: Rejected, *facts: Fact) -> bool:
        """A completion that could be read is not taken; True when it was the last that the task may have."""
        self._refused(waiting, refusal.reason)
        refused = _refused(attempt, Attempt.Outcome.REJECTED, refusal)
        return await self._keep(waiting, *facts, refused, give_up=refusal.reason if self._used_up(waiting) else "")

    def _refused(self, waiting: Waiting, reason: str) -> None:
        waiting.used += 1
        waiting.any_completion = True
        waiting.objection = reason

    async def _refuse_reply(
        self,
        waiting: Waiting,
        attempt: Attempt,
        refusal: Rejected,
        final: bool = False,
        outcome: Attempt.Outcome = Attempt.Outcome.ERROR,
    ) -> bool:
        """A reply without a completion, or an unreadable re-solve: the same call again, or the end of the task."""
        waiting.used += 1
        waiting.unread += 1
        refused = _refused(attempt, outcome, refusal)
        if not final and not self._used_up(waiting):
            return await self._keep(waiting, refused, give_up="")
        return await self._keep(waiting, refused, *self._unresolved(waiting), give_up=refusal.reason)

    def _unresolved(self, waiting: Waiting) -> list[Fact]:
        """Where a task ends before the re-solve of its reasoning could be had, the reasoning is refused with it."""
        if waiting.to_resolve is None:
            return []
        waiting.any_completion = True
        nobody = Rejected(Objection.RESOLVE_UNREAD, "nobody could be had who would solve it again")
        return [_refused(waiting.to_resolve[0], Attempt.Outcome.REJECTED, nobody)]

    async def _near_copy(self, waiting: Waiting, completion: Completion) -> NearCopy | None:
        threshold = self._run.project.near_copy
        if not threshold:
            return None
        wording = Wording(waiting.run_task, completion.rationale)
        return await self._waves.in_thread(partial(find_near_copy, self._run.project_id, threshold, wording))

    def _count_most(self, reading: Reading) -> None:
        cost = cost_of(self._endpoint, reading.input_tokens, reading.output_tokens, reading.cached_tokens)
        tokens = reading.input_tokens + reading.output_tokens
        self._most = Reserve(max(self._most.usd, cost), max(self._most.tokens, tokens))

    def _after_failure(self, waiting: Waiting, failure: Failure) -> bool:
        """What a failed call means for the rest of the work; True when this task is not asked again."""
        match failure.means:
            case Means.UNREACHABLE:
                self._stop = self._stop or EndpointAway(failure.detail)
            case Means.RUN:
                self._stop = RunEnded(failure.detail)
            case Means.BAD_REQUEST if not self._ever_answered:
                self._stop = RunEnded(failure.detail)
            case Means.BAD_REQUEST | Means.TASK:
                return True
            case Means.BUSY:
                pass  # kept with the answer: the endpoint's pace says when the next call may begin
            case Means.BROKEN | Means.UNKNOWN:
                self._count_bad(failure.detail)
                waiting.used += 1
                return self._used_up(waiting)
        return False

    def _used_up(self, waiting: Waiting) -> bool:
        return waiting.used >= self._run.max_attempts

    async def _keep(self, waiting: Waiting, *facts: Fact, give_up: str) -> bool:
        """Commit what came of a call, and with it the end of the task where `give_up` names a reason."""
        if not give_up:
            await self._waves.keep(*facts)
            return False
        if waiting.samples:
            return await self._vote(waiting, *facts)  # those there are, against all that were wanted
        state = RunTask.State.REJECTED if waiting.any_completion else RunTask.State.FAILED
        await self._waves.keep(*facts, GivenUp(run_task=waiting.run_task, state=state, reason=give_up))
        await self._one_settled()
        return True

    def _count_bad(self, detail: str) -> None:
        """An endpoint that fails every call must not use up the attempts of half a million tasks."""
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= self._endpoint.concurrency + 10:
            self._stop = self._stop or EndpointAway(f"{detail} ({self._bad_in_a_row} calls in a row failed)")

    @property
    def _wants_resolve(self) -> bool:
        return self._run.approach == Approach.ANSWER_DRIVEN and self._run.project.blind_resolve

    async def _one_settled(self) -> None:
        self._settled += 1
        await self._waves.in_thread(partial(self._job.progress, self._settled, self._chunk.tasks))


def _refused(attempt: Attempt, outcome: Attempt.Outcome, refusal: Rejected) -> Refused:
    return Refused(attempt=attempt, outcome=outcome, reason=refusal.reason, detail=refusal.detail)


async def _together(work: Sequence[Coroutine[Any, Any, None]], *, beside: asyncio.Task[None]) -> None:
    """All of it, `beside` for as long; the first error ends the rest and is raised as it is."""
    tasks = [asyncio.create_task(part) for part in work]
    everything = asyncio.ensure_future(asyncio.gather(*tasks))
    try:
        await asyncio.wait((everything, beside), return_when=asyncio.FIRST_COMPLETED)
        await (everything if everything.done() else beside)  # `beside` ends only by an error
    finally:
        for task in (*tasks, beside):
            task.cancel()
        await asyncio.gather(everything, *tasks, beside, return_exceptions=True)
