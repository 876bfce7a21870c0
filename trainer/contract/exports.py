"""The export directory: what passes from the platform to the trainer, written, read and verified in one place.

Layout: ``records-00000.jsonl…``, ``images/ab/<sha256>.<ext>``, further files the platform adds (README.md,
croissant.json), and ``manifest.json``, written last: a directory with a manifest is complete.
Not here: choosing what is exported (annotation_server/datasets), turning images into pixels (trainer/data.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trainer.contract.dimensions import Polarity, Split
from trainer.contract.records import Record, RecordRefused, canonical_json, record_from_json

FORMAT = "winnow-native"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RECORDS_PER_FILE = 20_000
_CHUNK = 1 << 20


class ExportRefused(ValueError):
    """An export that cannot be written, read or trusted; the message names the file, row and field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an export says of itself. `version_id` is content alone; names, dates and costs are outside of it."""

    version_id: str
    polarity: Polarity
    prompt_versions: Mapping[str, str]
    splits: Mapping[str, int]
    """Number of records per split."""
    files: Mapping[str, Mapping[str, Any]]
    """Per path relative to the directory: ``{"sha256": …, "bytes": …}``; every file but the manifest itself."""
    about: Mapping[str, Any]
    """Names, dates and whatever else describes the version without being part of it."""

    @property
    def record_files(self) -> list[str]:
        """The record shards in order."""
        return sorted(path for path in self.files if path.startswith("records-"))

    def to_json(self) -> dict[str, Any]:
        """As it stands in manifest.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "version_id": self.version_id,
            "polarity": self.polarity.value,
            "prompt_versions": dict(self.prompt_versions),
            "splits": dict(self.splits),
            "files": {path: dict(entry) for path, entry in sorted(self.files.items())},
            "about": dict(self.about),
        }


class VersionHasher:
    """The id of a version, from records given one by one in order of id.

    It equals the sha256 of the canonical JSON of ``{format_version, polarity, prompt_versions, records, splits}``
    without ever holding the records together (source: docs/design.md, decision 6).
    """

    def __init__(self, polarity: Polarity, prompt_versions: Mapping[str, str]) -> None:
        self._hash = hashlib.sha256()
        self._last_id: str | None = None
        self.polarity = polarity
        self.splits: dict[str, int] = {}
        head = canonical_json(
            {
                "format_version": FORMAT_VERSION,
                "polarity": polarity.value,
                "prompt_versions": dict(prompt_versions),
            }
        )
        self._hash.update((head[:-1] + ',"records":[').encode())

    def add(self, record: Record) -> str:
        """Count one record in and return its canonical line. ValueError when ids do not rise or polarities mix."""
        if self._last_id is not None and record.id <= self._last_id:
            raise ValueError(f"record {record.id!r} after {self._last_id!r}: ids must rise and be unique")
        if record.polarity is not self.polarity:
            raise ValueError(
                f"record {record.id!r} lists {record.polarity} candidates in a version of {self.polarity} ones"
            )
        line = canonical_json(record.to_json())
        self._hash.update((line if self._last_id is None else "," + line).encode())
        self._last_id = record.id
        self.splits[record.split.value] = self.splits.get(record.split.value, 0) + 1
        return line

    def version_id(self) -> str:
        """The sha256 in hex of everything added so far."""
        closed = self._hash.copy()
        closed.update(f'],"splits":{canonical_json(self.splits)}}}'.encode())
        return closed.hexdigest()


