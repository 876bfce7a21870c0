"""The ledger's writes: an attempt before its call, its response after it, its judgement last. Each takes many at once.

Every function is to be called inside a transaction that has fenced the chunk's job (jobs.services.fence): one holder
writes a chunk at a time. Not here: the order of events (annotation_workers/annotate.py), judging a completion.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from django.db.models import Sum
from django.utils import timezone

from annotation_server.annotations import services as annotations_services
from annotation_server.annotations.models import Annotation
from annotation_server.annotations.services import NewAnnotation
from annotation_server.prepared import PreparedInsert, PreparedQuery, PreparedUpdate
from annotation_server.runs import pacing
from annotation_server.runs.costs import cost_of
from annotation_server.runs.models import Attempt, Endpoint, RawResponse, RequestBatch, Run, RunChunk, RunTask
from annotation_server.runs.near_copies import Wording, claim_wordings
from trainer.contract.answers import Answer
from trainer.contract.feedback import Objection


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a call may take at most, held back until it is answered."""

    usd: Decimal
    """From the run's budget."""
    tokens: int
    """From the endpoint's tokens per minute."""


@dataclass(frozen=True, slots=True)
class Intent:
    """A call about to be made."""

    run_task_id: int
    number: int
    reserve: Reserve
    shown: str = ""
    """The candidates in the order in which it shows them, where that is not by letter."""
    resolves: Attempt | None = None
    """Blind re-solve: the attempt whose reasoning it is shown."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """A call that may not begin now, and in how many seconds it is worth asking again."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of a call. `outcome` is ANSWERED where there is a response to judge, else ERROR or UNKNOWN."""

    attempt: Attempt
    reserve: Reserve
    outcome: Attempt.Outcome
    reason: str = ""
    detail: str = ""
    http_status: int | None = None
    body: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    """Of the input tokens."""
    output_tokens: int = 0
    latency_ms: int | None = None
    busy: bool = False
    """The endpoint asked for fewer calls."""
    retry_after: float | None = None
    """… and said for how long, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A completion that became an annotation."""

    attempt: Attempt
    run_task: RunTask
    answer: Answer
    rationale: str
    prompt_version: str
    confidence: float | None = None
    agreeing: Sequence[Attempt] = ()
    """Further calls about the task that said the same."""
    votes: Mapping[str, int] | None = None
    """Where samples voted: answers, and how many gave each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A completion that did not."""

    attempt: Attempt
    outcome: Attempt.Outcome
    """REJECTED when there was a completion, ERROR when the response held none."""
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Read:
    """A re-solve that was read; what it said is in the judgement of the attempt that it resolves."""

    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A task for which no further call is made."""

    run_task: RunTask
    state: RunTask.State
    """REJECTED when any completion came, FAILED when none did."""
    reason: str


Fact = Answered | Accepted | Refused | Read | GivenUp
Opened = Attempt | NotYet


BATCH_ASKS_AGAIN = 30.0
"""Seconds after which a request that found no place in the budget is worth another look: batches come home seldom."""


class RunStopped(Exception):
    """The run is paused or has ended: no further call."""


class BudgetReached(Exception):
    """The next call might cost more than is left; the message is one line."""


def write(
    chunk: RunChunk,
    facts: Sequence[Fact],
    intents: Sequence[Intent],
    *,
    pace_learns: bool = True,
    batch: RequestBatch | None = None,
) -> Sequence[Opened] | RunStopped | BudgetReached:
    """Keep facts, then write attempts down before their calls: what became of each intent, in their order.

    NotYet where the budget is held by calls on their way, or the endpoint's limits leave no place. Where no call may
    begin at all, why: as a value, for a paused run refuses intents and must still keep its answers.
    `chunk` comes with its run and endpoint and holds its sums: its one holder reads them once (`refresh`).
    `pace_learns`: False where good answers teach nothing about the endpoint's pace (pacing.is_easy).
    `batch`: of which the intents are requests. What goes in batches has its own price, and no part in the pace.
    """
    answered = [fact for fact in facts if isinstance(fact, Answered)]
    accepted = [fact for fact in facts if isinstance(fact, Accepted)]
    refused = [fact for fact in facts if isinstance(fact, Refused)]
    read = [fact for fact in facts if isinstance(fact, Read)]
    given_up = [fact for fact in facts if isinstance(fact, GivenUp)]
    if answered:
        _record_answers(chunk, answered)
    if accepted:
        _accept(chunk, accepted)
    if refused:
        _refuse(chunk, refused)
    if read:
        _set_outcome([row.attempt for row in read], Attempt.Outcome.READ)
    if given_up:
        _give_up(chunk, given_up)
    if facts:
        _save_sums(chunk)
    all_good = all(answer.outcome == Attempt.Outcome.ANSWERED for answer in answered)
    if answered and not chunk.run.batched and (pace_learns or not all_good):
        _keep_pace(chunk.run.endpoint, answered)
    try:
        return _open_attempts(chunk, intents, batch) if intents else []
    except (RunStopped, BudgetReached) as error:
        return error


def refresh(chunk: RunChunk) -> None:
    """Read a chunk's sums again: after a transaction that failed, those in hand tell of what was not committed."""
    chunk.refresh_from_db(fields=[*_SUMS, "refusals"])


