"""A graded answer, and the two files of them: what was answered so far, and all of it with its scores.

``answers.jsonl`` grows as answers come, so that an evaluation that is broken off goes on where it was; what has been
paid for is never asked again. ``predictions.jsonl`` is written at the end. Not here: asking (evaluate.py).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config import Refused
from trainer.contract.answers import Answer
from trainer.contract.records import Record
from trainer.contract.scores import ChanceLevels, RewardWeights, ScoreVariant, chance_levels, grade, score

PREDICTIONS, ANSWERS = "predictions.jsonl", "answers.jsonl"
FIGURES: dict[str, ScoreVariant] = {
    "exact": ScoreVariant.EXACT,
    "dpa": ScoreVariant.BALANCED,
    "per_candidate": ScoreVariant.HAMMING,
}
"""The figures of the table. Per candidate is the share of candidates judged right."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One graded answer: a row of predictions.jsonl."""

    record_id: str
    sample_id: str
    dimension: str
    candidates: int
    gold: Answer
    answer: Answer | None
    refusal: str | None
    text: str

    def score(self, variant: ScoreVariant) -> float:
        """What this answer scores."""
        return score(variant, self.answer, self.gold, self.candidates)

    def to_json(self) -> dict[str, Any]:
        """As it stands in predictions.jsonl."""
        return asdict(self) | {
            "gold": sorted(self.gold),
            "answer": None if self.answer is None else sorted(self.answer),
            **{name: self.score(variant) for name, variant in FIGURES.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of asking about one record."""

    text: str
    refused: str = ""
    """Why the endpoint would not answer this one, in its words; empty when it did."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """How long it took, the time in queues and retries included."""
    passing: bool = False
    """Refused by a failure that may have passed when it is asked again."""


class AnswerLog:
    """answers.jsonl of one evaluation: a head that says of what, then a row per answer, in the order they came.

    A file of another evaluation (another model, export, prompt or length) is put aside under a number, never lost.
    """

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self.path = path
        self.known: dict[str, Answered] = {}
        self.put_aside: Path | None = None
        """Where a file of another evaluation went."""
        self._writing = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not self._read(of):
            taken = [path.with_name(f"answers-{number}.jsonl") for number in range(1, 1000)]
            self.put_aside = next(other for other in taken if not other.exists())
            path.rename(self.put_aside)
        if not path.exists():
            path.write_text(json.dumps({"of": of}, ensure_ascii=False) + "\n", encoding="utf-8")

    def add(self, record_id: str, answered: Answered) -> None:
        """One more row, on disk before this returns; what failed in passing is known only until the log is opened."""
        if not answered.passing:
            told = {name: value for name, value in asdict(answered).items() if name != "passing"}
            row = json.dumps({"record_id": record_id, **told}, ensure_ascii=False)
            with self._writing, self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(row + "\n")
        self.known[record_id] = answered

    def _read(self, of: dict[str, Any]) -> bool:
        """Take over what is known; False when the file is about something else."""
        whole = self.path.read_text(encoding="utf-8", errors="replace")
        # Not splitlines: an answer may hold a line separator of Unicode, which is no end of a row.
        *lines, begun = whole.split("\n")
        try:
            if json.loads(lines[0])["of"] != of:
                return False
            for line in lines[1:]:
                row = json.loads(line)
                record_id = row.pop("record_id")
                self.known[record_id] = Answered(**row)
        except (ValueError, KeyError, TypeError, IndexError):
            self.known = {}
            return False
        if begun:  # a row that was being written when the process was killed
            partial = self.path.with_name(f"{self.path.name}.partial")
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            partial.replace(self.path)
        return True


def predict(record: Record, text: str, refused: str = "") -> Prediction:
    """A completion about a record, graded; `refused` where there is none."""
    found = grade(text, record.answer, len(record.candidates), RewardWeights())
    return Prediction(
        record_id=record.id,
        sample_id=record.sample_id,
        dimension=record.dimension.value,
        candidates=len(record.candidates),
        gold=record.answer,
        answer=found.answer,
        refusal="not_answered" if refused else found.refusal.value if found.refusal else None,
        text=text,
    )


def chance_of(variant: ScoreVariant, predictions: Sequence[Prediction]) -> ChanceLevels:
    """What chance would score in the place of these predictions."""
    return chance_levels(
        variant,
        [one.answer for one in predictions],
        [one.gold for one in predictions],
        [one.candidates for one in predictions],
        [one.dimension for one in predictions],
    )


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a predictions.jsonl. Refused names the file when it is not one."""
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                fields = {name: row[name] for name in Prediction.__slots__}
                answer = None if row["answer"] is None else frozenset(row["answer"])
                found.append(Prediction(**fields | {"gold": frozenset(row["gold"]), "answer": answer}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path}: cannot be read as predictions ({error})") from None
    return found