def write_export(
    directory: Path,
    *,
    records: Iterable[Record],
    polarity: Polarity,
    prompt_versions: Mapping[str, str],
    image_source: Callable[[str], Path],
    about: Mapping[str, Any],
    extra_files: Callable[[Manifest], Mapping[str, bytes]] = lambda manifest: {},
    on_record: Callable[[int], None] = lambda done: None,
) -> Manifest:
    """Write a complete export directory; nothing stands at `directory` unless all of it does.

    `records` come in order of id; `image_source` maps a record's image path to a file holding those bytes, which
    is copied. `extra_files` gets the manifest so far and returns further files.
    Raises ExportRefused when `directory` exists and is not empty, or an image's bytes are not what the record says.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ExportRefused(f"{directory}: expected a new or empty directory")
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = _write_files(
            partial, records, polarity, prompt_versions, image_source, about, extra_files, on_record
        )
        told = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False)
        (partial / MANIFEST).write_text(f"{told}\n", encoding="utf-8")
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _write_files(
    partial: Path,
    records: Iterable[Record],
    polarity: Polarity,
    prompt_versions: Mapping[str, str],
    image_source: Callable[[str], Path],
    about: Mapping[str, Any],
    extra_files: Callable[[Manifest], Mapping[str, bytes]],
    on_record: Callable[[int], None],
) -> Manifest:
    hasher = VersionHasher(polarity, prompt_versions)
    files: dict[str, dict[str, Any]] = {}
    count = 0
    for shard in _in_shards(records):
        path = partial / f"records-{count // RECORDS_PER_FILE:05d}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for record in shard:
                file.write(hasher.add(record) + "\n")
                for image in record.images:
                    if image.path not in files:
                        files[image.path] = _place_image(image_source(image.path), partial / image.path, image.sha256)
                count += 1
                on_record(count)
        files[path.name] = _entry(path)
    if count == 0:
        raise ExportRefused("there is no record to export")
    manifest = Manifest(
        version_id=hasher.version_id(),
        polarity=polarity,
        prompt_versions=dict(prompt_versions),
        splits=dict(sorted(hasher.splits.items())),
        files=files,
        about=about,
    )
    for name, content in extra_files(manifest).items():
        (partial / name).write_bytes(content)
        files[name] = _entry(partial / name)
    return manifest


def _in_shards(records: Iterable[Record]) -> Iterator[Iterator[Record]]:
    rest = iter(records)
    for first in rest:
        yield chain([first], islice(rest, RECORDS_PER_FILE - 1))


def _place_image(source: Path, target: Path, sha256: str) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A copy, not a link: what somebody does to an export must never reach the platform's own bytes.
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise ExportRefused(f"{source}: the image of this record is gone from storage") from None
    entry = _entry(target)
    if entry["sha256"] != sha256:
        raise ExportRefused(f"{source}: the stored bytes are not those of sha256 {sha256}")
    return entry


def _entry(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an export. Raises ExportRefused when it is missing (the export is not complete) or unreadable."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise ExportRefused(f"{directory}: no such directory")
    if not path.exists():
        raise ExportRefused(f"{path} is missing: expected a complete export, whose manifest is written last")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
            raise ExportRefused(
                f"{path}: expected format {FORMAT} version {FORMAT_VERSION}, "
                f"found {found.get('format')} version {found.get('format_version')}"
            )
        for name in ("prompt_versions", "splits", "files", "about"):
            if not isinstance(found[name], dict):
                raise ExportRefused(f"{path}: field '{name}': expected an object")
        for name, entry in found["files"].items():
            if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys():
                raise ExportRefused(f"{path}: field 'files': expected sha256 and bytes of {name}")
        return Manifest(
            version_id=str(found["version_id"]),
            polarity=Polarity(found["polarity"]),
            prompt_versions=found["prompt_versions"],
            splits=found["splits"],
            files=found["files"],
            about=found["about"],
        )
    except ExportRefused:
        raise
    except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ExportRefused(f"{path}: not a manifest ({error})") from None


def read_records(directory: Path, split: Split | None = None) -> Iterator[Record]:
    """The records of an export in order, of one split where given. Raises ExportRefused naming file and row."""
    for name in read_manifest(directory).record_files:
        path = directory / name
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    record = _read_row(path, number, line)
                    if split is None or record.split is split:
                        yield record
        except OSError as error:
            raise ExportRefused(f"{path}: {error.strerror}") from None


def _read_row(path: Path, number: int, line: bytes) -> Record:
    try:
        return record_from_json(json.loads(line))
    except json.JSONDecodeError as error:
        raise ExportRefused(f"{path} row {number}: not JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise ExportRefused(f"{path} row {number}: not UTF-8") from None
    except RecordRefused as error:
        raise ExportRefused(f"{path} row {number}: {error}") from None


def verify_export(directory: Path, on_file: Callable[[int, int], None] = lambda done, total: None) -> Manifest:
    """Prove an export: every listed file is there with its bytes, nothing else is, and the records give the id.

    Raises ExportRefused naming the first file that differs; `on_file` gets (files done, files in all).
    """
    manifest = read_manifest(directory)
    for done, (name, entry) in enumerate(sorted(manifest.files.items()), start=1):
        path = directory / name
        if not path.is_file():
            raise ExportRefused(f"{path} is missing")
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            raise ExportRefused(f"{path} was changed: its bytes are not those of the manifest")
        on_file(done, len(manifest.files))
    present = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    if stray := sorted(present - set(manifest.files) - {MANIFEST}):
        raise ExportRefused(f"{directory / stray[0]} is not listed in the manifest")
    hasher = VersionHasher(manifest.polarity, manifest.prompt_versions)
    try:
        for record in read_records(directory):
            for image in record.images:
                if manifest.files.get(image.path, {}).get("sha256") != image.sha256:
                    raise ExportRefused(f"record {record.id!r}: image {image.path} is not the one in the manifest")
            hasher.add(record)
    except ValueError as error:
        raise ExportRefused(str(error) if isinstance(error, ExportRefused) else f"{directory}: {error}") from None
    if hasher.version_id() != manifest.version_id:
        raise ExportRefused(f"{directory / MANIFEST}: version_id is not that of the records")
    if dict(manifest.splits) != dict(sorted(hasher.splits.items())):
        raise ExportRefused(f"{directory / MANIFEST}: the split counts are not those of the records")
    return manifest
