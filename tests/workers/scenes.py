"""A small project with real pictures in the store, ready to be annotated. Rows come from the server's factories."""

from __future__ import annotations

import io

from PIL import Image as Pillow

from annotation_server.projects.models import Project
from annotation_server.samples import storage
from annotation_server.samples.images import clean
from annotation_server.samples.models import Image
from annotation_server.tasks.models import Task
from tests.server.factories import make_project, make_sample


def stored_picture(shade: int, size: tuple[int, int] = (48, 48), orientation: int = 1) -> Image:
    """A grey picture whose bytes are in the store."""
    file = io.BytesIO()
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.new("RGB", size, (shade % 256, shade // 256, 90)).save(file, "JPEG", exif=exif)
    ready = clean(file.getvalue(), max_pixels=1_000_000)
    storage.put(ready.path, ready.content)
    image, _ = Image.objects.get_or_create(
        sha256=ready.sha256,
        defaults={
            "source_sha256": ready.source_sha256,
            "extension": ready.extension,
            "width": ready.width,
            "height": ready.height,
            "size": len(ready.content),
        },
    )
    return image


def project_with_tasks(count: int, **fields: object) -> tuple[Project, list[Task]]:
    """A project with `count` tasks, each on the shadows of a sample of its own.

    Near-copies are allowed unless a test wants otherwise: the fake endpoint says the same about every sample.
    """
    project = make_project(**{"dimensions": ["physical_shadow"], "near_copy": None} | fields)
    pictures = [stored_picture(shade) for shade in (40, 80, 120, 160, 200)]
    tasks = []
    for _ in range(count):
        sample, (task,) = make_sample(project, original=pictures[0])
        for candidate, picture in zip(sample.candidates.all(), pictures[1:], strict=True):
            candidate.image = picture
            candidate.save(update_fields=["image"])
        tasks.append(task)
    return project, tasks
