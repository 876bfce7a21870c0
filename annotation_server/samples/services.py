"""Writing samples: asking for an import, storing verified images, adding samples with their candidates.

Not here: reading the source (importers.py); the import as a whole, which also queues tasks and records answers and
therefore stands above the ledger (annotations/imports.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import F

from annotation_server.accounts.models import Person
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.services import enqueue
from annotation_server.progress import OnProgress
from annotation_server.projects.models import Project
from annotation_server.samples import selectors, storage
from annotation_server.samples.images import MAX_BYTES, ImageRefused, clean
from annotation_server.samples.importers import Mistakes
from annotation_server.samples.models import Candidate, Image, ImportBatch, Sample
from trainer.contract.dimensions import LETTERS

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture whose bytes are in the store; its row may still be missing."""

    sha256: str
    source_sha256: str
    extension: str
    width: int
    height: int
    size: int


@dataclass(frozen=True, slots=True)
class NewSample:
    """A sample whose images are stored, ready to be written."""

    external_id: str
    original: StoredImage
    candidates: tuple[StoredImage, ...]
    meta: Mapping[str, Any]

    @property
    def content_sha256(self) -> str:
        """Of the images in order."""
        return hashlib.sha256("\n".join(i.sha256 for i in (self.original, *self.candidates)).encode()).hexdigest()


def create_import(project: Project, source: str, name: str, person: Person | None) -> ImportBatch:
    """Ask for an import, to be done by whoever calls annotations.imports.import_batch with it."""
    return ImportBatch.objects.create(project=project, source=source, name=name, person=person)


def start_import(project: Project, source: str, name: str, person: Person | None) -> ImportBatch:
    """Ask for an import and have a worker do it."""
    batch = create_import(project, source, name, person)
    enqueue(JobKind.IMPORT_BATCH, batch.pk)
    return batch


def store_images(
    wanted: Mapping[str, tuple[str, str]], mistakes: Mistakes, on_progress: OnProgress
) -> dict[str, StoredImage]:
    """Verify files and store their bytes. `wanted`: path → row and field that name it; `mistakes` gets what is refused.

    Files whose bytes were imported before are recognised by their hash and not decoded again, so that a second import,
    or one resumed after a kill, only reads. Threads, because decoding and hashing run outside the interpreter's lock
    and a Celery worker may not start processes. Bytes stored for an import that is refused later lie there unused.
    """
    stored: dict[str, StoredImage] = {}
    paths = iter(wanted)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        while some := list(islice(paths, _IMAGES_AT_ONCE)):
            hashes = dict(zip(some, pool.map(_source_sha256, some), strict=True))
            known = selectors.images_by_source([found for found in hashes.values() if found])
            fresh: list[str] = []
            for path, source_sha256 in hashes.items():
                image = known.get(source_sha256 or "")
                if image and image.withdrawn_at:
                    mistakes.add(
                        _place(wanted[path]), f"{path}: this image was withdrawn on {image.withdrawn_at:%Y-%m-%d}"
                    )
                elif image and storage.exists(image.path):
                    stored[path] = _from_row(image)
                else:
                    fresh.append(path)
            for path, outcome in zip(fresh, pool.map(_store_file, fresh), strict=True):
                if isinstance(outcome, StoredImage):
                    stored[path] = outcome
                else:
                    mistakes.add(_place(wanted[path]), outcome)
            on_progress(len(stored), len(wanted), "checking images")
            if mistakes.enough:
                break
    return stored


def _place(named: tuple[str, str]) -> str:
    return f"{named[0]}: field '{named[1]}'"


def _source_sha256(path: str) -> str | None:
    """Of the file as it lies there; None where it cannot be read, which `_store_file` then says."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def _store_file(path: str) -> StoredImage | str:
    """The stored picture, or what is wrong with the file in one line."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            return f"{path}: {size >> 20} MiB: expected at most {MAX_BYTES >> 20} MiB"
        image = clean(Path(path).read_bytes(), settings.IMAGE_MEGAPIXELS * 1_000_000)
    except FileNotFoundError:
        return f"{path}: no such file"
    except OSError as error:
        return f"{path}: {error.strerror}"
    except ImageRefused as error:
        return f"{path}: {error}"
    storage.put(image.path, image.content)
    return StoredImage(
        sha256=image.sha256,
        source_sha256=image.source_sha256,
        extension=image.extension,
        width=image.width,
        height=image.height,
        size=len(image.content),
    )


def _from_row(image: Image) -> StoredImage:
    return StoredImage(
        sha256=image.sha256,
        source_sha256=image.source_sha256,
        extension=image.extension,
        width=image.width,
        height=image.height,
        size=image.size,
    )


def add_samples(batch: ImportBatch, new: Sequence[NewSample]) -> list[Sample]:
    """Write samples nobody has written before, with their images and candidates, and count them in the batch.

    Call it in a transaction; IntegrityError when another import writes one of the external ids at the same moment.
    """
    images, created = _image_ids(new)
    samples = Sample.objects.bulk_create(
        [
            Sample(
                project_id=batch.project_id,
                external_id=row.external_id,
                original_id=images[row.original.sha256],
                content_sha256=row.content_sha256,
                meta=dict(row.meta),
                batch=batch,
            )
            for row in new
        ],
        batch_size=2000,
    )
    Candidate.objects.bulk_create(
        [
            Candidate(sample=sample, letter=letter, image_id=images[image.sha256])
            for sample, row in zip(samples, new, strict=True)
            for letter, image in zip(LETTERS, row.candidates, strict=False)
        ],
        batch_size=2000,
    )
    ImportBatch.objects.filter(pk=batch.pk).update(
        created_samples=F("created_samples") + len(samples), created_images=F("created_images") + created
    )
    return samples


def _image_ids(new: Sequence[NewSample]) -> tuple[dict[str, int], int]:
    """Row ids by sha256, rows made where missing, and how many were."""
    wanted = {image.sha256: image for row in new for image in (row.original, *row.candidates)}
    there = selectors.image_ids(list(wanted))
    missing = [image for sha256, image in wanted.items() if sha256 not in there]
    Image.objects.bulk_create(
        [
            Image(
                sha256=image.sha256,
                source_sha256=image.source_sha256,
                extension=image.extension,
                width=image.width,
                height=image.height,
                size=image.size,
            )
            for image in missing
        ],
        batch_size=2000,
        ignore_conflicts=True,  # another import may bring the same picture at the same moment
    )
    return there | selectors.image_ids([image.sha256 for image in missing]), len(missing)
