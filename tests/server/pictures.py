"""Pictures and import sources for tests, made in memory or in a test's own directory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from annotation_server.annotations.imports import import_batch
from annotation_server.datasets.models import DatasetVersion
from annotation_server.datasets.services import create_version, freeze_version
from annotation_server.projects.models import Project
from annotation_server.samples.models import ImportBatch
from annotation_server.samples.services import create_import
from tests.server.factories import make_project


def picture(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (8, 6)) -> Image.Image:
    """One colour, with a corner of another so that turning it shows."""
    drawn = Image.new("RGB", size, colour)
    drawn.paste((1, 2, 3), (0, 0, max(1, size[0] // 2), max(1, size[1] // 3)))
    return drawn


def encoded(form: str = "PNG", drawn: Image.Image | None = None, **options: Any) -> bytes:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    (drawn or picture()).save(file, form, **options)
    return file.getvalue()


def draw_files(directory: Path, count: int = 5) -> list[str]:
    """Pictures of different content: the first is meant as an original. Returns their names."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        (directory / name).write_bytes(encoded(drawn=picture((number * 9, 90, 200 - number))))
    return names


def row(external_id: str = "bottle", **fields: Any) -> dict[str, Any]:
    """A row that is right about the files of draw_files."""
    return {
        "external_id": external_id,
        "original": "0.png",
        "candidates": ["1.png", "2.png", "3.png", "4.png"],
    } | fields


def write_rows(directory: Path, *rows: dict[str, Any]) -> Path:
    """A samples.jsonl beside the files of draw_files."""
    draw_files(directory, 12)
    path = directory / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def import_source(project: Project, source: Path, name: str = "source") -> ImportBatch:
    """An import that is expected to succeed."""
    batch = create_import(project, str(source), name, person=None)
    import_batch(batch)
    batch.refresh_from_db()
    return batch


def make_resolved_project(directory: Path, *rows: dict[str, Any], **fields: Any) -> Project:
    """A project with imported samples on the shadows, resolved by the answers that came with them."""
    given = rows or (row("bottle"), row("cup", original="5.png"))
    answered = [{"dimensions": ["physical_shadow"], "answers": {"physical_shadow": ["A"]}} | one for one in given]
    project = make_project(**fields)
    import_source(project, write_rows(directory, *answered))
    return project


def freeze(project: Project, name: str = "v1") -> DatasetVersion:
    """A frozen version of what is resolved now."""
    version = create_version(project, name, person=None)
    freeze_version(version)
    return version


def real_data() -> Path:
    """Real photographs with real variants, beside the checkout and never in it; the test is skipped without them."""
    folder = Path(__file__).parents[2] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the real pictures of ../shared/data are not here")
    return folder.resolve()
