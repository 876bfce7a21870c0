"""Reading samples and images. Writes nothing; answers are in annotations/."""

from __future__ import annotations

from collections.abc import Sequence

from django.db.models import Exists, OuterRef, QuerySet

from annotation_server.accounts.models import Person
from annotation_server.projects.access import projects_of
from annotation_server.projects.models import Project
from annotation_server.samples.models import Candidate, Image, ImportBatch, Sample

_AT_ONCE = 500
"""Values per query: SQLite takes a limited number."""


def images_by_source(source_sha256s: Sequence[str]) -> dict[str, Image]:
    """Images by the hash of the bytes they were received as."""
    found: dict[str, Image] = {}
    for start in range(0, len(source_sha256s), _AT_ONCE):
        some = Image.objects.filter(source_sha256__in=source_sha256s[start : start + _AT_ONCE])
        found |= {image.source_sha256: image for image in some}
    return found


def image_ids(sha256s: Sequence[str]) -> dict[str, int]:
    """Row ids of images by the hash of their stored bytes."""
    found: dict[str, int] = {}
    for start in range(0, len(sha256s), _AT_ONCE):
        some = Image.objects.filter(sha256__in=sha256s[start : start + _AT_ONCE])
        found |= dict(some.values_list("sha256", "pk"))
    return found


def samples_by_external_id(project: Project, external_ids: Sequence[str]) -> dict[str, Sample]:
    """The project's samples of these ids, where there are any."""
    found: dict[str, Sample] = {}
    for start in range(0, len(external_ids), _AT_ONCE):
        some = project.samples.filter(external_id__in=external_ids[start : start + _AT_ONCE])
        found |= {sample.external_id: sample for sample in some}
    return found


def image_for(person: Person, sha256: str) -> Image | None:
    """A stored image by its content, if some project of the person shows it and it was not taken down."""
    projects = projects_of(person).order_by().values("pk")
    as_original = Sample.objects.filter(original=OuterRef("pk"), project__in=projects)
    as_candidate = Candidate.objects.filter(image=OuterRef("pk"), sample__project__in=projects)
    there = Image.objects.filter(sha256=sha256, withdrawn_at=None)
    return there.filter(Exists(as_original) | Exists(as_candidate)).first()


def imports_of(project: Project) -> QuerySet[ImportBatch]:
    """The newest imports of a project."""
    return project.import_batches.order_by("-pk")[:50]