def give_back(chunk: RunChunk, usd: Decimal) -> None:
    """What was held for requests of which none is on its way any more."""
    chunk.reserved_usd -= usd
    _save_sums(chunk)


def _open_attempts(chunk: RunChunk, intents: Sequence[Intent], batch: RequestBatch | None) -> list[Opened]:
    # Locked, so that workers on other chunks of the run cannot spend the same dollar.
    state, budget_usd, budget_calls = _locked_run(run=chunk.run_id)[0]
    if state != Run.State.RUNNING:
        raise RunStopped
    affordable = _within_budget(chunk.run_id, budget_usd, budget_calls, intents)
    wait = BATCH_ASKS_AGAIN
    granted = affordable
    if batch is None:
        place = pacing.grant(chunk.run.endpoint_id, [intent.reserve.tokens for intent in affordable])
        granted, wait = affordable[: place.calls], place.wait_seconds
    attempts = Attempt.objects.bulk_create(
        [
            Attempt(
                run_task_id=intent.run_task_id,
                number=intent.number,
                shown=intent.shown,
                resolves=intent.resolves,
                batch=batch,
                request_id=uuid.uuid4(),
            )
            for intent in granted
        ]
    )
    if granted:
        chunk.calls += len(granted)
        chunk.on_their_way += len(granted)
        chunk.reserved_usd += sum((intent.reserve.usd for intent in granted), Decimal(0))
        _save_sums(chunk)
    return [*attempts, *[NotYet(wait)] * (len(intents) - len(attempts))]


_locked_run = PreparedQuery(
    lambda p: Run.objects.select_for_update().filter(pk=p("run")).values_list("state", "budget_usd", "budget_calls")
)


def _within_budget(
    run_id: int, budget_usd: Decimal | None, budget_calls: int | None, intents: Sequence[Intent]
) -> list[Intent]:
    if budget_usd is None and budget_calls is None:
        return list(intents)
    sums = RunChunk.objects.filter(run=run_id).aggregate(
        spent=Sum("cost_usd"), reserved=Sum("reserved_usd"), calls=Sum("calls")
    )
    granted = list(intents)
    if budget_calls is not None:
        # A call that was made stays made: unlike money, none of this comes back from calls on their way.
        granted = granted[: max(0, budget_calls - (sums["calls"] or 0))]
        if not granted:
            raise BudgetReached(f"the budget of {budget_calls} calls is reached")
    if budget_usd is None:
        return granted
    return _within_dollars(budget_usd, sums["spent"] or Decimal(0), sums["reserved"] or Decimal(0), granted)


def _within_dollars(budget: Decimal, spent: Decimal, reserved: Decimal, intents: Sequence[Intent]) -> list[Intent]:
    granted: list[Intent] = []
    for intent in intents:
        if spent + reserved + intent.reserve.usd > budget:
            break
        reserved += intent.reserve.usd
        granted.append(intent)
    if not granted and not reserved:
        raise BudgetReached(
            f"the budget of {budget:.4f} USD is reached: {spent:.4f} USD are spent, "
            f"and the next call may cost {intents[0].reserve.usd:.4f} USD"
        )
    return granted


