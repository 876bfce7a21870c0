"""Hard Cases Mining: remember how often each record is answered exactly, and choose what is trained on next.

The rules are those of docs/design.md, "Hard cases (ours)"; docs/hard-cases.md explains them to whoever trains. The
paper (arXiv 2511.10055) says that hard cases are found and shown more often; its thresholds are not known to us, so
every number here is ours and a setting. Difficulty comes from the rollouts that training makes anyway; only the mining
pass before the first step (`pass_generations`) makes more, and they are counted with the others.
Not here: answering (rollout.py), grading (rewards.py), writing files (grpo.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trainer.config import require
from trainer.contract.answers import Answer, format_answer
from trainer.contract.scores import Grade

UNREADABLE = "unreadable"
"""Stands among a record's counted answers for completions that could not be parsed."""


class HardCaseMode(StrEnum):
    """When hard records come back."""

    OFF = "off"
    """Never: plain GRPO. Records are still classed and counted, so that two runs can be compared."""
    ONLINE = "online"
    """A share of every batch is drawn from the hard pool."""
    STAGED = "staged"
    """Every pass over the records is a stage; what was hard at its start stands in it several times."""


class RecordClass(StrEnum):
    """Where a record stands."""

    UNSEEN = "unseen"
    COLD = "cold"
    """Visited, no exact answer yet. Met by ordinary sampling only: replaying it teaches nothing."""
    HARD = "hard"
    """Sometimes exact: 0 < p̂ ≤ hard_at_most. Replayed."""
    LEARNING = "learning"
    """Exact more often than hard records, not solved yet."""
    SOLVED = "solved"
    """p̂ ≥ solved_at_least on the last solved_visits visits."""
    PARKED = "parked"
    """parked_visits visits without one exact answer."""


