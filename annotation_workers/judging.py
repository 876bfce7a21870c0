"""What a response means for its task: taken, refused and asked again with a word about it, or given up. Writes nothing.

A `Judging` knows its run; a `Waiting` is a task in hand. Whoever makes the calls takes the next one from `intent` and
`request`, and tells what came of it (`answered`, `failed`): each gives a Step, whose facts are to be committed
together. Once they are, `kept` says what follows from them. Live calls (annotate.py) and batches (batches.py) go by it.
Where the project wants it, a reasoning that passes its checks is solved again by a call of its own before it is taken;
until that one is judged, the first stays answered, so that a restart knows what is paid for and what is missing.
Not here: prompts and checks (automated.py, answer_driven.py, resolving.py), how samples vote (confidence.py), the
ledger (annotation_server/runs/ledger.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from annotation_server.annotations.models import Approach
from annotation_server.runs import ledger, selectors
from annotation_server.runs.costs import cost_of, input_tokens_of
from annotation_server.runs.ledger import Accepted, Fact, GivenUp, Intent, Read, Refused, Reserve
from annotation_server.runs.models import Attempt, Feature, Run, RunTask
from annotation_server.runs.near_copies import NearCopy, Wording, find_near_copy
from annotation_workers import answer_driven, automated, resolving
from annotation_workers.confidence import Sample, answer_probability, in_order, mapped_back, order_shown, vote
from annotation_workers.model_client import Means, Reading, Request, read_reply
from annotation_workers.verdicts import Limits, ModelApproach, Question, Rejected
from trainer.contract.answers import Completion
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.feedback import Objection, with_feedback
from trainer.contract.prompts import Prompt, openai_messages

APPROACHES: dict[str, ModelApproach] = {
    Approach.AUTOMATED: ModelApproach(automated.build_prompt, automated.judge),
    Approach.ANSWER_DRIVEN: ModelApproach(answer_driven.build_prompt, answer_driven.judge),
}
IN_JSON = ModelApproach(automated.build_prompt, automated.judge_json, automated.response_format)
"""Automated, where the run asks for answers in a JSON schema: the same question, held to the same answer."""
NEVER_CHARGED = frozenset({"expired", "cancelled", "unsent", "batch_failed"})
"""Reasons of requests in a batch to which the endpoint never came."""
NOBODYS_FAULT = frozenset({ledger.INTERRUPTED, "unreachable", "rate_limit", "overloaded"}) | NEVER_CHARGED
"""Reasons of attempts that do not use up what a task may take."""
_USED = frozenset({Attempt.Outcome.REJECTED, Attempt.Outcome.ERROR, Attempt.Outcome.UNKNOWN})


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


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from a call: facts to commit together, in their order."""

    facts: tuple[Fact, ...] = ()
    settled: bool = False
    """The task gets no further call, if the ledger takes what they say (`Judging.kept`)."""
    unless_copied: Wording | None = None
    """A reasoning that is worth a re-solve unless it is a near-copy (`Judging.near_copy_of`, `Judging.copied`)."""

    @property
    def accepted(self) -> Accepted | None:
        """The completion that it takes."""
        return next((fact for fact in self.facts if isinstance(fact, Accepted)), None)