def _record_answers(chunk: RunChunk, answers: Sequence[Answered]) -> None:
    """What came back, word for word, and what it cost, before anybody reads it."""
    now = timezone.now()
    for answer in answers:
        attempt = answer.attempt
        attempt.outcome = answer.outcome
        attempt.reason = answer.reason
        attempt.detail = answer.detail[:500]
        attempt.http_status = answer.http_status
        attempt.input_tokens = answer.input_tokens
        attempt.cached_tokens = answer.cached_tokens
        attempt.output_tokens = answer.output_tokens
        tokens = (answer.input_tokens, answer.output_tokens, answer.cached_tokens)
        attempt.cost_usd = cost_of(chunk.run.endpoint, *tokens, batched=chunk.run.batched)
        attempt.latency_ms = answer.latency_ms
        attempt.answered_at = None if answer.outcome == Attempt.Outcome.UNKNOWN else now
        chunk.input_tokens += answer.input_tokens
        chunk.cached_tokens += answer.cached_tokens
        chunk.output_tokens += answer.output_tokens
        chunk.cost_usd += attempt.cost_usd
        chunk.reserved_usd -= answer.reserve.usd
    _keep_answers.many([_said(answer.attempt, _ANSWERED_FIELDS) for answer in answers])
    _keep_bodies.many([{"attempt_id": answer.attempt.pk, "body": answer.body} for answer in answers if answer.body])
    chunk.on_their_way -= len(answers)
    _count_refusals(chunk, [answer.reason for answer in answers if answer.outcome != Attempt.Outcome.ANSWERED])


def _keep_pace(endpoint: Endpoint, answers: Sequence[Answered]) -> None:
    """What the answers say about how fast the endpoint may be called. Late in a transaction: its row is everybody's."""
    pacing.learn(
        endpoint.pk,
        [
            pacing.Outcome(
                sent_at=answer.attempt.sent_at,
                good=answer.outcome == Attempt.Outcome.ANSWERED,
                busy=answer.busy,
                retry_after=answer.retry_after,
                tokens_reserved=answer.reserve.tokens,
                tokens_used=answer.input_tokens + answer.output_tokens,
            )
            for answer in answers
        ],
    )


def _accept(chunk: RunChunk, accepted: Sequence[Accepted]) -> None:
    """Make annotations of completions. The key names run and task: after a crash the same one is found, not doubled.

    A near-copy of another task's reasoning is refused instead: its attempt then says so.
    """
    run, annotator = chunk.run, chunk.run.endpoint.annotator
    accepted = _without_near_copies(chunk, accepted)
    if not accepted:
        return
    annotations = annotations_services.record_annotations(
        [
            NewAnnotation(
                task=row.run_task.task,
                annotator=annotator,
                approach=run.approach,
                answer=row.answer,
                rationale=row.rationale,
                idempotency_key=f"run-{run.pk}-task-{row.run_task.task_id}",
                prompt_version=row.prompt_version,
                confidence=row.confidence,
                copied_from=row.run_task.given_from,
                meta={"attempt": row.attempt.pk} | ({"votes": dict(row.votes)} if row.votes else {}),
            )
            for row in accepted
        ]
    )
    for row, annotation in zip(accepted, annotations, strict=True):
        _settle_task(row.run_task, RunTask.State.ACCEPTED, "", annotation)
    calls = [call for row in accepted for call in {row.attempt.pk: row.attempt, **_by_key(row.agreeing)}.values()]
    _set_outcome(calls, Attempt.Outcome.ACCEPTED)
    _settle_tasks.many([_said(row.run_task, _SETTLED_FIELDS) for row in accepted])
    chunk.accepted += len(accepted)


def _without_near_copies(chunk: RunChunk, accepted: Sequence[Accepted]) -> Sequence[Accepted]:
    """Those that stand; the others are refused. Here and not before, so that no other worker comes in between."""
    threshold = chunk.run.project.near_copy
    if not threshold:
        return accepted
    copies = claim_wordings(chunk.run.project_id, threshold, [Wording(row.run_task, row.rationale) for row in accepted])
    refused = [
        Refused(
            attempt=attempt,
            outcome=Attempt.Outcome.REJECTED,
            reason=Objection.NEAR_COPY,
            detail=str(copies[row.run_task.pk]),
        )
        for row in accepted
        if row.run_task.pk in copies
        for attempt in _by_key([row.attempt, *row.agreeing]).values()
    ]
    if refused:
        _refuse(chunk, refused)
    return [row for row in accepted if row.run_task.pk not in copies]


def _by_key(attempts: Sequence[Attempt]) -> dict[int, Attempt]:
    return {attempt.pk: attempt for attempt in attempts}


