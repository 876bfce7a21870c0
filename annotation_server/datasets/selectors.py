"""Reading dataset versions. Writes nothing."""

from __future__ import annotations

from pathlib import Path

from django.db.models import QuerySet

from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.stored import stored_records
from annotation_server.projects.models import Project
from annotation_server.samples.models import Image
from trainer.contract.exports import MANIFEST


def find_version(text: str) -> DatasetVersion | None:
    """A frozen version by its id (or at least eight characters of it), or by project/name.

    Several versions may be the same content; the oldest is as good as any.
    """
    frozen = DatasetVersion.objects.filter(state=DatasetVersion.State.FROZEN).select_related("project").order_by("pk")
    if "/" in text:
        project, _, name = text.partition("/")
        return frozen.filter(project__slug=project, name=name).first()
    matching = frozen.filter(version_id__startswith=text) if len(text) >= 8 else frozen.none()
    if matching.values("version_id").distinct().count() != 1:
        return None
    return matching.first()


def withdrawn_images(version: DatasetVersion) -> list[str]:
    """Names of the version's images that were taken down since it was frozen."""
    withdrawn = {image.path for image in Image.objects.filter(withdrawn_at__isnull=False)}
    if not withdrawn:
        return []
    return sorted({image.path for record in stored_records(version) for image in record.images} & withdrawn)


def versions_of(project: Project) -> QuerySet[DatasetVersion]:
    """The project's versions, the newest first."""
    return project.versions.select_related("person").order_by("-pk")


def exports_of(version: DatasetVersion) -> QuerySet[Export]:
    """The version's exports, the newest first."""
    return version.exports.select_related("person").order_by("-pk")


def downloadable_files(export: Export) -> list[str]:
    """Names of a finished export's files that a browser may fetch: the manifest, the records, the two descriptions.

    Images are left out: an export is moved as a directory. Empty where the directory is not there any more.
    """
    directory = Path(export.directory)
    if export.state != Export.State.DONE or not (directory / MANIFEST).is_file():
        return []
    records = sorted(path.name for path in directory.glob("records-*.jsonl"))
    return [name for name in (MANIFEST, *records, "README.md", "croissant.json") if (directory / name).is_file()]
