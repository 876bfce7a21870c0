"""Reading dataset versions. Writes nothing."""

from __future__ import annotations

from annotation_server.datasets.models import DatasetVersion
from annotation_server.datasets.stored import stored_records
from annotation_server.samples.models import Image


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