class Judging:
    """The tasks of one run, call by call. One worker's; nothing here waits for anything."""

    def __init__(self, run: Run, *, ever_answered: bool = False) -> None:
        self.ever_answered = ever_answered
        """Whether the endpoint has given this run a completion: until then, a bad request is not the task's fault."""
        self._run = run
        self._endpoint = run.endpoint
        self._approach = IN_JSON if run.json_answers else APPROACHES[run.approach]
        self._most = Reserve(Decimal(0), 0)

    def waiting(self, run_task: RunTask) -> Waiting:
        """A task as its rows tell of it (selectors.waiting_tasks)."""
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

    # The next call

    def intent(self, waiting: Waiting) -> Intent:
        """The next call, to be written down before it is made."""
        number = waiting.calls + 1
        return Intent(
            waiting.run_task.pk,
            number,
            self._reserve(waiting),
            shown=self._order(waiting, number),
            resolves=waiting.to_resolve[0] if waiting.to_resolve is not None else None,
        )

    def request(self, waiting: Waiting, attempt: Attempt, images: list[str]) -> Request:
        """What it says. `images`: original and candidates, as data URIs or addresses."""
        form = self._approach.response_format
        options: dict[str, Any] = {"response_format": form(waiting.question)} if form else {}
        if self._run.logprobs:
            options["logprobs"] = True
        if (choices := self._choices(waiting)) > 1:
            options["n"] = choices
        messages = in_order(openai_messages(self._prompt(waiting), images), attempt.shown)
        return Request(messages, self._temperature(waiting), self._run.max_tokens, options)

    def _prompt(self, waiting: Waiting) -> Prompt:
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
            usd=max(self._cost(input_tokens, output_tokens), self._most.usd),
            tokens=max(input_tokens + output_tokens, self._most.tokens),
        )

    def _cost(self, *tokens: int) -> Decimal:
        return cost_of(self._endpoint, *tokens, batched=self._run.batched)

    def calls_at_once(self, waiting: Waiting) -> int:
        """How many calls about a task may be on their way together: missing samples do not wait for one another."""
        missing = max(1, self._run.samples - len(waiting.samples))
        return 1 if self._choices(waiting) > 1 else missing

    def _choices(self, waiting: Waiting) -> int:
        """How many completions the next call asks for: all that are missing, where the endpoint can and they are to
        see the same."""
        missing = max(1, self._run.samples - len(waiting.samples))
        return 1 if self._run.permute or not self._endpoint.can(Feature.CHOICES) else missing

    def _order(self, waiting: Waiting, number: int) -> str:
        return order_shown(waiting.run_task.task_id, number, waiting.question.candidates) if self._run.permute else ""

    # What came of it

    def answered(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> Step:
        """A response that is kept, and what was read in it."""
        self.count(reading)
        if reading.problem:
            return self._refuse_reply(waiting, attempt, Rejected(reading.problem, reading.detail), reading.final)
        self.ever_answered = True
        if attempt.resolves_id is not None:
            return self._judge_resolve(waiting, attempt, reading)
        if self._run.samples > 1:
            return self._judge_samples(waiting, attempt, reading)
        verdict = self._approach.judge(waiting.question, reading.text)
        if isinstance(verdict, Rejected):
            return self._refuse(waiting, attempt, verdict)
        if not self._wants_resolve and not waiting.resolve_is_paid_for:
            confidence = answer_probability(reading.tokens) if self._run.logprobs else None
            return _accept(self._accepted(waiting, attempt, verdict, confidence))
        waiting.to_resolve, waiting.unread = (attempt, verdict), 0
        # Looked for again where it is accepted; known before, it saves a call.
        return Step(unless_copied=Wording(waiting.run_task, verdict.rationale) if self._run.project.near_copy else None)

    def near_copy_of(self, wording: Wording) -> NearCopy | None:
        """Whose words a reasoning repeats. The one function here that asks the database."""
        threshold = self._run.project.near_copy
        return find_near_copy(self._run.project_id, threshold, wording) if threshold else None

    def best_first(self, waiting: Waiting) -> list[tuple[Attempt, str]]:
        """A task's unjudged answers; of several samples the bad ones last, so that none of them ends the task before
        the good ones have voted."""
        if self._run.samples == 1:
            return list(waiting.unjudged)
        return sorted(waiting.unjudged, key=lambda answer: not self._is_sample(waiting, read_reply(answer[1])))

    def _is_sample(self, waiting: Waiting, reading: Reading) -> bool:
        texts = () if reading.problem else (reading.text, *reading.others)
        return any(not isinstance(self._approach.judge(waiting.question, text), Rejected) for text in texts)

    def copied(self, waiting: Waiting, copy: NearCopy) -> Step:
        """The reasoning that was to be solved again is another's."""
        if waiting.to_resolve is None:
            return Step()
        (attempt, _), waiting.to_resolve = waiting.to_resolve, None
        return self._refuse(waiting, attempt, Rejected(Objection.NEAR_COPY, str(copy)))

    def failed(self, waiting: Waiting, means: Means, reason: str) -> Step:
        """A call that brought no response to read. What it says about the endpoint is the caller's to see."""
        match means:
            case Means.BAD_REQUEST if not self.ever_answered:
                return Step()
            case Means.BAD_REQUEST | Means.TASK:
                return self._give_up(waiting, reason, *self._unresolved(waiting))
            case Means.BROKEN | Means.UNKNOWN:
                waiting.used += 1
                if self.used_up(waiting):
                    return self._give_up(waiting, reason, *self._unresolved(waiting))
        return Step()

    def hopeless(self, waiting: Waiting, reason: str) -> Step:
        """No call about this task can be made."""
        return self._give_up(waiting, reason, *self._unresolved(waiting))

    def resumed(self, waiting: Waiting) -> Step:
        """Once its unjudged answers are judged: the end of a task whose last worker ended between refusing and giving
        up; else nothing."""
        if waiting.objection and self.used_up(waiting):
            return self._give_up(waiting, waiting.objection, *self._unresolved(waiting))
        return Step()

    def kept(self, waiting: Waiting, step: Step) -> Step:
        """To be asked once the step's facts are committed: itself where they stand, else what follows.

        Where it was to be accepted, the ledger may have found a near-copy and refused it, and all who voted for it.
        """
        accepted = step.accepted
        if accepted is None or accepted.attempt.outcome == Attempt.Outcome.ACCEPTED:
            return step
        waiting.samples.clear()
        self._refused(waiting, accepted.attempt.reason)
        return self._give_up(waiting, accepted.attempt.reason) if self.used_up(waiting) else Step()

    def _judge_samples(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> Step:
        """Put what can be read to the other samples; once they are enough they vote."""
        verdicts = [self._approach.judge(waiting.question, text) for text in (reading.text, *reading.others)]
        taken = [verdict for verdict in verdicts if not isinstance(verdict, Rejected)]
        if not taken:
            return self._refuse(waiting, attempt, next(said for said in verdicts if isinstance(said, Rejected)))
        waiting.any_completion = True
        waiting.samples += [Sample(attempt, mapped_back(completion, attempt.shown)) for completion in taken]
        return self._vote(waiting) if len(waiting.samples) >= self._run.samples else Step()

    def _vote(self, waiting: Waiting, *facts: Fact) -> Step:
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
        outvoted = [_refusal(other, Attempt.Outcome.REJECTED, few) for other in voted.outvoted]
        return _accept(accepted, *facts, *outvoted)

    def _judge_resolve(self, waiting: Waiting, attempt: Attempt, reading: Reading) -> Step:
        """What a re-solve says about the reasoning that it was shown; unreadable, it is asked for again."""
        if waiting.to_resolve is None:
            # The project asks for other things than before the restart, and they came first.
            return Step((Read(attempt),))
        resolved = resolving.read(waiting.question, reading.text)
        if isinstance(resolved, Rejected):
            return self._refuse_reply(waiting, attempt, resolved, outcome=Attempt.Outcome.REJECTED)
        reasoned_in, reasoned = waiting.to_resolve
        waiting.to_resolve = None
        objection = resolving.compare(reasoned, resolved)
        if objection is not None:
            return self._refuse(waiting, reasoned_in, objection, Read(attempt))
        return _accept(self._accepted(waiting, reasoned_in, reasoned), Read(attempt))

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

    def _refuse(self, waiting: Waiting, attempt: Attempt, refusal: Rejected, *facts: Fact) -> Step:
        """A completion that could be read is not taken."""
        self._refused(waiting, refusal.reason)
        refused = _refusal(attempt, Attempt.Outcome.REJECTED, refusal)
        if not self.used_up(waiting):
            return Step((*facts, refused))
        return self._give_up(waiting, refusal.reason, *facts, refused)

    def _refused(self, waiting: Waiting, reason: str) -> None:
        waiting.used += 1
        waiting.any_completion = True
        waiting.objection = reason

    def _refuse_reply(
        self,
        waiting: Waiting,
        attempt: Attempt,
        refusal: Rejected,
        final: bool = False,
        outcome: Attempt.Outcome = Attempt.Outcome.ERROR,
    ) -> Step:
        """A reply without a completion, or an unreadable re-solve: the same call again, or the end of the task."""
        waiting.used += 1
        waiting.unread += 1
        refused = _refusal(attempt, outcome, refusal)
        if not final and not self.used_up(waiting):
            return Step((refused,))
        return self._give_up(waiting, refusal.reason, refused, *self._unresolved(waiting))

    def _unresolved(self, waiting: Waiting) -> list[Fact]:
        """Where a task ends before the re-solve of its reasoning could be had, the reasoning is refused with it."""
        if waiting.to_resolve is None:
            return []
        waiting.any_completion = True
        nobody = Rejected(Objection.RESOLVE_UNREAD, "nobody could be had who would solve it again")
        return [_refusal(waiting.to_resolve[0], Attempt.Outcome.REJECTED, nobody)]

    def _give_up(self, waiting: Waiting, reason: str, *facts: Fact) -> Step:
        if waiting.samples:
            return self._vote(waiting, *facts)  # those there are, against all that were wanted
        state = RunTask.State.REJECTED if waiting.any_completion else RunTask.State.FAILED
        return Step((*facts, GivenUp(run_task=waiting.run_task, state=state, reason=reason)), settled=True)

    def used_up(self, waiting: Waiting) -> bool:
        """Whether the task has had all the tries that the run gives it."""
        return waiting.used >= self._run.max_attempts

    def count(self, reading: Reading) -> None:
        """What a call took, the next one may take, too: to be known before that one is written down."""
        cost = self._cost(reading.input_tokens, reading.output_tokens, reading.cached_tokens)
        tokens = reading.input_tokens + reading.output_tokens
        self._most = Reserve(max(self._most.usd, cost), max(self._most.tokens, tokens))

    @property
    def _wants_resolve(self) -> bool:
        return self._run.approach == Approach.ANSWER_DRIVEN and self._run.project.blind_resolve


def _accept(accepted: Accepted, *facts: Fact) -> Step:
    return Step((*facts, accepted), settled=True)


def _refusal(attempt: Attempt, outcome: Attempt.Outcome, refusal: Rejected) -> Refused:
    return Refused(attempt=attempt, outcome=outcome, reason=refusal.reason, detail=refusal.detail)