def _set_outcome(attempts: Sequence[Attempt], outcome: Attempt.Outcome) -> None:
    for attempt in attempts:
        attempt.outcome = outcome
    _outcomes(attempts=[attempt.pk for attempt in attempts], outcome=outcome.value)


_outcomes = PreparedUpdate(lambda p: (Attempt.objects.filter(pk__in=p("attempts")), {"outcome": p("outcome")}))


def _refuse(chunk: RunChunk, refused: Sequence[Refused]) -> None:
    """Mark attempts whose completion was not taken, with the reason."""
    for row in refused:
        row.attempt.outcome = row.outcome
        row.attempt.reason = row.reason
        row.attempt.detail = row.detail[:500]
    _keep_refusals.many([_said(row.attempt, _REFUSED_FIELDS) for row in refused])
    _count_refusals(chunk, [row.reason for row in refused])


def _give_up(chunk: RunChunk, given_up: Sequence[GivenUp]) -> None:
    """Settle tasks without an annotation."""
    for row in given_up:
        _settle_task(row.run_task, row.state, row.reason, None)
    _settle_tasks.many([_said(row.run_task, _SETTLED_FIELDS) for row in given_up])
    rejected = sum(row.state == RunTask.State.REJECTED for row in given_up)
    chunk.rejected += rejected
    chunk.failed += len(given_up) - rejected


_ANSWERED_FIELDS = (
    "outcome", "reason", "detail", "http_status", "input_tokens", "cached_tokens", "output_tokens", "cost_usd",
    "latency_ms", "answered_at",
)  # fmt: skip
_REFUSED_FIELDS = ("outcome", "reason", "detail")
_SETTLED_FIELDS = ("state", "reason", "annotation_id")


def _writing(model: type[Attempt | RunTask | RunChunk], fields: Sequence[str]) -> PreparedUpdate:
    return PreparedUpdate(
        lambda p: (model.objects.filter(pk=p("pk")), {name.removesuffix("_id"): p(name) for name in fields})
    )


def _said(row: Attempt | RunTask, fields: Sequence[str]) -> dict[str, object]:
    return {"pk": row.pk} | {name: getattr(row, name) for name in fields}


_keep_answers = _writing(Attempt, _ANSWERED_FIELDS)
_keep_bodies = PreparedInsert(RawResponse, "attempt", "body")
_keep_refusals = _writing(Attempt, _REFUSED_FIELDS)
_settle_tasks = _writing(RunTask, _SETTLED_FIELDS)


def _settle_task(run_task: RunTask, state: RunTask.State, reason: str, annotation: Annotation | None) -> None:
    run_task.state = state
    run_task.reason = reason
    run_task.annotation = annotation


def _count_refusals(chunk: RunChunk, reasons: Sequence[str]) -> None:
    if reasons:
        chunk.refusals = dict(Counter(chunk.refusals) + Counter(reasons))
        chunk.save(update_fields=["refusals"])


def _save_sums(chunk: RunChunk) -> None:
    """The chunk's one holder may write what it has added up, and for money has to: added up in the database, SQLite's
    decimals are binary fractions, and a remainder of 1e-16 would stay reserved for ever."""
    _keep_sums(pk=chunk.pk, **{name: getattr(chunk, name) for name in _SUMS})


_SUMS = (
    "accepted", "rejected", "failed", "calls", "on_their_way", "input_tokens", "cached_tokens", "output_tokens",
    "cost_usd", "reserved_usd",
)  # fmt: skip
_keep_sums = _writing(RunChunk, _SUMS)


def recover(chunk: RunChunk) -> int:
    """What a killed worker left: calls that were on their way become UNKNOWN, perhaps charged. Returns how many."""
    cut = Attempt.objects.filter(run_task__chunk=chunk, outcome=Attempt.Outcome.SENT).update(
        outcome=Attempt.Outcome.UNKNOWN, reason=INTERRUPTED, detail="the worker ended before the answer came"
    )
    refresh(chunk)
    chunk.reserved_usd, chunk.on_their_way = Decimal(0), 0
    _save_sums(chunk)
    _count_refusals(chunk, [INTERRUPTED] * cut)
    return cut


INTERRUPTED = "interrupted"
"""The reason of an attempt that a kill cut off: not the endpoint's fault, so it does not use up a task's attempts."""
