"""The one thread that decodes for a server: requests join at the next step, and leave when they are done or unwanted.

A `Job` is a request on its way through; its handler's thread waits for the `Piece`s of its choices. Not here: HTTP and
the protocol's JSON (serve.py), decoding itself (rollout.py).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trainer.chat import ApiError, ChatRequest, ChatRow
from trainer.data import batch_rows
from trainer.model import Screener
from trainer.rollout import Decoding, Growing, Likelihood, Wanted

logger = logging.getLogger(__name__)

_STEPS_BETWEEN_JOINS = 4
"""Joining copies the keys of all who are there: whoever comes waits for up to so many tokens of the others (ours)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one choice."""

    choice: int
    text: str
    tokens: tuple[tuple[int, Likelihood], ...] = ()
    """Where log-probabilities are wanted: its tokens, the ending one left out."""
    finish_reason: str | None = None
    """Set in a choice's last piece."""


@dataclass(slots=True)
class Job:
    """A request and what has become of it."""

    request: ChatRequest
    row: ChatRow
    pieces: queue.SimpleQueue[Piece | None] = field(default_factory=queue.SimpleQueue)
    """In the order of writing; None: the model failed. Without `stream` there is one per choice."""
    unwanted: bool = False
    """Set by the handler when nobody waits for it any more."""
    completion_tokens: int = 0


class SaidText:
    """The text of a growing completion, certain so far: no half characters, nothing that may be a stop sequence.

    Tokens are turned into text a few at a time, behind their predecessors, so that the pieces are those of the whole.
    """

    def __init__(self, screener: Screener, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = screener.tokenizer, stop
        self._text = ""
        self._given = 0
        """Characters that were taken."""
        self._begins: list[int] = []
        """Per token, where in the text it begins."""
        self._taken = 0
        """Tokens that were taken."""
        self._context, self._read = 0, 0
        self.stopped = False

    def add(self, token_ids: Sequence[int], last: bool) -> None:
        """Read on in a completion's tokens, without the one that ends it; `last`: no more will come."""
        while len(self._begins) < len(token_ids) and not self.stopped:
            self._begins.append(len(self._text))
            upto = len(self._begins)
            known = self._decode(token_ids[self._context : self._read])
            whole = self._decode(token_ids[self._context : upto])
            if whole.endswith("\ufffd") and not (last and upto == len(token_ids)):
                continue  # perhaps the first bytes of a character
            self._context, self._read = self._read, upto
            self._append(whole[len(known) :])

    def take(self, last: bool) -> tuple[str, range]:
        """The text that is new and certain, and which tokens it begins in."""
        upto = len(self._text) if last or self.stopped else len(self._text) - self._perhaps_a_stop()
        text, self._given = self._text[self._given : upto], upto
        tokens = len(self._begins)
        if not last or self.stopped:
            tokens = sum(begin < upto for begin in self._begins)
        found, self._taken = range(self._taken, max(self._taken, tokens)), max(self._taken, tokens)
        return text, found

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)) if token_ids else ""

    def _append(self, text: str) -> None:
        before = len(self._text)
        self._text += text
        found = [self._text.find(one, max(0, before - len(one) + 1)) for one in self._stop]
        if hits := [at for at in found if at >= 0]:
            self._text = self._text[: min(hits)]
            self.stopped = True

    def _perhaps_a_stop(self) -> int:
        """Characters at the end that a stop sequence begins with."""
        return max(
            (length for one in self._stop for length in range(1, len(one)) if self._text.endswith(one[:length])),
            default=0,
        )


@dataclass(slots=True)
class _Choice:
    """One completion of a job."""

    job: Job
    number: int
    said: SaidText | None
    """None where the whole text at the end is enough."""


