"""Importing samples: whole samples with images, tasks, answers and gold, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from annotation_server.annotations import imports
from annotation_server.annotations.models import Annotation, Annotator, GoldAnswer
from annotation_server.annotations.services import record_annotations
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Project
from annotation_server.samples import services, storage
from annotation_server.samples.importers import ImportRefused
from annotation_server.samples.models import Image, ImportBatch, Sample
from annotation_server.samples.services import create_import, start_import
from annotation_server.tasks.models import Slot, Task
from tests.server.factories import make_project
from tests.server.pictures import draw_files, encoded, import_source, picture, real_data, row, write_rows

pytestmark = pytest.mark.django_db


def refused(project: Project, source: Path) -> str:
    batch = create_import(project, str(source), "source", person=None)
    with pytest.raises(ImportRefused) as told:
        imports.import_batch(batch)
    batch.refresh_from_db()
    assert batch.state == ImportBatch.State.FAILED
    assert batch.error == str(told.value)
    return batch.error


def test_it_works(tmp_path: Path) -> None:
    project = make_project(overlap=2)
    source = write_rows(
        tmp_path,
        row("bottle", meta={"generator": "sdxl"}, dimensions=["physical_shadow", "placement_layout"])
        | {"answers": {"physical_shadow": ["A", "C"]}, "rationales": {"physical_shadow": "B floats."}}
        | {"gold": {"placement_layout": []}},
        row("cup", original="5.png", candidates=["6.png"]),
    )

    batch = import_source(project, source, name="vendor")

    assert batch.state == ImportBatch.State.DONE
    assert (batch.created_samples, batch.unchanged_samples, batch.created_images) == (2, 0, 7)
    assert (batch.imported_annotations, batch.gold_answers) == (1, 1)
    bottle = project.samples.get(external_id="bottle")
    assert bottle.meta == {"generator": "sdxl"}
    assert [candidate.letter for candidate in bottle.candidates.all()] == ["A", "B", "C", "D"]
    assert storage.local_path(bottle.original.path).read_bytes() == (tmp_path / "0.png").read_bytes()
    assert set(bottle.tasks.values_list("dimension", flat=True)) == {"physical_shadow", "placement_layout"}
    assert project.tasks.filter(sample__external_id="cup", candidate_count=1).count() == 4
    # Two votes on each of six tasks; the one with gold wants none.
    assert Slot.objects.filter(project=project).count() == 2 * 5
    said = Annotation.objects.get()
    assert (said.annotator.name, said.annotator.kind) == ("vendor", Annotator.Kind.IMPORT)
    assert said.answer == {"A", "C"}
    assert (said.rationale, said.standing) == ("B floats.", Annotation.Standing.VOTE)
    assert GoldAnswer.objects.get().answer == frozenset()


def test_importing_twice_changes_nothing_and_says_so(tmp_path: Path) -> None:
    project = make_project()
    source = write_rows(tmp_path, row(answers={"physical_shadow": ["A"]}, gold={"placement_layout": ["B"]}))
    import_source(project, source)
    before = [model.objects.count() for model in (Sample, Image, Task, Slot, Annotation, GoldAnswer)]

    batch = import_source(project, source)

    assert [model.objects.count() for model in (Sample, Image, Task, Slot, Annotation, GoldAnswer)] == before
    assert (batch.created_samples, batch.unchanged_samples, batch.imported_annotations) == (0, 1, 0)


def test_a_second_import_decodes_no_image_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project()
    source = write_rows(tmp_path, row())
    import_source(project, source)
    monkeypatch.setattr(services, "clean", lambda *_: pytest.fail("decoded again"))

    import_source(project, source)


def test_answers_that_come_later_are_added_to_the_samples_that_are_there(tmp_path: Path) -> None:
    project = make_project()
    import_source(project, write_rows(tmp_path, row()))

    batch = import_source(project, write_rows(tmp_path, row(answers={"physical_shadow": ["A"]})))

    assert (batch.unchanged_samples, batch.imported_annotations) == (1, 1)
    assert project.tasks.filter(state="resolved").count() == 1


@pytest.mark.parametrize(
    ("first", "later", "why"),
    [
        ({}, {"original": "7.png"}, "field 'external_id': 'bottle' is in the project with other images"),
        ({}, {"candidates": ["2.png", "1.png", "3.png", "4.png"]}, "other images"),
        ({"answers": {"physical_shadow": ["A"]}}, {"answers": {"physical_shadow": ["B"]}}, "another answer"),
        ({"gold": {"physical_shadow": ["A"]}}, {"gold": {"physical_shadow": []}}, "field 'gold.physical_shadow'"),
        (
            {"dimensions": ["physical_shadow"]},
            {"answers": {"placement_layout": ["A"]}},
            "'bottle' was imported without 'placement_layout'",
        ),
    ],
)
def test_it_refuses_what_differs_from_an_earlier_import(
    tmp_path: Path, first: dict[str, Any], later: dict[str, Any], why: str
) -> None:
    project = make_project()
    import_source(project, write_rows(tmp_path, row(**first)))

    told = refused(project, write_rows(tmp_path, row("cup", original="5.png"), row(**later)))

    assert f"{tmp_path / 'samples.jsonl'} row 2: " in told
    assert why in told
    assert not project.samples.filter(external_id="cup").exists()


def test_a_killed_import_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project()
    source = write_rows(tmp_path, *(row(f"bottle-{number}", answers={"physical_shadow": []}) for number in range(5)))
    batch = create_import(project, str(source), "source", person=None)
    monkeypatch.setattr(imports, "_ROWS_AT_ONCE", 4)  # two samples with an answer each

    def killed(rows: Any) -> Any:
        if project.samples.count() > 2:
            raise KeyboardInterrupt
        return record_annotations(rows)

    with monkeypatch.context() as patched:
        patched.setattr(imports, "record_annotations", killed)
        with pytest.raises(KeyboardInterrupt):
            imports.import_batch(batch)
    assert project.samples.count() == 2
    assert Annotation.objects.count() == 2

    imports.import_batch(batch)

    batch.refresh_from_db()
    assert (batch.state, batch.created_samples, batch.unchanged_samples) == (ImportBatch.State.DONE, 5, 0)
    assert batch.imported_annotations == Annotation.objects.count() == 5


def test_a_done_import_is_not_done_again(tmp_path: Path) -> None:
    project = make_project()
    batch = import_source(project, write_rows(tmp_path, row()))
    shutil.rmtree(tmp_path)

    imports.import_batch(batch)


def test_groups_of_more_than_eight_are_split_and_it_says_so(tmp_path: Path) -> None:
    project = make_project()
    files = [f"{number}.png" for number in range(1, 10)]
    source = write_rows(tmp_path, row(candidates=files, answers={"physical_shadow": ["A", "D", "E", "I"]}))

    batch = import_source(project, source)

    parts = {sample.external_id: sample for sample in project.samples.all()}
    assert {name: sample.candidates.count() for name, sample in parts.items()} == {"bottle-part1": 4, "bottle-part2": 5}
    assert parts["bottle-part1"].original == parts["bottle-part2"].original
    assert Annotation.objects.get(task__sample=parts["bottle-part1"]).answer == {"A", "D"}
    assert Annotation.objects.get(task__sample=parts["bottle-part2"]).answer == {"A", "E"}
    assert "9 candidates, split into samples of the same original: bottle-part1 (4), bottle-part2 (5)" in batch.notes
    assert import_source(project, source).unchanged_samples == 2


def test_a_withdrawn_image_does_not_come_back(tmp_path: Path) -> None:
    project = make_project()
    source = write_rows(tmp_path, row())
    import_source(project, source)
    Image.objects.filter(samples_as_original__external_id="bottle").update(withdrawn_at=timezone.now())

    told = refused(make_project(), source)

    assert "field 'original'" in told
    assert "withdrawn on" in told


def test_bytes_lost_from_the_store_are_stored_again(tmp_path: Path) -> None:
    source = write_rows(tmp_path, row())
    project = make_project()
    import_source(project, source)
    lost = project.samples.get().original.path
    storage.delete(lost)

    import_source(make_project(), source)

    assert storage.exists(lost)


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    batch = create_import(make_project(), str(write_rows(tmp_path, row())), "source", person=None)

    imports.import_batch(batch, lambda done, total, message: told.append((done, total, message)))

    assert told[-2:] == [(5, 5, "checking images"), (1, 1, "writing samples")]


def test_an_import_can_be_left_to_a_worker(tmp_path: Path) -> None:
    batch = start_import(make_project(), str(tmp_path), "source", person=None)

    assert Job.objects.get(kind=JobKind.IMPORT_BATCH).object_id == batch.pk


def test_a_folder_per_sample(tmp_path: Path) -> None:
    project = make_project()
    for name, count in (("bottle", 5), ("cup", 3)):
        draw_files(tmp_path / name, count)
        for number, letter in enumerate(["original", *"ABCD"[: count - 1]]):
            (tmp_path / name / f"{number}.png").rename(tmp_path / name / f"{letter}.png")
    (tmp_path / "cup" / "B.png").rename(tmp_path / "cup" / "B.jpeg")  # what it is called does not matter
    (tmp_path / ".hidden").mkdir()

    batch = import_source(project, tmp_path)

    assert batch.created_samples == 2
    assert project.samples.get(external_id="cup").candidates.count() == 2


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["A.png"], "no original.*"),
        (["original.png"], "no A.*"),
        (["original.png", "A.png", "C.png"], "no B.*: expected candidates A.*, B.* and so on without a gap"),
        (["original.png", "A.png", "A.jpg"], "both 'A.jpg' and 'A.png'"),
        (["original.png", "A.png", "notes.txt"], "unexpected 'notes.txt'"),
    ],
)
def test_a_folder_that_is_not_a_sample_is_refused(tmp_path: Path, files: list[str], why: str) -> None:
    folder = tmp_path / "bottle"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(encoded(drawn=picture()))

    assert refused(make_project(), tmp_path).startswith(f"{folder}: ")
    assert why in ImportBatch.objects.get().error


def test_all_real_samples_come_in() -> None:
    source = real_data()
    rows = [json.loads(line) for line in (source / "samples.jsonl").read_text().splitlines()]

    batch = import_source(make_project(), source / "samples.jsonl")
    folders = import_source(make_project(), source / "groups")

    assert batch.created_samples == len(rows)
    assert batch.created_images == len({path for row in rows for path in (row["original"], *row["candidates"])})
    assert folders.created_samples == len(list((source / "groups").iterdir()))
