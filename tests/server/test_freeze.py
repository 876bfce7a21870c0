"""Freezing: what is resolved becomes a version whose id is its content."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from annotation_server.annotations.services import add_gold, model_annotator
from annotation_server.datasets.freeze import from_aside, one_view
from annotation_server.datasets.models import DatasetVersion, Split, SplitAssignment
from annotation_server.datasets.services import FreezeRefused, create_version, freeze_version, start_freeze
from annotation_server.datasets.splits import assign_sides, side_by_content, sides
from annotation_server.datasets.stored import stored_name, stored_records
from annotation_server.jobs.models import Job, JobKind
from annotation_server.projects.models import Project
from annotation_server.samples import storage
from annotation_server.samples.models import Candidate, Image
from annotation_server.tasks.models import Task
from tests.server.factories import annotate, make_image, make_person, make_project, make_task
from tests.server.pictures import freeze, import_source, make_resolved_project, row, write_rows
from trainer.contract.dimensions import AnswerSource, Approach, Polarity
from trainer.contract.records import canonical_json

pytestmark = pytest.mark.django_db
SHADOW = "physical_shadow"


def test_it_works(tmp_path: Path) -> None:
    answered = row("cup", original="5.png", meta={"seed": 3}, rationales={SHADOW: "Only A stands in light."})
    project = make_resolved_project(tmp_path, row("bottle"), answered, polarity="flawed")

    version = freeze(project)

    assert version.state == DatasetVersion.State.FROZEN
    bottle, cup = stored_records(version)
    assert (bottle.id, cup.id) == ("bottle:physical_shadow", "cup:physical_shadow")
    assert cup.sample_id == "cup"
    assert cup.answer == {"A"}
    assert cup.answer_source is AnswerSource.AGREEMENT
    assert (cup.rationale, cup.approach) == ("Only A stands in light.", Approach.MANUAL)
    assert (bottle.rationale, bottle.approach) == ("", None)
    assert (cup.annotators, cup.agreement) == (1, 1.0)
    assert cup.prompt_version == "ask-1"
    assert cup.polarity is Polarity.FLAWED
    assert cup.meta == {"seed": 3}
    assert len(cup.candidates) == 4
    assert version.summary == {
        "records": 2,
        "originals": 2,
        "dimensions": {SHADOW: 2},
        "approaches": {"manual": 1, "none": 1},
        "answer_sources": {"agreement": 2},
        "withdrawn": 0,
    }
    assert sum(version.splits.values()) == 2


def test_the_id_is_the_hash_of_the_naive_canonical_json(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path))

    naive = canonical_json(
        {
            "format_version": 1,
            "polarity": "acceptable",
            "prompt_versions": {"ask": "ask-1", "explain": "explain-1", "resolve": "resolve-1"},
            "records": [record.to_json() for record in stored_records(version)],
            "splits": version.splits,
        }
    )
    assert version.version_id == hashlib.sha256(naive.encode()).hexdigest()


def test_the_same_content_gives_the_same_id_and_the_same_stored_bytes(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path)
    first = freeze(project, "v1")
    stored = storage.local_path(stored_name(first.version_id)).read_bytes()

    second = freeze(project, "v2")

    assert second.version_id == first.version_id
    assert storage.local_path(stored_name(second.version_id)).read_bytes() == stored


def test_other_content_gives_another_id_and_leaves_the_first_version_alone(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path)
    first = freeze(project, "v1")
    import_source(project, write_rows(tmp_path, row("jug", original="6.png", answers={SHADOW: []})))

    second = freeze(project, "v2")

    assert second.version_id != first.version_id
    assert [record.sample_id for record in stored_records(first)] == ["bottle", "cup"]
    assert [record.sample_id for record in stored_records(second)] == ["bottle", "cup", "jug"]


def test_a_rationale_names_the_prompt_it_answers(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path, row("bottle"))
    annotate(
        project.tasks.get(),
        model_annotator("screener"),
        "A",
        approach="answer_driven",
        rationale="A fits.",
        prompt_version="explain-1",
    )

    (record,) = stored_records(freeze(project))

    assert (record.approach, record.prompt_version) == (Approach.ANSWER_DRIVEN, "explain-1")


def test_records_come_in_order_of_id_whatever_the_database_thinks_of_it(tmp_path: Path) -> None:
    names = ["a", "a-b", "a b", "B", "ä", "a:b", "10", "9"]
    project = make_resolved_project(tmp_path, *(row(name) for name in names))

    ids = [record.id for record in stored_records(freeze(project))]

    assert ids == sorted(f"{name}:{SHADOW}" for name in names)


def test_only_resolved_tasks_are_frozen(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path, row("bottle"))
    import_source(project, write_rows(tmp_path, row("open", original="6.png")))

    assert [record.sample_id for record in stored_records(freeze(project))] == ["bottle"]


def test_nothing_resolved_is_one_clear_line() -> None:
    task = make_task()
    version = create_version(task.project, "v1", person=None)

    with pytest.raises(FreezeRefused, match="has no resolved task"):
        freeze_version(version)
    version.refresh_from_db()
    assert version.state == DatasetVersion.State.FAILED
    with pytest.raises(FreezeRefused, match="has no resolved task"):
        freeze_version(version)

    annotate(task, make_person(), "A")
    assert freeze(task.project, "v1").pk == version.pk  # the name of a failed freeze is free again


def test_a_name_is_used_once(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path)
    freeze(project, "v1")

    with pytest.raises(FreezeRefused, match="has a version 'v1' already"):
        create_version(project, "v1", person=None)
    with pytest.raises(FreezeRefused, match="cannot name a version"):
        create_version(project, "a/b", person=None)


def test_freezing_a_frozen_version_returns_its_id(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path))
    storage.delete(stored_name(version.version_id))

    assert freeze_version(version) == version.version_id


def test_one_original_is_on_one_side_and_stays_there(tmp_path: Path) -> None:
    project = make_resolved_project(
        tmp_path, *(row(f"{number}-{half}", original=f"{number}.png") for number in range(10) for half in "ab")
    )
    before = {record.original.sha256: record.split for record in stored_records(freeze(project, "v1"))}
    assert len(set(before.values())) > 1 or len(before) == 10
    project.test_share, project.validation_share = 0.5, 0.5
    project.save()
    import_source(project, write_rows(tmp_path, row("new", original="11.png", answers={SHADOW: []})))

    after: dict[str, set[str]] = {}
    for record in stored_records(freeze(project, "v2")):
        after.setdefault(record.original.sha256, set()).add(record.split)

    assert {sha256: after[sha256] for sha256 in before} == {sha256: {split} for sha256, split in before.items()}
    assert after.keys() - before.keys()


def test_the_shares_are_kept_by_content() -> None:
    project = Project(slug="p", test_share=0.2, validation_share=0.3)
    sides = [side_by_content(project, hashlib.sha256(b"%d" % number).hexdigest()) for number in range(4000)]

    assert 0.17 < sides.count(Split.TEST) / 4000 < 0.23
    assert 0.27 < sides.count(Split.VALIDATION) / 4000 < 0.33


def test_originals_with_gold_never_enter_train_and_leave_it(tmp_path: Path) -> None:
    given = [row(f"{number}", original=f"{number}.png") for number in range(10)]
    project = make_resolved_project(tmp_path, *given, test_share=0, validation_share=0)
    assert freeze(project, "v1").splits == {"train": 10}
    add_gold({project.tasks.get(sample__external_id="3"): frozenset("A")})
    import_source(project, write_rows(tmp_path, row("gold", original="10.png", gold={SHADOW: []})))

    version = freeze(project, "v2")

    assert version.splits == {"test": 2, "train": 9}
    assert {r.sample_id for r in stored_records(version) if r.split == "test"} == {"3", "gold"}
    assert SplitAssignment.objects.filter(split=Split.TEST).count() == 2


def test_gold_that_arrives_while_freezing_is_out_of_train_already(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path, row("bottle"), test_share=0, validation_share=0)
    assign_sides(project)
    add_gold({project.tasks.get(): frozenset("A")})

    assert list(sides(project).values()) == [Split.TEST]


def test_gold_on_another_sample_of_the_original_counts(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path, row("bottle"), test_share=0, validation_share=0)
    import_source(project, write_rows(tmp_path, row("twin", gold={"placement_layout": ["A"]}, candidates=["6.png"])))

    assert freeze(project).splits == {"test": 2}


def test_samples_with_a_withdrawn_image_are_left_out(tmp_path: Path) -> None:
    project = make_resolved_project(tmp_path, row("bottle", candidates=["7.png"]), row("cup", original="5.png"))
    Image.objects.filter(samples_as_candidate__sample__external_id="bottle").update(withdrawn_at=timezone.now())

    version = freeze(project)

    assert [record.sample_id for record in stored_records(version)] == ["cup"]
    assert version.summary["withdrawn"] == 1


def test_a_freeze_can_be_left_to_a_worker() -> None:
    version = start_freeze(make_project(), "v1", person=None)

    assert Job.objects.get(kind=JobKind.FREEZE_VERSION).object_id == version.pk


def test_it_reads_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_resolved_project(tmp_path, *(row(f"{number}") for number in range(7)))
    whole = freeze(project, "v1").version_id
    monkeypatch.setattr("annotation_server.datasets.freeze._AT_ONCE", 3)

    assert freeze(project, "v2").version_id == whole


@pytest.mark.django_db(transaction=True)
def test_one_view_sees_nothing_that_comes_later_and_keeps_nobody_waiting() -> None:
    project = make_project(name="before")

    def rename(name: str) -> None:
        try:
            Project.objects.filter(pk=project.pk).update(name=name)
        finally:
            connection.close()

    with one_view():
        assert Project.objects.get(pk=project.pk).name == "before"
        other = threading.Thread(target=rename, args=("after",))
        other.start()
        other.join()
        assert Project.objects.get(pk=project.pk).name == "before"
    assert Project.objects.get(pk=project.pk).name == "after"


@pytest.mark.django_db(transaction=True)
def test_progress_may_be_written_while_a_view_is_held() -> None:
    project = make_project()

    def told(done: int, total: int, message: str) -> None:
        Project.objects.filter(pk=project.pk).update(name=f"{done} of {total}")

    with from_aside(told) as tell, one_view():
        assert Project.objects.get(pk=project.pk).name != "1 of 2"
        tell(1, 2, "freezing")
        tell(2, 2, "freezing")
    assert Project.objects.get(pk=project.pk).name == "2 of 2"


@pytest.mark.django_db(transaction=True)
def test_it_works_outside_of_a_transaction(tmp_path: Path) -> None:
    version = freeze(make_resolved_project(tmp_path))

    assert version.summary["records"] == 2


def test_the_command_prints_the_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make_resolved_project(tmp_path)

    call_command("freeze_version", project.slug, "v1")

    assert capsys.readouterr().out == f"{project.versions.get().version_id}\n"


@pytest.mark.parametrize(
    ("slug", "code", "why"), [("nobody", 2, "there is no project"), ("empty", 1, "no resolved task")]
)
def test_the_command_refuses_in_one_line(slug: str, code: int, why: str) -> None:
    make_project(slug="empty")

    with pytest.raises(CommandError, match=why) as told:
        call_command("freeze_version", slug, "v1")

    assert told.value.returncode == code


def test_more_images_than_sqlite_takes_in_one_condition() -> None:
    project = make_project()
    tasks = [make_task(project) for _ in range(130)]
    Candidate.objects.bulk_create(
        Candidate(sample=task.sample, letter=letter, image=make_image()) for task in tasks for letter in "EFGH"
    )
    Task.objects.update(candidate_count=8)
    add_gold({task: frozenset("AH") for task in Task.objects.select_related("project")})

    version = freeze(project)

    assert Image.objects.count() > 1000
    assert version.summary["records"] == len(tasks)
