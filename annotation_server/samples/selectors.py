"""Reading samples and images. Writes nothing; answers are in annotations/."""

from __future__ import annotations

from collections.abc import Sequence

from annotation_server.projects.models import Project
from annotation_server.samples.models import Image, Sample

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