@dataclass(frozen=True, kw_only=True)
class HardCaseConfig:
    """The rules' numbers. Every default is ours."""

    mode: HardCaseMode = HardCaseMode.ONLINE
    """How hard records come back."""
    ema: float = 0.5
    """Weight of the newest visit in p̂, the running exact-match rate. Ours."""
    hard_at_most: float = 0.5
    """p̂ above 0 and up to here is hard. Ours."""
    solved_at_least: float = 0.9
    """p̂ from here on counts towards solved. Ours."""
    solved_visits: int = 2
    """Visits in a row at or above `solved_at_least` that make a record solved. Ours."""
    parked_visits: int = 3
    """Visits without one exact answer that park a record. Ours."""
    suspect_share: float = 0.75
    """Share of a parked record's rollouts giving one same other answer that makes its label suspect. Ours."""
    replay_share: float = 0.25
    """Online: share of each batch drawn from the hard pool, in proportion to 1 − p̂. Ours."""
    max_replays_per_epoch: int = 3
    """Online: how often one record is replayed in one pass; without a cap training was unstable. Ours."""
    stage_repeats: int = 2
    """Staged: how often a hard record stands in the next stage. Ours."""
    rest_solved: bool = False
    """Leave solved records out of ordinary sampling, as online mode does with parked ones. Ours."""
    pass_generations: int = 0
    """Completions per record of a mining pass before the first step; 0 leaves it out. They count as rollouts. Ours."""
    pass_records: int = 0
    """Records of the mining pass, spread over all; 0 takes every one. Ours."""

    def __post_init__(self) -> None:
        for name in ("ema", "hard_at_most", "solved_at_least", "suspect_share"):
            value = getattr(self, name)
            require(0 < value <= 1, f"mining.{name}: expected more than 0 and at most 1, got {value:g}")
        require(self.solved_at_least > self.hard_at_most, "mining.solved_at_least: expected more than hard_at_most")
        require(
            0 <= self.replay_share < 1,
            f"mining.replay_share: expected 0 or more and less than 1, got {self.replay_share:g}",
        )
        for name in ("solved_visits", "parked_visits", "stage_repeats"):
            require(getattr(self, name) >= 1, f"mining.{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("max_replays_per_epoch", "pass_generations", "pass_records"):
            require(getattr(self, name) >= 0, f"mining.{name}: expected 0 or more, got {getattr(self, name)}")


@dataclass(slots=True)
class History:
    """What is remembered of one record."""

    p: float = 0.0
    """p̂: the running exact-match rate."""
    visits: int = 0
    exact: int = 0
    """Exact answers over all visits; p̂ alone could underflow to 0."""
    high_streak: int = 0
    """Visits in a row, up to the last, after which p̂ was at or above `solved_at_least`."""
    answers: Counter[str] = field(default_factory=Counter)
    """How often each answer was given, over all visits, spelled by `format_answer`, or UNREADABLE."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A record chosen for a batch, and why."""

    record_id: str
    replay: bool


class ReviewReason(StrEnum):
    """Why the platform is asked to look at a record again."""

    SUSPECT_LABEL = "suspect_label"
    """Parked, and at least `suspect_share` of its rollouts gave one same other answer: the label may be wrong."""
    PARKED = "parked"
    """No exact answer in `parked_visits` visits, and no voice against the label: too hard, or not to be seen."""


@dataclass(frozen=True, slots=True)
class Review:
    """A parked record: a row of review.jsonl."""

    record_id: str
    reason: ReviewReason
    standing_answer: str
    model_answer: str | None
    """The readable answer its rollouts gave most often; None when none could be read."""
    share: float
    """Share of all its rollouts that gave `model_answer`."""
    rollouts: int
    visits: int


class HardCases:
    """Chooses batches and learns from their grades. Deterministic: all chance comes from the seed."""

    def __init__(self, standing: Mapping[str, Answer], config: HardCaseConfig, seed: int) -> None:
        """`standing`: every trainable record's id and the answer that stands. ValueError when there is none."""
        if not standing:
            raise ValueError("there is no record to train on")
        self.config = config
        self.epoch = 0
        self.replays_drawn = 0
        """Replays over the whole run."""
        self.rollouts = 0
        """Completions seen so far, a mining pass's among them: what a run cost."""
        self._standing = dict(standing)
        self._ids = list(standing)
        self._rng = random.Random(seed)  # noqa: S311
        self._histories: dict[str, History] = {}
        self._hard: dict[str, None] = {}
        """The hard pool, a dict for its order: a set's would differ between processes."""
        self._replays: Counter[str] = Counter()
        self._order: list[int] = []
        self._decisions: list[dict[str, Any]] = []
        self._start_epoch()

    def draw_batch(self, size: int) -> list[Draw]:
        """The next `size` records: replays from the hard pool first, ordinary sampling for the rest."""
        replays = self._draw_replays(size)
        chosen = {draw.record_id for draw in replays}
        draws = replays + [Draw(self._next_ordinary(chosen), replay=False) for _ in range(size - len(replays))]
        self._decisions.append(
            {
                "decision": "batch",
                "pass": [draw.record_id for draw in draws if not draw.replay],
                "replay": [draw.record_id for draw in draws if draw.replay],
            }
        )
        return draws

    def begin_stage(self) -> None:
        """Lay the current pass out anew from what is known by now: after a mining pass, the first stage knows it."""
        self._start_epoch()

    def take_decisions(self) -> list[dict[str, Any]]:
        """Everything decided since the last call, in order: stages, batches, records that changed class."""
        taken, self._decisions = self._decisions, []
        return taken

    def observe(self, record_id: str, grades: Sequence[Grade]) -> RecordClass:
        """Take in one visit: the grades of a record's whole group. Returns the class it is in now."""
        before = self.class_of(record_id)
        history = self._histories.setdefault(record_id, History())
        self.rollouts += len(grades)
        rate = sum(grade.exact for grade in grades) / len(grades)
        history.p = rate if history.visits == 0 else (1 - self.config.ema) * history.p + self.config.ema * rate
        history.visits += 1
        history.exact += round(sum(grade.exact for grade in grades))
        history.high_streak = history.high_streak + 1 if history.p >= self.config.solved_at_least else 0
        history.answers.update(UNREADABLE if grade.answer is None else format_answer(grade.answer) for grade in grades)
        now = self.class_of(record_id)
        if now is RecordClass.HARD:
            self._hard[record_id] = None
        else:
            self._hard.pop(record_id, None)
        if now is not before:
            self._decisions.append(
                {
                    "decision": "moved",
                    "record": record_id,
                    "from": before.value,
                    "to": now.value,
                    "p": round(history.p, 4),
                    "visits": history.visits,
                }
            )
        return now

    def class_of(self, record_id: str) -> RecordClass:
        """The class a record is in by the rules."""
        history = self._histories.get(record_id)
        if history is None:
            return RecordClass.UNSEEN
        if history.exact == 0:
            return RecordClass.PARKED if history.visits >= self.config.parked_visits else RecordClass.COLD
        if history.high_streak >= self.config.solved_visits:
            return RecordClass.SOLVED
        return RecordClass.HARD if history.p <= self.config.hard_at_most else RecordClass.LEARNING

    def counts(self) -> dict[str, int]:
        """Number of records per class; every class is named."""
        visited = Counter(self.class_of(record_id) for record_id in self._histories)
        visited[RecordClass.UNSEEN] = len(self._ids) - len(self._histories)
        return {kind.value: visited[kind] for kind in RecordClass}

    def history_of(self, record_id: str) -> History:
        """What is remembered of a record; an empty history when it was never visited."""
        return self._histories.get(record_id, History())

    def difficulties(self) -> list[dict[str, Any]]:
        """Every visited record with its class and 1 − p̂, in the records' order: rows of difficulty.jsonl."""
        return [
            {
                "record_id": record_id,
                "class": self.class_of(record_id).value,
                "difficulty": round(1 - history.p, 4),
                "visits": history.visits,
                "rollouts": history.answers.total(),
                "exact": history.exact,
            }
            for record_id in self._ids
            if (history := self._histories.get(record_id)) is not None
        ]

    def for_review(self) -> list[Review]:
        """Parked records, suspect labels told apart from the merely too hard, in the records' order."""
        found = []
        for record_id in self._ids:
            if self.class_of(record_id) is not RecordClass.PARKED:
                continue
            history = self._histories[record_id]
            rollouts = history.answers.total()
            given = [(times, answer) for answer, times in history.answers.items() if answer != UNREADABLE]
            times, answer = max(given) if given else (0, None)
            suspect = answer is not None and times >= self.config.suspect_share * rollouts
            reason = ReviewReason.SUSPECT_LABEL if suspect else ReviewReason.PARKED
            standing = format_answer(self._standing[record_id])
            found.append(Review(record_id, reason, standing, answer, times / rollouts, rollouts, history.visits))
        return found

    def _draw_replays(self, size: int) -> list[Draw]:
        if self.config.mode is not HardCaseMode.ONLINE:
            return []
        cap = self.config.max_replays_per_epoch
        pool = {
            record_id: 1 - self._histories[record_id].p for record_id in self._hard if self._replays[record_id] < cap
        }
        draws: list[Draw] = []
        for _ in range(min(len(pool), int(size * self.config.replay_share + 0.5))):
            record_id = self._rng.choices(list(pool), list(pool.values()))[0]
            del pool[record_id]
            self._replays[record_id] += 1
            self.replays_drawn += 1
            draws.append(Draw(record_id, replay=True))
        return draws

    def _next_ordinary(self, replayed: set[str]) -> str:
        """The next record of the pass. One that this batch replays waits, unless nothing else is left of the pass."""
        if not self._order:
            self.epoch += 1
            self._start_epoch()
        for place in range(len(self._order) - 1, -1, -1):
            if self._ids[self._order[place]] not in replayed:
                return self._ids[self._order.pop(place)]
        return self._ids[self._order.pop()]

    def _start_epoch(self) -> None:
        """Lay out one pass: every record that does not rest once; in staged mode hard ones several times."""
        self._replays.clear()
        order: list[int] = []
        for index, record_id in enumerate(self._ids):
            match self.class_of(record_id):
                case RecordClass.SOLVED if self.config.rest_solved and self.config.mode is not HardCaseMode.OFF:
                    continue
                case RecordClass.PARKED if self.config.mode is HardCaseMode.ONLINE:
                    continue
                case RecordClass.HARD if self.config.mode is HardCaseMode.STAGED:
                    order += [index] * self.config.stage_repeats
                case _:
                    order.append(index)
        # When every record rests there is nothing better to do than to try them all again.
        self._order = order or list(range(len(self._ids)))
        self._rng.shuffle(self._order)
        twice = Counter(order)
        self._decisions.append(
            {
                "decision": "stage",
                "epoch": self.epoch,
                "mode": self.config.mode.value,
                "rollouts": self.rollouts,
                "draws": len(self._order),
                "repeated": [self._ids[index] for index, times in twice.items() if times > 1],
                "resting": len(self._ids) - len(twice),
                "classes": self.counts(),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next draws, as JSON."""
        version, internal, gauss = self._rng.getstate()
        return {
            "records": len(self._ids),
            "epoch": self.epoch,
            "replays_drawn": self.replays_drawn,
            "rollouts": self.rollouts,
            "rng": [version, list(internal), gauss],
            "order": list(self._order),
            "hard": list(self._hard),
            "replays": dict(self._replays),
            "histories": {
                record_id: [h.p, h.visits, h.exact, h.high_streak, dict(h.answers)]
                for record_id, h in self._histories.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. ValueError when it was made with other records."""
        if state["records"] != len(self._ids) or not state["histories"].keys() <= self._standing.keys():
            raise ValueError("the hard-case state was saved with other records than these")
        version, internal, gauss = state["rng"]
        self._rng.setstate((version, tuple(internal), gauss))
        self.epoch = state["epoch"]
        self.replays_drawn = state["replays_drawn"]
        self.rollouts = state["rollouts"]
        self._decisions.clear()  # the first stage, which the run before this one has told
        self._order = list(state["order"])
        self._hard = dict.fromkeys(state["hard"])
        self._replays = Counter(state["replays"])
        self._histories = {
            record_id: History(p, visits, exact, streak, Counter(answers))
            for record_id, (p, visits, exact, streak, answers) in state["histories"].items()
        }
