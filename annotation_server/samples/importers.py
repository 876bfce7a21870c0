"""Reading what is to be imported: a JSON-lines file, or a directory with a folder per sample, as rows.

Every mistake becomes one line that names file, row and field and says what was expected; all of them are collected
before anybody is told. The formats stand in docs/import-format.md.
Not here: looking into the images (services.py), comparing with what is there and writing (annotations/imports.py).
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.contract.answers import Answer
from trainer.contract.dimensions import DIMENSIONS, LETTERS, MAX_CANDIDATES
from trainer.contract.records import canonical_json

ROWS_FILE = "samples.jsonl"
MOST_CANDIDATES = len(string.ascii_uppercase)
"""Of one row; more than a sample can hold are split among several samples of the same original."""

_SHOWN = 20
_FIELDS = ("external_id", "original", "candidates", "dimensions", "answers", "rationales", "gold", "meta")


class ImportRefused(ValueError):
    """An import with mistakes: one line per mistake, the first twenty and how many more there are."""


@dataclass(slots=True)
class Mistakes:
    """What is wrong with an import, found so far."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, what: str) -> None:
        """One mistake: where it stands, and what was expected there."""
        self.count += 1
        if self.count <= _SHOWN:
            self.lines.append(f"{where}: {what}")

    @property
    def enough(self) -> bool:
        """Whether further ones would not be shown anyway."""
        return self.count >= _SHOWN

    def refuse(self) -> None:
        """Raise ImportRefused where there is any."""
        if self.count:
            more = self.count - len(self.lines)
            raise ImportRefused("\n".join([*self.lines, *([f"and {more} more mistakes"] if more else [])]))


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sample as the source describes it. Image paths are files; nobody has looked into them yet."""

    where: str
    """File and row, or folder: how a mistake about this sample begins."""
    external_id: str
    original: str
    candidates: tuple[str, ...]
    dimensions: tuple[str, ...]
    answers: Mapping[str, Answer] = field(default_factory=dict)
    rationales: Mapping[str, str] = field(default_factory=dict)
    gold: Mapping[str, Answer] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> Iterator[tuple[str, str]]:
        """(field, path) of every image, the original first."""
        yield "original", self.original
        for letter, path in zip(LETTERS, self.candidates, strict=False):
            yield f"candidates[{letter}]", path


@dataclass(frozen=True, slots=True)
class ReadSource:
    """The rows of a source that are well formed, and what was done differently than one might expect."""

    rows: list[SampleRow]
    notes: list[str]


def read_source(source: Path, asked: Sequence[str], mistakes: Mistakes) -> ReadSource:
    """Every sample of a source for a project that asks the dimensions `asked`; what is malformed goes to `mistakes`."""
    if source.is_dir() and (source / ROWS_FILE).is_file():
        source = source / ROWS_FILE
    if source.is_dir():
        given = _read_folders(source, tuple(asked), mistakes)
    elif source.is_file():
        given = _read_lines(source, tuple(asked), mistakes)
    else:
        mistakes.add(str(source), f"no such file or directory: expected a {ROWS_FILE}, or a folder per sample")
        return ReadSource([], [])
    rows: list[SampleRow] = []
    notes: list[str] = []
    first: dict[str, str] = {}
    for whole in given:
        parts = _split(whole)
        if len(parts) > 1:
            notes.append(_split_note(whole, parts))
        for row in parts:
            if row.external_id in first:
                mistakes.add(
                    row.where,
                    f"field 'external_id': {row.external_id!r} is used already by {first[row.external_id]}: "
                    "expected each once",
                )
                continue
            first[row.external_id] = row.where
            rows.append(row)
    if not rows and not mistakes.count:
        mistakes.add(str(source), "there is no sample in it")
    return ReadSource(rows, notes)


def _split(row: SampleRow) -> list[SampleRow]:
    """As many samples of the same original as the candidates need, evenly filled; answers follow their letters."""
    count = len(row.candidates)
    parts = -(-count // MAX_CANDIDATES)
    if parts == 1:
        return [row]
    bounds = [count * part // parts for part in range(parts + 1)]
    return [
        replace(
            row,
            external_id=f"{row.external_id}-part{number}",
            candidates=row.candidates[start:end],
            answers={dimension: _within(answer, start, end) for dimension, answer in row.answers.items()},
            # A rationale speaks of all candidates by letters they no longer have.
            rationales={},
            gold={dimension: _within(answer, start, end) for dimension, answer in row.gold.items()},
        )
        for number, (start, end) in enumerate(pairwise(bounds), start=1)
    ]


def _within(answer: Answer, start: int, end: int) -> Answer:
    names = string.ascii_uppercase
    return frozenset(names[at - start] for at in range(start, end) if names[at] in answer)


def _split_note(whole: SampleRow, parts: Sequence[SampleRow]) -> str:
    names = ", ".join(f"{part.external_id} ({len(part.candidates)})" for part in parts)
    note = f"{whole.where}: {len(whole.candidates)} candidates, split into samples of the same original: {names}"
    return note + ("; its rationales are left out, since letters changed" if whole.rationales else "")


# A directory with a folder per sample


def _read_folders(source: Path, asked: tuple[str, ...], mistakes: Mistakes) -> Iterator[SampleRow]:
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            yield _folder_row(folder, asked)
        except _FieldRefused as error:
            mistakes.add(str(folder), str(error))


def _folder_row(folder: Path, asked: tuple[str, ...]) -> SampleRow:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = path.stem
        if not path.is_file() or (name != "original" and name not in string.ascii_uppercase):
            raise _FieldRefused(f"unexpected {path.name!r}: expected original.* and candidates A.*, B.* and so on")
        if name in found:
            raise _FieldRefused(f"both {found[name].name!r} and {path.name!r}: expected one")
        found[name] = path
    original = found.pop("original", None)
    if original is None:
        raise _FieldRefused("no original.*: expected the original image")
    missing = [letter for letter in string.ascii_uppercase[: len(found) or 1] if letter not in found]
    if missing:
        raise _FieldRefused(f"no {missing[0]}.*: expected candidates A.*, B.* and so on without a gap")
    return SampleRow(
        where=str(folder),
        external_id=_external_id(folder.name),
        original=str(original),
        candidates=tuple(str(found[letter]) for letter in sorted(found)),
        dimensions=asked,
    )


# A JSON-lines file


class _FieldRefused(ValueError):
    """Something in a row that is not as expected; the message names the field."""


def _read_lines(source: Path, asked: tuple[str, ...], mistakes: Mistakes) -> Iterator[SampleRow]:
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{source} row {number}"
            try:
                yield _line_row(where, source.parent, _parse(line.removeprefix(b"\xef\xbb\xbf")), asked)
            except _FieldRefused as error:
                mistakes.add(where, str(error))


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _FieldRefused(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _FieldRefused(
            f"not JSON ({error.msg} at character {error.colno}): expected one object per line"
        ) from None
    except RecursionError:
        raise _FieldRefused("not JSON that can be read: nested too deeply") from None
    if not isinstance(row, dict):
        raise _FieldRefused(f"expected a JSON object, found {_kind(row)}")
    try:
        # NaN, infinities and lone surrogates pass json.loads, and no database or strict reader takes them later.
        canonical_json(row).encode()
    except (ValueError, RecursionError):
        raise _FieldRefused("a value JSON does not have: NaN, an infinity or half a character") from None
    if _holds_nul(row):
        raise _FieldRefused("a text with a NUL character, which a database cannot keep")
    return row


def _line_row(where: str, base: Path, row: dict[str, Any], asked: tuple[str, ...]) -> SampleRow:
    for name in row:
        if name not in _FIELDS:
            raise _FieldRefused(f"unknown field {name!r}: expected some of {', '.join(_FIELDS)}")
    candidates = tuple(
        _image_path(base, path, f"candidates[{number}]")
        for number, path in enumerate(_value(row, "candidates", list), start=1)
    )
    if not 1 <= len(candidates) <= MOST_CANDIDATES:
        raise _FieldRefused(f"field 'candidates': expected 1 to {MOST_CANDIDATES} images, found {len(candidates)}")
    dimensions = _dimensions(row, asked)
    answers = _answers(row, "answers", dimensions, len(candidates))
    return SampleRow(
        where=where,
        external_id=_external_id(_value(row, "external_id", str)),
        original=_image_path(base, _value(row, "original", str), "original"),
        candidates=candidates,
        dimensions=dimensions,
        answers=answers,
        rationales=_rationales(row, answers),
        gold=_answers(row, "gold", dimensions, len(candidates)),
        meta=_optional(row, "meta"),
    )


def _external_id(value: str) -> str:
    if not 1 <= len(value) <= 180 or value != value.strip() or not value.isprintable():
        # 180: a split adds "-partN", and the column holds 200.
        raise _FieldRefused(f"field 'external_id': expected 1 to 180 printable characters, found {value[:40]!r}")
    return value


def _image_path(base: Path, value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise _FieldRefused(f"field '{name}': expected the path of an image, found {_kind(value)}")
    if value.lower().startswith(("http://", "https://")):
        raise _FieldRefused(f"field '{name}': URLs are not fetched yet: expected the path of a downloaded image")
    return str(base / value)


def _dimensions(row: dict[str, Any], asked: tuple[str, ...]) -> tuple[str, ...]:
    if "dimensions" not in row:
        return asked
    given = _value(row, "dimensions", list)
    for name in given:
        _known_dimension(name, "dimensions")
        if name not in asked:
            raise _FieldRefused(
                f"field 'dimensions': this project does not ask {name!r}: expected some of {_or(asked)}"
            )
    if not given or len(set(given)) != len(given):
        raise _FieldRefused("field 'dimensions': expected at least one dimension, each once")
    return tuple(given)


def _known_dimension(name: object, where: str) -> None:
    if not isinstance(name, str) or name not in DIMENSIONS:
        raise _FieldRefused(f"field '{where}': unknown dimension {name!r}: expected some of {_or(DIMENSIONS)}")


def _answers(row: dict[str, Any], name: str, dimensions: tuple[str, ...], count: int) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    allowed = string.ascii_uppercase[:count]
    for dimension, given in _optional(row, name).items():
        _known_dimension(dimension, name)
        if dimension not in dimensions:
            raise _FieldRefused(
                f"field '{name}': {dimension!r} is not asked of this sample: expected {_or(dimensions)}"
            )
        if not isinstance(given, list):
            raise _FieldRefused(f"field '{name}.{dimension}': expected a list of letters, found {_kind(given)}")
        for letter in given:
            if not isinstance(letter, str) or len(letter) != 1 or letter not in allowed:
                raise _FieldRefused(
                    f"field '{name}.{dimension}': unknown letter {letter!r}: expected some of {_or(allowed)}"
                )
        answers[dimension] = frozenset(given)
    return answers


def _rationales(row: dict[str, Any], answers: Mapping[str, Answer]) -> dict[str, str]:
    rationales = _optional(row, "rationales")
    for dimension, text in rationales.items():
        if dimension not in answers:
            raise _FieldRefused(f"field 'rationales': {dimension!r} has no entry in 'answers': expected one with it")
        if not isinstance(text, str):
            raise _FieldRefused(f"field 'rationales.{dimension}': expected a text, found {_kind(text)}")
    return rationales


def _value(row: dict[str, Any], name: str, kind: type[Any]) -> Any:
    if name not in row:
        raise _FieldRefused(f"field '{name}' is missing: expected {_NAMES[kind]}")
    if not isinstance(row[name], kind):
        raise _FieldRefused(f"field '{name}': expected {_NAMES[kind]}, found {_kind(row[name])}")
    return row[name]


def _optional(row: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = _value({name: {}} | row, name, dict)
    return found


_NAMES: dict[type[Any], str] = {str: "a text", list: "a list", dict: "an object"}


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return _NAMES.get(type(value)) or ("a number" if isinstance(value, int | float) else type(value).__name__)


def _or(words: Sequence[str]) -> str:
    return ", ".join(words)


def _holds_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case list():
            return any(_holds_nul(part) for part in value)
        case dict():
            return any(_holds_nul(key) or _holds_nul(part) for key, part in value.items())
        case _:
            return False
