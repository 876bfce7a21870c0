"""A record: one row of an exported version, as the platform freezes it and the trainer reads it.

Reading checks every field and says in one line what was expected where. Not here: directories, manifests and hashes
of files (exports.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from trainer.contract.answers import Answer, as_answer, complement
from trainer.contract.dimensions import AnswerSource, Approach, Dimension, Polarity, Split, letters

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class RecordRefused(ValueError):
    """A row that is not a record; the message names the field and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image of an export: `path` is relative to the export directory, width and height are in upright pixels."""

    path: str
    sha256: str
    width: int
    height: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record row."""
        return {"path": self.path, "sha256": self.sha256, "width": self.width, "height": self.height}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One task's accepted answer and rationale. Where nobody wrote one, `rationale` is empty and `approach` None."""

    id: str
    sample_id: str
    split: Split
    dimension: Dimension
    polarity: Polarity
    original: ImageFile
    candidates: tuple[ImageFile, ...]
    answer: Answer
    answer_source: AnswerSource
    rationale: str
    approach: Approach | None
    annotators: int
    agreement: float | None
    prompt_version: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[ImageFile, ...]:
        """The original, then the candidates in letter order: the order of a prompt's pictures."""
        return (self.original, *self.candidates)

    def in_polarity(self, polarity: Polarity) -> Record:
        """The same judgement with its letters listed in `polarity`."""
        if polarity is self.polarity:
            return self
        return replace(self, polarity=polarity, answer=complement(self.answer, len(self.candidates)))

    def to_json(self) -> dict[str, Any]:
        """The row as it is exported (docs/export-format.md)."""
        return {
            "id": self.id,
            "sample_id": self.sample_id,
            "split": self.split.value,
            "dimension": self.dimension.value,
            "polarity": self.polarity.value,
            "original": self.original.to_json(),
            "candidates": [
                {"letter": letter, **image.to_json()}
                for letter, image in zip(letters(len(self.candidates)), self.candidates, strict=True)
            ],
            "answer": sorted(self.answer),
            "answer_source": self.answer_source.value,
            "rationale": self.rationale,
            "approach": self.approach.value if self.approach else None,
            "annotators": self.annotators,
            "agreement": self.agreement,
            "prompt_version": self.prompt_version,
            "meta": dict(self.meta),
        }


def record_from_json(row: object) -> Record:
    """Read one row. Unknown fields are ignored: a newer platform's export still trains. Raises RecordRefused."""
    if not isinstance(row, dict):
        raise RecordRefused(f"expected a JSON object, found {_kind(row)}")
    candidates = _get(row, "candidates", list)
    names = letters(len(candidates)) if 1 <= len(candidates) <= 8 else ""
    if not names:
        raise RecordRefused(f"field 'candidates': expected 1 to 8 candidates, found {len(candidates)}")
    for name, candidate in zip(names, candidates, strict=True):
        if not isinstance(candidate, dict) or candidate.get("letter") != name:
            raise RecordRefused(f"field 'candidates': expected letter {name!r} in place {names.index(name) + 1}")
    given = _get(row, "answer", list)
    try:
        answer = as_answer([str(letter) for letter in given], len(candidates))
    except ValueError as error:
        raise RecordRefused(f"field 'answer': {error}") from None
    agreement = row.get("agreement")
    if agreement is not None and not isinstance(agreement, int | float):
        raise RecordRefused(f"field 'agreement': expected a number or null, found {_kind(agreement)}")
    return Record(
        id=_get(row, "id", str),
        sample_id=_get(row, "sample_id", str),
        split=_choice(row, "split", Split),
        dimension=_choice(row, "dimension", Dimension),
        polarity=_choice(row, "polarity", Polarity),
        original=_image(_get(row, "original", dict), "original"),
        candidates=tuple(_image(c, f"candidates[{n}]") for n, c in zip(names, candidates, strict=True)),
        answer=answer,
        answer_source=_choice(row, "answer_source", AnswerSource),
        rationale=_get(row, "rationale", str),
        approach=None if row.get("approach") is None else _choice(row, "approach", Approach),
        annotators=_get(row, "annotators", int),
        agreement=agreement,
        prompt_version=_get(row, "prompt_version", str),
        meta=_get(row, "meta", dict),
    )


def canonical_json(value: object) -> str:
    """One spelling per value: sorted keys, no spaces, real characters, no NaN. What is hashed is written like this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def same_polarity(records: Iterable[Record], wanted: Polarity | None) -> list[Record]:
    """The records in one polarity: complemented to `wanted` where given, else RecordRefused when they are mixed."""
    listed = list(records)
    if wanted is not None:
        return [record.in_polarity(wanted) for record in listed]
    found = {record.polarity for record in listed}
    if len(found) > 1:
        raise RecordRefused("records of mixed polarity: export them in one, or set polarity to complement the others")
    return listed


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _get(row: dict[str, Any], name: str, kind: type[T], where: str = "") -> T:
    if name not in row:
        raise RecordRefused(f"field '{where}{name}' is missing: expected {kind.__name__}")
    value = row[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RecordRefused(f"field '{where}{name}': expected {kind.__name__}, found {_kind(value)}")
    return value


def _choice(row: dict[str, Any], name: str, choices: type[E]) -> E:
    value = _get(row, name, str)
    try:
        return choices(value)
    except ValueError:
        raise RecordRefused(f"field '{name}': expected one of {', '.join(choices)}, found {value!r}") from None


def _image(row: dict[str, Any], where: str) -> ImageFile:
    where = f"{where}."
    path = _get(row, "path", str, where)
    if path.startswith("/") or ".." in path.split("/"):
        raise RecordRefused(f"field '{where}path': expected a path inside the export, found {path!r}")
    return ImageFile(
        path=path,
        sha256=_get(row, "sha256", str, where),
        width=_get(row, "width", int, where),
        height=_get(row, "height", int, where),
    )
