"""The demo's scripted person: knows what was drawn, errs at a stated rate, and works through the public API only.

A simulation, and labelled as one wherever its figures stand. Not here: the order of the demo (demo.py).
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from annotation_server.client import Client

_SENTENCE = re.compile(r"(?=\b[A-H]: )")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is true of a task, as its drawing says."""

    answer: frozenset[str]
    rationale: str


def read_drawn(*sources: Path) -> dict[tuple[str, str], Drawn]:
    """Truth by (sample, dimension), from files of `fixtures.scenes` written with --answers."""
    truth = {}
    for source in sources:
        for line in source.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for dimension, answer in row["answers"].items():
                truth[row["external_id"], dimension] = Drawn(frozenset(answer), row["rationales"][dimension])
    return truth


class SimulatedPerson:
    """Answers tasks by the truth; at `error_rate`, one candidate of a task is misjudged."""

    def __init__(self, client: Client, truth: dict[tuple[str, str], Drawn], error_rate: float, seed: int) -> None:
        self._client, self._truth, self._error_rate = client, truth, error_rate
        self._dice = random.Random(seed)
        self.mistakes = 0

    def annotate(self, project: str, tasks: int, *, with_rationale: bool) -> None:
        """Answer the next `tasks` tasks of the queue. ValueError when there are fewer."""
        for done in range(1, tasks + 1):
            claimed = self._client.next_task(project)
            if claimed is None:
                raise ValueError(f"the queue of {project} ended after {done - 1} of {tasks} tasks")
            drawn = self._truth[claimed.sample, claimed.dimension]
            answer, rationale = drawn.answer, drawn.rationale
            if self._dice.random() < self._error_rate:
                self.mistakes += 1
                letter = self._dice.choice("ABCDEFGH"[: claimed.candidate_count])
                answer = answer ^ {letter}
                rationale = _misjudged(rationale, letter, fine=letter in answer, answer=answer)
            self._client.submit(project, claimed, answer, rationale if with_rationale else "")


def _misjudged(rationale: str, letter: str, *, fine: bool, answer: frozenset[str]) -> str:
    """The rationale with one candidate judged the other way, as somebody would who overlooked or imagined a defect."""
    lead, *parts = [part.strip() for part in _SENTENCE.split(rationale.partition(" Fine:")[0])]
    sentences = [lead] if lead else []
    for part in parts:
        seen = "nothing stands out, fine" if fine else "something looks off, flawed"
        sentences.append(f"{letter}: {seen}." if part[0] == letter else part)
    names = [part[0] for part in parts]
    flawed = ", ".join(name for name in names if name not in answer) or "none"
    return " ".join([*sentences, f"Fine: {', '.join(sorted(answer)) or 'none'}. Flawed: {flawed}."])