class Batcher:
    """Decodes in a thread of its own, at most `max_batch` completions together."""

    def __init__(self, screener: Screener, max_batch: int, wait_seconds: float, max_waiting: int) -> None:
        self._screener, self._max_batch = screener, max_batch
        self._wait_seconds, self._max_waiting = wait_seconds, max_waiting
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._decoding = Decoding(screener)
        self._going: dict[Growing, _Choice] = {}
        self._steps_since_join = 0

    @property
    def decoding(self) -> int:
        """Completions being written."""
        return len(self._going)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    def stop(self) -> None:
        """Decode what is there and waiting, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Let a request wait for the next step. ApiError 429 when too many wait, 503 when the server is stopping."""
        with self._changed:
            if self._stopping:
                raise ApiError(503, "the server is stopping", "stopping")
            if len(self._waiting) >= self._max_waiting:
                raise ApiError(429, "too many requests are waiting", "overloaded")
            self._waiting.append(job)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._going or self._stopping)
                if not self._waiting and not self._going:
                    return
            self._drop_unwanted()
            if jobs := self._newcomers():
                self._admit(jobs)
            self._step()

    def _newcomers(self) -> list[Job]:
        """The requests that begin now. Where nobody is decoding, the first one waits a moment for company."""
        until = time.monotonic() + self._wait_seconds
        with self._changed:
            if self._going and (self._steps_since_join < _STEPS_BETWEEN_JOINS or not self._waiting):
                return []
            while not self._going and not self._stopping and time.monotonic() < until:
                if sum(job.request.n for job in self._waiting) >= self._max_batch:
                    break
                self._changed.wait(until - time.monotonic())
            taken: list[Job] = []
            room = self._max_batch - len(self._going)
            # In the order they came: a large request is not overtaken for ever by small ones.
            while self._waiting and (self._waiting[0].unwanted or self._waiting[0].request.n <= room):
                job = self._waiting.popleft()
                if not job.unwanted:
                    taken.append(job)
                    room -= job.request.n
            return taken

    def _admit(self, jobs: list[Job]) -> None:
        self._steps_since_join = 0
        try:
            heads = batch_rows(
                self._screener,
                [job.row.token_ids for job in jobs],
                [job.row.positions for job in jobs],
                [job.row.images for job in jobs],
            )
            branches = self._decoding.join(heads, [_wanted(job.request) for job in jobs])
        except Exception:
            # The end of the thread would leave every later request hanging: these fail, the others may not.
            logger.exception("reading %d requests failed", len(jobs))
            for job in jobs:
                job.pieces.put(None)
            return
        choices = [_Choice(job, number, self._text_of(job)) for job in jobs for number in range(job.request.n)]
        self._going.update(zip(branches, choices, strict=True))
        self._hand_over(branches)

    def _step(self) -> None:
        self._steps_since_join += 1
        try:
            self._hand_over(self._decoding.step())
        except Exception:
            jobs = {id(choice.job): choice.job for choice in self._going.values()}
            logger.exception("a batch of %d requests failed", len(jobs))
            self._decoding, self._going = Decoding(self._screener), {}
            for job in jobs.values():
                job.pieces.put(None)

    def _drop_unwanted(self) -> None:
        for branch in [branch for branch, choice in self._going.items() if choice.job.unwanted]:
            self._decoding.leave(branch)
            del self._going[branch]

    def _text_of(self, job: Job) -> SaidText | None:
        request = job.request
        piecewise = request.stream or request.stop or request.top_logprobs is not None
        return SaidText(self._screener, request.stop) if piecewise else None

    def _hand_over(self, branches: Sequence[Growing]) -> None:
        """Give the handlers what is new of these branches; whoever met a stop sequence leaves."""
        for branch in branches:
            choice = self._going[branch]
            said = choice.said
            if said is not None:
                said.add(branch.tokens[:-1] if branch.finished else branch.tokens, branch.over)
            stopped = said is not None and said.stopped
            if stopped or branch.over:
                self._decoding.leave(branch)
                del self._going[branch]
                choice.job.completion_tokens += len(branch.tokens)
                reason = "stop" if stopped or branch.finished else "length"
                choice.job.pieces.put(self._piece(choice, branch, reason))
            elif choice.job.request.stream:
                piece = self._piece(choice, branch, None)
                if piece.text or piece.tokens:
                    choice.job.pieces.put(piece)

    def _piece(self, choice: _Choice, branch: Growing, reason: str | None) -> Piece:
        if choice.said is None:
            return Piece(choice.number, branch.as_written(self._screener).text, finish_reason=reason)
        text, places = choice.said.take(last=reason is not None)
        tokens = [(branch.tokens[at], branch.likelihoods[at]) for at in places if at < len(branch.likelihoods)]
        return Piece(choice.number, text, tuple(tokens), reason)


def _wanted(request: ChatRequest) -> list[Wanted]:
    return [
        Wanted([], replace(request.sampling, seed=request.sampling.seed * 1009 + number), request.top_logprobs)
        for number in range(request.n)
    ]
