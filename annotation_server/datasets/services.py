"""Dataset versions made and exported: the one service behind the commands, the jobs and the API.

Not here: what a record holds (freeze.py), what an export directory holds (exports.py), proving them (verify.py).
"""

from __future__ import annotations

import gzip
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from annotation_server.accounts.models import Person
from annotation_server.datasets.exports import ExportFailed, write_version
from annotation_server.datasets.freeze import Tally, from_aside, one_view, records_in_order
from annotation_server.datasets.models import DatasetVersion, Export
from annotation_server.datasets.splits import assign_sides
from annotation_server.datasets.stored import stored_name
from annotation_server.jobs.models import JobKind
from annotation_server.jobs.services import enqueue
from annotation_server.progress import OnProgress, quiet
from annotation_server.projects.models import Project
from annotation_server.samples import storage
from trainer.contract.dimensions import Polarity
from trainer.contract.exports import VersionHasher
from trainer.contract.prompts import PROMPT_VERSIONS


class FreezeRefused(ValueError):
    """A version that cannot be made; the message is one line for whoever asked."""


def create_version(project: Project, name: str, person: Person | None) -> DatasetVersion:
    """Ask for a version, to be made by `freeze_version`. Raises FreezeRefused when the name is taken by a frozen one.

    A name whose freeze failed is free again: that row is used once more.
    """
    if not name or len(name) > 120 or "/" in name:
        raise FreezeRefused(f"{name!r} cannot name a version: expected 1 to 120 characters without a slash")
    try:
        with transaction.atomic():
            return DatasetVersion.objects.create(
                project=project,
                name=name,
                polarity=project.polarity,
                prompt_versions={kind.value: version for kind, version in PROMPT_VERSIONS.items()},
                person=person,
            )
    except IntegrityError:
        again = DatasetVersion.objects.filter(project=project, name=name, state=DatasetVersion.State.FAILED)
        if again.update(state=DatasetVersion.State.FREEZING, error="", person=person):
            return DatasetVersion.objects.get(project=project, name=name)
        raise FreezeRefused(f"{project.slug} has a version {name!r} already: expected a new name") from None


def start_freeze(project: Project, name: str, person: Person | None) -> DatasetVersion:
    """Ask for a version and have a worker make it. Raises FreezeRefused when the name is taken."""
    with transaction.atomic():
        version = create_version(project, name, person)
        enqueue(JobKind.FREEZE_VERSION, version.pk)
    return version


def freeze_version(version: DatasetVersion, on_progress: OnProgress = quiet) -> str:
    """Make a version of what is resolved now and return its id; frozen already: return that id.

    The records are stored before the row says FROZEN: whoever finds a frozen version finds its records. Freezing the
    same content twice gives the same id and the same stored file. Raises FreezeRefused, also kept in the version.
    """
    version.refresh_from_db()
    if version.state == DatasetVersion.State.FROZEN:
        return version.version_id
    if version.state == DatasetVersion.State.FAILED:
        raise FreezeRefused(version.error)
    # From here on nobody undoes an answer that this version may hold (annotations/services.py, withdraw).
    Project.objects.filter(pk=version.project_id).update(frozen_at=timezone.now())
    assign_sides(version.project)
    hasher = VersionHasher(Polarity(version.polarity), version.prompt_versions)
    tally = Tally()
    with storage.pending() as file, from_aside(on_progress) as tell, one_view():
        # No name and no date inside, so that equal records make equal files.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as lines:
            for record, total in records_in_order(version, tally):
                lines.write(hasher.add(record).encode() + b"\n")
                if tally.records % 100 == 0:
                    tell(tally.records, total, "freezing records")
        if tally.records:
            storage.keep(file, stored_name(hasher.version_id()))
    if not tally.records:
        return _refuse_freeze(version, tally)
    DatasetVersion.objects.filter(pk=version.pk, state=DatasetVersion.State.FREEZING).update(
        state=DatasetVersion.State.FROZEN,
        version_id=hasher.version_id(),
        splits=dict(sorted(hasher.splits.items())),
        summary=tally.summary(),
        frozen_at=timezone.now(),
    )
    version.refresh_from_db()
    return version.version_id


def _refuse_freeze(version: DatasetVersion, tally: Tally) -> str:
    why = f"{version.project.slug} has no resolved task: annotate until some are resolved, then freeze"
    if tally.withdrawn:
        why = f"{version.project.slug}: every resolved task shows a withdrawn image"
    DatasetVersion.objects.filter(pk=version.pk).update(state=DatasetVersion.State.FAILED, error=why)
    raise FreezeRefused(why)


def create_export(
    version: DatasetVersion, person: Person | None, directory: Path | None = None, form: str = "native"
) -> Export:
    """Ask for an export, to be written by `export_version`; without a directory, into one of its own in the home."""
    export = Export.objects.create(version=version, format=form, person=person)
    if directory is None:
        directory = Path(settings.WINNOW_HOME) / "exports" / f"{version.version_id[:12]}-{export.pk}"
    export.directory = str(directory)
    export.save(update_fields=["directory"])
    return export


def start_export(version: DatasetVersion, person: Person | None, form: str = "native") -> Export:
    """Ask for an export and have a worker write it."""
    with transaction.atomic():
        export = create_export(version, person, form=form)
        enqueue(JobKind.EXPORT_VERSION, export.pk)
    return export


def export_version(export: Export, on_progress: OnProgress = quiet) -> Path:
    """Write the export's directory, whole or not at all. Done already: nothing. Raises ExportFailed, also kept."""
    export.refresh_from_db()
    directory = Path(export.directory)
    if export.state == Export.State.DONE:
        return directory
    try:
        write_version(export.version, directory, export.format, on_progress)
    except ExportFailed as error:
        Export.objects.filter(pk=export.pk).update(state=Export.State.FAILED, error=str(error))
        raise
    Export.objects.filter(pk=export.pk).update(state=Export.State.DONE, error="")
    return directory
