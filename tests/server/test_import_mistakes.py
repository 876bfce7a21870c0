"""Every mistake in an import is one clear line, all are told at once, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotation_server.annotations.imports import import_batch
from annotation_server.annotations.models import Annotator
from annotation_server.projects.models import Project
from annotation_server.samples.importers import ImportRefused, Mistakes, read_source
from annotation_server.samples.models import Candidate, Image, Sample
from annotation_server.samples.services import create_import
from annotation_server.tasks.models import Slot, Task
from tests.server.factories import make_project
from tests.server.pictures import row, write_rows
from trainer.contract.dimensions import DIMENSIONS


def mistakes_in(source: Path, asked: tuple[str, ...] = tuple(DIMENSIONS)) -> list[str]:
    project = make_project(dimensions=list(asked))
    with pytest.raises(ImportRefused) as told:
        import_batch(create_import(project, str(source), "source", person=None))
    for model in (Sample, Image, Candidate, Task, Slot, Annotator):
        assert not model.objects.exists(), f"a refused import wrote a {model.__name__}"
    return str(told.value).splitlines()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in row("bad").items() if key != name}


SHADOW = "physical_shadow"
ROWS = [
    (without("external_id"), "field 'external_id' is missing: expected a text"),
    (without("original"), "field 'original' is missing: expected a text"),
    (without("candidates"), "field 'candidates' is missing: expected a list"),
    (row("bad", original="gone.png"), "field 'original': {dir}/gone.png: no such file"),
    (row("bad", candidates=["1.png", "gone.png"]), "field 'candidates[B]': {dir}/gone.png: no such file"),
    (row("bad", original="samples.jsonl"), "{dir}/samples.jsonl: not an image Winnow reads"),
    (row("bad", original="."), "field 'original': {dir}: Is a directory"),
    (row("bad", original="https://example.org/a.jpg"), "field 'original': URLs are not fetched yet"),
    (row("bad", original=None), "field 'original': expected a text, found null"),
    (row("bad", candidates=[]), "field 'candidates': expected 1 to 26 images, found 0"),
    (row("bad", candidates=["1.png"] * 27), "field 'candidates': expected 1 to 26 images, found 27"),
    (row("bad", candidates=["1.png", 7]), "field 'candidates[2]': expected the path of an image, found a number"),
    (row("bad", candidates="1.png"), "field 'candidates': expected a list, found a text"),
    (row(""), "field 'external_id': expected 1 to 180 printable characters"),
    (row("a\nb"), "field 'external_id': expected 1 to 180 printable characters"),
    (row(" a"), "field 'external_id': expected 1 to 180 printable characters"),
    (row("a" * 181), "field 'external_id': expected 1 to 180 printable characters"),
    (row() | {"external_id": 17}, "field 'external_id': expected a text, found a number"),
    (row("bad", dimensions=["shadows"]), "field 'dimensions': unknown dimension 'shadows'"),
    (row("bad", dimensions=[["x"]]), "field 'dimensions': unknown dimension ['x']"),
    (row("bad", dimensions=[]), "field 'dimensions': expected at least one dimension"),
    (row("bad", dimensions=[SHADOW, SHADOW]), "field 'dimensions': expected at least one dimension, each once"),
    (row("bad", dimensions=["extension_rationality"]), "this project does not ask 'extension_rationality'"),
    (row("bad", answers={"shadows": ["A"]}), "field 'answers': unknown dimension 'shadows'"),
    (
        row("bad", dimensions=["placement_layout"], answers={SHADOW: ["A"]}),
        "field 'answers': 'physical_shadow' is not asked of this sample: expected placement_layout",
    ),
    (row("bad", answers={SHADOW: ["E"]}), "field 'answers.physical_shadow': unknown letter 'E': expected some of A, B"),
    (row("bad", answers={SHADOW: ["a"]}), "field 'answers.physical_shadow': unknown letter 'a'"),
    (row("bad", answers={SHADOW: [1]}), "field 'answers.physical_shadow': unknown letter 1"),
    (row("bad", answers={SHADOW: "A,C"}), "field 'answers.physical_shadow': expected a list of letters, found a text"),
    (row("bad", answers=["A"]), "field 'answers': expected an object, found a list"),
    (row("bad", gold={SHADOW: ["Z"]}), "field 'gold.physical_shadow': unknown letter 'Z'"),
    (row("bad", rationales={SHADOW: "why"}), "field 'rationales': 'physical_shadow' has no entry in 'answers'"),
    (
        row("bad", answers={SHADOW: []}, rationales={SHADOW: 3}),
        "field 'rationales.physical_shadow': expected a text, found a number",
    ),
    (row("bad", answer={SHADOW: ["A"]}), "unknown field 'answer': expected some of external_id, original"),
    (row("bad", meta=[]), "field 'meta': expected an object, found a list"),
    (row("bad", meta={"score": float("nan")}), "a value JSON does not have"),
    (row("bad", meta={"text": "\ud800"}), "a value JSON does not have"),
    (row("bad", meta={"texts": [{"a\0": 1}]}), "a text with a NUL character"),
    (row("good"), "field 'external_id': 'good' is used already by {dir}/samples.jsonl row 1: expected each once"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("bad", "why"), ROWS, ids=[why[:60] for _, why in ROWS])
def test_one_bad_row_is_one_line(tmp_path: Path, bad: dict[str, Any], why: str) -> None:
    source = write_rows(tmp_path, row("good"), bad, row("fine"))

    (line,) = mistakes_in(source, asked=(SHADOW, "placement_layout"))

    assert line.startswith(f"{source} row 2: ")
    assert why.format(dir=tmp_path) in line


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{'external_id': 'x'}", "not JSON (Expecting property name enclosed in double quotes at character 2)"),
        (b'["x"]', "expected a JSON object, found a list"),
        (b'{"external_id": "\xe9"}', "not UTF-8 (byte 18 of the line)"),
        (b'{"meta": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_not_a_row_is_one_line(tmp_path: Path, line: bytes, why: str) -> None:
    source = write_rows(tmp_path, row("good"))
    source.write_bytes(source.read_bytes() + line + b"\n")

    (told,) = mistakes_in(source)

    assert told.startswith(f"{source} row 2: {why}")


@pytest.mark.django_db
def test_a_truncated_jpeg_is_one_line(tmp_path: Path) -> None:
    source = write_rows(tmp_path, row("good"), row("bad", original="cut.jpg"))
    whole = (Path(__file__).parents[2] / "fixtures/golden_import/img/chair-0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])

    assert mistakes_in(source) == [
        f"{source} row 2: field 'original': {tmp_path}/cut.jpg: "
        "the JPEG image is truncated: the file ends before the image does"
    ]


@pytest.mark.django_db
def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    source = write_rows(tmp_path, row("a", original="gone.png"), row("b", candidates=[]), row("c", meta=3), row("d"))

    assert sorted(line.split(": ")[0] for line in mistakes_in(source)) == [f"{source} row {n}" for n in (1, 2, 3)]


@pytest.mark.django_db
def test_only_the_first_twenty_are_shown(tmp_path: Path) -> None:
    lines = mistakes_in(write_rows(tmp_path, *(row(f"bottle-{number}", meta=3) for number in range(50))))

    assert len(lines) == 21
    assert lines[-1] == "and 30 more mistakes"


@pytest.mark.django_db
@pytest.mark.parametrize(("content", "why"), [(None, "no such file or directory"), ("\n", "there is no sample in it")])
def test_a_source_that_is_none_is_one_line(tmp_path: Path, content: str | None, why: str) -> None:
    source = tmp_path / "samples.jsonl"
    if content is not None:
        source.write_text(content)

    (line,) = mistakes_in(source)

    assert line.startswith(f"{source}: {why}")


def test_a_byte_order_mark_and_blank_lines_are_no_mistake(tmp_path: Path) -> None:
    source = write_rows(tmp_path, row())
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n\r\n"))

    assert [one.external_id for one in read_source(source, tuple(DIMENSIONS), Mistakes()).rows] == ["bottle"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*row(), "dimensions", "answers", "gold", "rationales", "meta", "x"]), JSON))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_row_is_read_or_refused_and_never_crashes(tmp_path_factory: pytest.TempPathFactory, some: Any) -> None:
    source = tmp_path_factory.getbasetemp() / "any.jsonl"
    source.write_text(json.dumps(row() | some) + "\n")
    mistakes = Mistakes()

    read = read_source(source, tuple(DIMENSIONS), mistakes)

    assert len(read.rows) + mistakes.count == 1


# The command


@pytest.mark.django_db
def test_the_command_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(tmp_path, row(answers={SHADOW: ["A"]}))

    call_command("import_samples", "bottles", str(source), "--create-project")
    call_command("import_samples", "bottles", str(source))

    first, again = capsys.readouterr().out.splitlines()
    assert first.startswith("bottles: 1 samples imported (5 new images), 0 were there unchanged; 1 answers")
    assert again.startswith("bottles: 0 samples imported (0 new images), 1 were there unchanged; 0 answers")


@pytest.mark.django_db
def test_the_command_refuses_an_unknown_project(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="there is no project 'nobody'") as told:
        call_command("import_samples", "nobody", str(write_rows(tmp_path, row())))

    assert told.value.returncode == 2
    assert not Project.objects.exists()


@pytest.mark.django_db
def test_the_command_refuses_a_bad_name_for_a_new_project(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be a project") as told:
        call_command("import_samples", "no/slug", str(tmp_path), "--create-project")

    assert told.value.returncode == 2


@pytest.mark.django_db
def test_the_command_ends_with_1_where_the_import_is_refused(tmp_path: Path) -> None:
    project = make_project()

    with pytest.raises(CommandError, match="field 'original'") as told:
        call_command("import_samples", project.slug, str(write_rows(tmp_path, row(original="gone.png"))))

    assert told.value.returncode == 1
