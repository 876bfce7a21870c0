"""Verifying: an unchanged version or export passes, any change is named by its file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from annotation_server.datasets.models import DatasetVersion
from annotation_server.datasets.services import create_export, export_version
from annotation_server.datasets.stored import stored_name
from annotation_server.samples import storage
from annotation_server.samples.models import Image
from tests.server.pictures import freeze, make_resolved_project

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    return freeze(make_resolved_project(tmp_path / "in", slug="bottles"), "v1")


@pytest.fixture
def export(version: DatasetVersion, tmp_path: Path) -> Path:
    return export_version(create_export(version, person=None, directory=tmp_path / "out"))


def verify(what: object) -> None:
    call_command("verify_version", str(what))


def not_verified(what: object) -> str:
    with pytest.raises(CommandError) as told:
        verify(what)
    assert told.value.returncode == 1
    return str(told.value)


def flip(path: Path, at: int = -5) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_it_works(version: DatasetVersion, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in (export, version.version_id, version.version_id[:8], "bottles/v1"):
        verify(what)

    directory, *stored = capsys.readouterr().out.splitlines()
    assert directory == f"ok {version.version_id} 2 records 9 files"
    assert stored == [f"ok {version.version_id} 2 records 7 files"] * 3


@pytest.mark.parametrize("name", ["records-00000.jsonl", "README.md", "croissant.json", "images/*/*"])
def test_one_changed_byte_of_an_export_is_named(export: Path, name: str) -> None:
    (path, *_) = sorted(export.glob(name))

    flip(path)

    assert not_verified(export) == f"{path} was changed: its bytes are not those of the manifest"


def test_a_missing_and_a_stray_file_of_an_export_are_named(export: Path) -> None:
    (export / "notes.txt").write_text("mine")
    assert not_verified(export) == f"{export / 'notes.txt'} is not listed in the manifest"
    (export / "README.md").unlink()
    assert not_verified(export) == f"{export / 'README.md'} is missing"
    (export / "manifest.json").unlink()
    assert "manifest.json is missing" in not_verified(export)


def test_a_file_is_not_an_export(export: Path) -> None:
    assert "no such directory" in not_verified(export / "README.md")


def test_a_changed_image_in_the_store_is_named(version: DatasetVersion) -> None:
    path = storage.local_path(Image.objects.order_by("sha256")[0].path)
    whole = path.read_bytes()

    flip(path)
    assert not_verified("bottles/v1") == f"{path} was changed: its bytes are not those of its name"
    path.unlink()
    assert not_verified("bottles/v1") == f"{path} is missing"

    storage.put(str(path.relative_to(path.parents[2])), whole)
    verify("bottles/v1")


def test_changed_records_in_the_store_are_named(version: DatasetVersion) -> None:
    path = storage.local_path(stored_name(version.version_id))
    lines = gzip.decompress(path.read_bytes())

    def store(content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    store(gzip.compress(lines.replace(b'"answer":["A"]', b'"answer":["B"]', 1)))
    assert not_verified("bottles/v1") == f"{path} was changed: its records do not give the version's id"
    store(gzip.compress(b"".join(reversed(lines.splitlines(keepends=True)))))
    assert f"{path} was changed: record" in not_verified("bottles/v1")
    store(gzip.compress(lines.replace(b'"split"', b'"side"')))
    assert f"{path} row 1: field 'split' is missing" in not_verified("bottles/v1")
    store(b"not compressed")
    assert f"{path} was changed: it cannot be read" in not_verified("bottles/v1")
    path.unlink()
    assert f"{path} is missing" in not_verified("bottles/v1")


def test_a_takedown_is_withdrawn_and_not_corrupt(version: DatasetVersion) -> None:
    image = Image.objects.get(samples_as_original__external_id="bottle")
    Image.objects.filter(pk=image.pk).update(withdrawn_at=timezone.now())
    storage.delete(image.path)

    assert not_verified("bottles/v1") == f"bottles/v1: withdrawn: 1 of 6 images, {image.path} first"


@pytest.mark.parametrize("what", ["nowhere", "bottles/v2", "abcdef0123", "abc"])
def test_what_is_neither_is_a_usage_error(version: DatasetVersion, what: str) -> None:
    with pytest.raises(CommandError, match="neither a directory nor a frozen version") as told:
        verify(what)

    assert told.value.returncode == 2
