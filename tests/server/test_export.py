"""Exporting: the golden export is written byte for byte, and what cannot be exported is refused in one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from annotation_server.datasets.exports import ExportFailed
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.services import create_export, create_version, export_version, start_export
from annotation_server.datasets.stored import stored_name
from annotation_server.jobs.models import Job, JobKind
from annotation_server.samples import storage
from annotation_server.samples.models import Image
from tests.server.factories import make_project
from tests.server.pictures import freeze, import_source, make_resolved_project, real_data, row
from trainer.contract.dimensions import Split
from trainer.contract.exports import read_records, verify_export

pytestmark = pytest.mark.django_db
FIXTURES = Path(__file__).parents[2] / "fixtures"


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def golden_version() -> DatasetVersion:
    project = make_project(slug="golden", name="Golden shapes", test_share=0.2, validation_share=0.2)
    import_source(project, FIXTURES / "golden_import/samples.jsonl")
    version = freeze(project, "first")
    # The one thing in an export that is not its content: when it was frozen.
    version.frozen_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    version.save()
    return version


def test_the_golden_export_is_written_byte_for_byte(tmp_path: Path) -> None:
    export_version(create_export(golden_version(), person=None, directory=tmp_path / "golden"))

    written, golden = files_in(tmp_path / "golden"), files_in(FIXTURES / "golden_export")
    # When the format is meant to change: copy tmp_path / "golden" over fixtures/golden_export, in the same commit.
    assert written.keys() == golden.keys()
    for name in golden:
        assert written[name] == golden[name], name


def test_the_contract_reads_and_verifies_the_golden_export() -> None:
    manifest = verify_export(FIXTURES / "golden_export")

    records = list(read_records(FIXTURES / "golden_export"))
    assert [record.id for record in records] == [
        "chair:extension_rationality",
        "lamp-shade:placement_layout",
        "lamp:appearance_deformation",
        "lamp:extension_rationality",
        "lamp:physical_shadow",
        "lamp:placement_layout",
        "vase:physical_shadow",
        "vase:placement_layout",
    ]
    assert manifest.splits == {split: sum(r.split == split for r in records) for split in manifest.splits}
    assert (records[0].original.width, records[0].original.height) == (24, 32)  # lies on its side as stored
    assert {record.split for record in records} == {Split.TRAIN, Split.TEST}
    assert {record.split for record in records if record.sample_id == "vase"} == {Split.TEST}  # it has gold


def test_the_card_and_croissant_say_what_is_in_it(tmp_path: Path) -> None:
    version = golden_version()
    export_version(create_export(version, person=None, directory=tmp_path / "golden"))

    card = (tmp_path / "golden/README.md").read_text()
    croissant = json.loads((tmp_path / "golden/croissant.json").read_text())
    assert card.startswith("# Golden shapes: first\n")
    assert version.version_id in card
    assert "| gold | 1 |" in card
    assert croissant["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    first = json.loads((tmp_path / "golden/records-00000.jsonl").read_text().splitlines()[0])
    assert {field["name"] for field in croissant["recordSet"][0]["field"]} <= first.keys()


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path / "in"))

    for name in ("one", "two"):
        export_version(create_export(version, person=None, directory=tmp_path / name))

    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_what_happens_to_an_export_does_not_reach_the_store(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path / "in"))
    directory = export_version(create_export(version, person=None, directory=tmp_path / "out"))
    image = next(directory.glob("images/*/*"))

    image.write_bytes(b"edited in place")

    assert storage.local_path(str(image.relative_to(directory))).read_bytes() != b"edited in place"


def test_without_a_directory_it_lies_in_the_home() -> None:
    version = golden_version()

    directory = export_version(start_export(version, person=None))

    assert verify_export(directory).version_id == version.version_id
    export = Export.objects.get()
    assert export.state == Export.State.DONE
    assert Job.objects.get(kind=JobKind.EXPORT_VERSION).object_id == export.pk
    assert export_version(export) == directory  # done already


def refused(version: DatasetVersion, directory: Path, form: str = "native") -> str:
    before = files_in(directory) if directory.is_dir() else None
    export = create_export(version, person=None, directory=directory, form=form)
    with pytest.raises(ExportFailed) as told:
        export_version(export)
    export.refresh_from_db()
    assert (export.state, export.error) == (Export.State.FAILED, str(told.value))
    assert (files_in(directory) if directory.is_dir() else None) == before
    assert not directory.with_name(directory.name + ".partial").exists()
    return export.error


def test_it_refuses(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path / "in"))
    unfrozen = create_version(version.project, "later", person=None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")

    assert refused(version, tmp_path / "out", "parquet") == "the format 'parquet' is not built yet: expected 'native'"
    assert "there is no format 'zip'" in refused(version, tmp_path / "out", "zip")
    assert "is freezing: expected a frozen version" in refused(unfrozen, tmp_path / "out")
    assert "expected a new or empty directory" in refused(version, tmp_path / "full")
    assert "file" in refused(version, tmp_path / "file" / "below")


def test_it_refuses_a_version_with_a_withdrawn_image(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path / "in", row("bottle")))
    image = Image.objects.get(samples_as_original__external_id="bottle")
    Image.objects.filter(pk=image.pk).update(withdrawn_at=timezone.now())
    storage.delete(image.path)

    assert f"1 of its images were withdrawn ({image.path} first)" in refused(version, tmp_path / "out")


def test_it_refuses_where_stored_bytes_are_gone_or_changed(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path / "in", row("bottle")))
    image = storage.local_path(Image.objects.get(samples_as_original__external_id="bottle").path)
    content = image.read_bytes()

    image.unlink()
    assert f"{image}: the image of this record is gone" in refused(version, tmp_path / "out")
    image.write_bytes(content[:-1])
    assert f"{image}: the stored bytes are not those" in refused(version, tmp_path / "out")
    image.unlink()
    storage.put(str(image.relative_to(image.parents[2])), content)

    records = storage.local_path(stored_name(version.version_id))
    whole = records.read_bytes()
    records.unlink()
    assert f"{records} is missing" in refused(version, tmp_path / "out")
    records.write_bytes(whole[: len(whole) // 2])
    assert f"{records} was changed" in refused(version, tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = golden_version()

    call_command("export_version", "golden/first", str(tmp_path / "a"))
    call_command("export_version", version.version_id[:8], str(tmp_path / "b"), "--format", "native")

    assert f"golden/first: 8 records exported to {tmp_path / 'a'}" in capsys.readouterr().out
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


@pytest.mark.parametrize(
    ("version", "form", "code", "why"),
    [
        ("golden/other", "native", 2, "there is no frozen version 'golden/other'"),
        ("abc", "native", 2, "at least eight characters"),
        ("golden/first", "parquet", 1, "not built yet"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path: Path, version: str, form: str, code: int, why: str) -> None:
    golden_version()

    with pytest.raises(CommandError, match=why) as told:
        call_command("export_version", version, str(tmp_path / "out"), "--format", form)

    assert told.value.returncode == code


def test_all_real_samples_go_out_again(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (real_data() / "samples.jsonl").read_text().splitlines()]
    answers = {"appearance_deformation": ["A"], "physical_shadow": [], "placement_layout": ["A", "B"]}
    source = tmp_path / "samples.jsonl"
    for given in rows:
        given |= {"original": str(real_data() / given["original"]), "answers": answers}
        given["candidates"] = [str(real_data() / path) for path in given["candidates"]]
    source.write_text("".join(json.dumps(given) + "\n" for given in rows))
    project = make_project()
    import_source(project, source)

    directory = export_version(create_export(freeze(project), person=None, directory=tmp_path / "out"))

    assert sum(verify_export(directory).splits.values()) == 3 * len(rows)
