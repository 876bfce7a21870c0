"""The export directory: content-addressed, complete or absent, and every change named by its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.made import make_record, records
from trainer.contract import exports
from trainer.contract.dimensions import Polarity, Split
from trainer.contract.exports import (
    ExportRefused,
    VersionHasher,
    read_manifest,
    read_records,
    verify_export,
    write_export,
)
from trainer.contract.records import ImageFile, Record, canonical_json

PROMPTS = {"ask": "ask-1"}


def image_file(content: bytes) -> ImageFile:
    sha256 = hashlib.sha256(content).hexdigest()
    return ImageFile(path=f"images/{sha256[:2]}/{sha256}.png", sha256=sha256, width=8, height=6)


@pytest.fixture
def store(tmp_path: Path) -> Callable[[str], Path]:
    """Where three images lie."""
    for content in (b"one", b"two", b"three"):
        path = tmp_path / "store" / image_file(content).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return lambda name: tmp_path / "store" / name


def three_records() -> list[Record]:
    one, two, three = (image_file(content) for content in (b"one", b"two", b"three"))
    return [
        make_record(id="a", original=one, candidates=(two,), answer=frozenset("A")),
        make_record(id="b", original=one, candidates=(two, three), answer=frozenset(), split=Split.TEST),
        make_record(id="c", original=three, candidates=(one,), answer=frozenset()),
    ]


@pytest.fixture
def export(tmp_path: Path, store: Callable[[str], Path]) -> Path:
    write(tmp_path / "export", three_records(), store)
    return tmp_path / "export"


def write(directory: Path, given_records: list[Record], store: Callable[[str], Path]) -> None:
    write_export(
        directory,
        records=given_records,
        polarity=Polarity.ACCEPTABLE,
        prompt_versions=PROMPTS,
        image_source=store,
        about={"name": "tëst"},
        extra_files=lambda manifest: {"README.md": f"{manifest.version_id}\n".encode()},
    )


def test_it_works(export: Path) -> None:
    manifest = verify_export(export)

    assert list(read_records(export)) == three_records()
    assert [record.id for record in read_records(export, Split.TEST)] == ["b"]
    assert manifest == read_manifest(export)
    assert manifest.splits == {"test": 1, "train": 2}
    assert manifest.about == {"name": "tëst"}
    assert (export / "README.md").read_text() == f"{manifest.version_id}\n"
    assert len(list(export.glob("images/*/*"))) == 3


@given(st.lists(records(), max_size=4, unique_by=lambda record: record.id))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_id_is_the_hash_of_the_naive_canonical_json(some: list[Record]) -> None:
    some = [record.in_polarity(Polarity.FLAWED) for record in sorted(some, key=lambda record: record.id)]
    hasher = VersionHasher(Polarity.FLAWED, PROMPTS)
    lines = [hasher.add(record) for record in some]

    splits = [record.split.value for record in some]
    naive = canonical_json(
        {
            "format_version": 1,
            "polarity": "flawed",
            "prompt_versions": PROMPTS,
            "records": [json.loads(line) for line in lines],
            "splits": {split: splits.count(split) for split in set(splits)},
        }
    )
    assert hasher.version_id() == hashlib.sha256(naive.encode()).hexdigest()


def test_ids_rise_and_polarities_do_not_mix() -> None:
    hasher = VersionHasher(Polarity.ACCEPTABLE, PROMPTS)
    hasher.add(make_record(id="b"))

    for again in ("b", "a"):
        with pytest.raises(ValueError, match="ids must rise and be unique"):
            hasher.add(make_record(id=again))
    with pytest.raises(ValueError, match="lists flawed candidates in a version of acceptable ones"):
        hasher.add(make_record(id="c", polarity=Polarity.FLAWED))


def test_many_records_are_several_files(
    tmp_path: Path, store: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "RECORDS_PER_FILE", 2)

    write(tmp_path / "export", three_records(), store)

    manifest = verify_export(tmp_path / "export")
    assert manifest.record_files == ["records-00000.jsonl", "records-00001.jsonl"]
    assert list(read_records(tmp_path / "export")) == three_records()


@pytest.mark.parametrize("name", ["records-00000.jsonl", "README.md", image_file(b"two").path])
def test_one_changed_byte_is_named(export: Path, name: str) -> None:
    content = bytearray((export / name).read_bytes())
    content[-1] ^= 1
    (export / name).write_bytes(content)

    with pytest.raises(ExportRefused) as told:
        verify_export(export)
    assert str(told.value) == f"{export / name} was changed: its bytes are not those of the manifest"


def test_a_missing_and_a_stray_file_are_named(export: Path) -> None:
    stray = export / "images" / "extra.png"
    stray.write_bytes(b"x")
    with pytest.raises(ExportRefused, match="is not listed in the manifest") as told:
        verify_export(export)
    assert str(told.value).startswith(str(stray))

    (export / "README.md").unlink()
    with pytest.raises(ExportRefused, match=r"README\.md is missing"):
        verify_export(export)


def rewritten(export: Path, **changes: object) -> None:
    """Change the manifest, whose own bytes nothing lists."""
    manifest = json.loads((export / "manifest.json").read_text())
    (export / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version_id": "0" * 64}, "version_id is not that of the records"),
        ({"prompt_versions": {"ask": "ask-2"}}, "version_id is not that of the records"),
        ({"polarity": "flawed"}, "lists acceptable candidates in a version of flawed ones"),
        ({"splits": {"train": 3}}, "the split counts are not those of the records"),
        ({"format": "other"}, "expected format winnow-native version 1, found other version 1"),
        ({"format_version": 2}, "expected format winnow-native version 1, found winnow-native version 2"),
        ({"polarity": "good"}, "not a manifest"),
        ({"files": []}, "field 'files': expected an object"),
        ({"files": {"README.md": 3}}, "field 'files': expected sha256 and bytes of README.md"),
        ({"splits": None}, "field 'splits': expected an object"),
    ],
)
def test_a_changed_manifest_is_refused(export: Path, changes: dict[str, object], why: str) -> None:
    rewritten(export, **changes)

    with pytest.raises(ExportRefused, match=why):
        verify_export(export)


def test_records_changed_together_with_the_manifest_do_not_give_the_id(export: Path) -> None:
    path = export / "records-00000.jsonl"
    path.write_text(path.read_text().replace('"answer":["A"]', '"answer":[]'))
    manifest = json.loads((export / "manifest.json").read_text())
    content = path.read_bytes()
    manifest["files"][path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    rewritten(export, files=manifest["files"])

    with pytest.raises(ExportRefused, match="version_id is not that of the records"):
        verify_export(export)


def test_a_directory_without_a_manifest_is_not_an_export(export: Path, tmp_path: Path) -> None:
    (export / "manifest.json").write_text("{")
    with pytest.raises(ExportRefused, match="not a manifest"):
        read_manifest(export)
    (export / "manifest.json").unlink()
    with pytest.raises(ExportRefused, match="expected a complete export, whose manifest is written last"):
        read_manifest(export)
    with pytest.raises(ExportRefused, match="no such directory"):
        read_manifest(tmp_path / "gone")


def test_a_row_that_is_no_record_is_named_by_file_and_row(export: Path) -> None:
    path = export / "records-00000.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", lines[2]]))
    with pytest.raises(ExportRefused, match=r"records-00000\.jsonl row 2: not JSON"):
        list(read_records(export))
    path.write_bytes(lines[0].encode() + b"\n\xff\n")
    with pytest.raises(ExportRefused, match=r"records-00000\.jsonl row 2: not UTF-8"):
        list(read_records(export))
    path.write_text("\n".join([lines[0], lines[1].replace('"split"', '"side"')]))
    with pytest.raises(ExportRefused, match=r"records-00000\.jsonl row 2: field 'split' is missing"):
        list(read_records(export))


def test_nothing_stands_where_writing_failed(tmp_path: Path, store: Callable[[str], Path]) -> None:
    directory = tmp_path / "export"
    store(image_file(b"three").path).unlink()

    with pytest.raises(ExportRefused, match="the image of this record is gone"):
        write(directory, three_records(), store)
    store(image_file(b"three").path).write_bytes(b"other")
    with pytest.raises(ExportRefused, match="the stored bytes are not those of sha256"):
        write(directory, three_records(), store)
    with pytest.raises(ExportRefused, match="there is no record to export"):
        write(directory, [], store)

    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_it_writes_only_into_a_new_or_empty_directory(tmp_path: Path, store: Callable[[str], Path]) -> None:
    directory = tmp_path / "export"
    directory.mkdir()
    (directory / "mine.txt").write_text("mine")
    with pytest.raises(ExportRefused, match="expected a new or empty directory"):
        write(directory, three_records(), store)
    (directory / "mine.txt").unlink()

    write(directory, three_records(), store)

    verify_export(directory)


def test_what_happens_to_an_export_does_not_reach_its_source(export: Path, store: Callable[[str], Path]) -> None:
    name = image_file(b"two").path

    (export / name).write_bytes(b"edited")

    assert store(name).read_bytes() == b"two"
