"""How fast an endpoint is called: its limits, and what it bears, for all workers together. The database is the truth.

Calls are granted in the transaction that writes them down, under the lock of the endpoint's one row (models.Pace), so
that two workers cannot take the same place. Requests and tokens follow one another evenly rather than in bursts: then
no window of a minute, wherever an endpoint lets it begin, holds more than the limit. Calls at once grow by one per
round of good answers and are halved when the endpoint asks for fewer.
Not here: budgets and the calls' rows (ledger.py), waiting (annotation_workers/annotate.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from annotation_server.jobs.models import Job, JobKind
from annotation_server.prepared import PreparedQuery
from annotation_server.runs.models import Endpoint, Pace, RunChunk

LONGEST_BACKOFF = timedelta(seconds=60)
"""Where the endpoint does not say how long to wait."""
LONGEST_ASKED = timedelta(hours=1)
"""Where it does; a longer wait is a broken clock or a mistake."""
_AHEAD = timedelta(seconds=0.1)
"""A call may begin so long before its turn: a wave of calls is granted at once, each does not wait for its own wave."""
_KEPT_OF_LIMIT = 0.99
"""What a call's way to the endpoint may vary by, and _AHEAD, are within the hundredth that is left."""
_ASK_AGAIN = 0.2


@dataclass(frozen=True, slots=True)
class Granted:
    """How many calls may begin now, and in how many seconds it is worth asking for another."""

    calls: int
    wait_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call says about the endpoint's pace."""

    sent_at: datetime
    good: bool
    busy: bool
    """It asked for fewer calls (429, 503)."""
    retry_after: float | None
    """… and said for how long, in seconds."""
    tokens_reserved: int
    tokens_used: int
    """0 where it did not say."""


def grant(endpoint_id: int, tokens: Sequence[int]) -> Granted:
    """Take places for calls of so many tokens each, as many of the first as there are. Call it in a transaction."""
    pace = _locked(endpoint_id)
    endpoint = pace.endpoint
    now = timezone.now()
    if pace.resting_until is not None and pace.resting_until > now:
        return Granted(0, (pace.resting_until - now).total_seconds())
    room = calls_at_once(endpoint, pace) - _on_their_way(endpoint_id)
    if room < 1:
        return Granted(0, _ASK_AGAIN)
    requests_free, tokens_free = pace.requests_free_at or now, pace.tokens_free_at or now
    calls = 0
    for wanted in tokens[:room]:
        if max(requests_free, tokens_free) > now + _AHEAD:
            break
        requests_free = _after(requests_free, now, 1, endpoint.requests_per_minute)
        tokens_free = _after(tokens_free, now, wanted, endpoint.tokens_per_minute)
        calls += 1
    if calls and (endpoint.requests_per_minute or endpoint.tokens_per_minute):
        pace.requests_free_at, pace.tokens_free_at = requests_free, tokens_free
        pace.save(update_fields=["requests_free_at", "tokens_free_at"])
    late = (max(requests_free, tokens_free) - now - _AHEAD).total_seconds()
    return Granted(calls, late if late > 0 else _ASK_AGAIN)


def is_easy(endpoint: Endpoint, pace: Pace) -> bool:
    """Whether good answers teach nothing: then the row that all workers share need not be locked for them."""
    return pace.at_once is None and pace.busy_rounds == 0 and endpoint.tokens_per_minute == 0


def learn(endpoint_id: int, outcomes: Sequence[Outcome]) -> None:
    """What came of calls: estimates of tokens corrected, calls at once halved or grown. Call it in a transaction."""
    pace = _locked(endpoint_id)
    endpoint = pace.endpoint
    now = timezone.now()
    for outcome in outcomes:
        if outcome.busy:
            _slow_down(pace, outcome, now)
        if outcome.good:
            pace.busy_rounds = 0
            if pace.at_once is not None:
                pace.at_once += 1 / pace.at_once
        if endpoint.tokens_per_minute and pace.tokens_free_at is not None and (outcome.tokens_used or outcome.busy):
            # What was refused was not read: it counts nothing.
            more = outcome.tokens_used - outcome.tokens_reserved
            pace.tokens_free_at += _span(more, endpoint.tokens_per_minute)
    if pace.at_once is not None and pace.at_once >= endpoint.concurrency:
        pace.at_once = None
    pace.save()


def calls_at_once(endpoint: Endpoint, pace: Pace) -> int:
    """How many calls may be on their way to an endpoint just now."""
    return endpoint.concurrency if pace.at_once is None else max(1, min(endpoint.concurrency, int(pace.at_once)))


def pace_of(endpoint: Endpoint) -> Pace:
    """For reading; a row that was never written where nothing was ever called."""
    return Pace.objects.select_related("endpoint").filter(pk=endpoint.pk).first() or Pace(endpoint=endpoint)


def _slow_down(pace: Pace, outcome: Outcome, now: datetime) -> None:
    # Sent before the endpoint said so to another call, it says nothing new, but may know of a longer wait.
    news = pace.slowed_at is None or outcome.sent_at > pace.slowed_at
    if news:
        pace.slowed_at = now
        pace.busy_rounds += 1
        pace.at_once = max(1.0, calls_at_once(pace.endpoint, pace) / 2)
    if outcome.retry_after is not None:
        rest = min(timedelta(seconds=outcome.retry_after), LONGEST_ASKED)
    elif news:
        rest = min(timedelta(seconds=2.0 ** min(pace.busy_rounds - 1, 10)), LONGEST_BACKOFF)
    else:
        return
    pace.resting_until = max(pace.resting_until or now, now + rest)


def _on_their_way(endpoint_id: int) -> int:
    """Calls on their way for all workers; what a killed one left counts until its job is taken back."""
    return sum(calls or 0 for calls in _calls_out(endpoint=endpoint_id))


_calls_out = PreparedQuery(
    lambda p: RunChunk.objects.filter(
        pk__in=Job.objects.filter(kind=JobKind.ANNOTATE_CHUNK, state=Job.State.RUNNING).values("object_id"),
        run__endpoint=p("endpoint"),
    ).values_list("on_their_way", flat=True)
)


def _after(free: datetime, now: datetime, amount: int, per_minute: int) -> datetime:
    return max(free, now) + _span(amount, per_minute) if per_minute else now


def _span(amount: int, per_minute: int) -> timedelta:
    return timedelta(minutes=amount / (per_minute * _KEPT_OF_LIMIT))


def _locked(endpoint_id: int) -> Pace:
    pace = _locked_pace.first(endpoint=endpoint_id)
    if pace is None:
        Pace.objects.bulk_create([Pace(endpoint_id=endpoint_id)], ignore_conflicts=True)
        (pace,) = _locked_pace(endpoint=endpoint_id)
    return pace


_locked_pace = PreparedQuery(
    lambda p: Pace.objects.select_related("endpoint").select_for_update(of=("self",)).filter(pk=p("endpoint"))
)
