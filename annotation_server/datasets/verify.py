"""Proving that a version or an export is what it was when it was frozen.

A version is proved from the store: its records give its id, its images their names. An export is proved by the
contract alone, so that whoever holds the directory can do the same without a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from annotation_server.datasets.models import DatasetVersion
from annotation_server.datasets.selectors import withdrawn_images
from annotation_server.datasets.stored import StoredRecordsDamaged, stored_name, stored_records
from annotation_server.progress import OnProgress
from annotation_server.samples import storage
from trainer.contract.dimensions import Polarity
from trainer.contract.exports import ExportRefused, VersionHasher, file_sha256, verify_export


class NotVerified(ValueError):
    """A version or an export is not what it was; the message names the file."""


class Withdrawn(NotVerified):
    """Everything that is there is right; some images were taken down on purpose."""


def verify_version(version: DatasetVersion, on_progress: OnProgress) -> tuple[str, int, int]:
    """(id, records, files) of a frozen version, proved from the store. Raises NotVerified."""
    path = storage.local_path(stored_name(version.version_id))
    hasher = VersionHasher(Polarity(version.polarity), version.prompt_versions)
    images: dict[str, str] = {}
    try:
        for record in stored_records(version):
            hasher.add(record)
            images |= {image.path: image.sha256 for image in record.images}
        withdrawn = withdrawn_images(version)
    except StoredRecordsDamaged as error:
        raise NotVerified(str(error)) from None
    except ValueError as error:
        raise NotVerified(f"{path} was changed: {error}") from None
    if hasher.version_id() != version.version_id:
        raise NotVerified(f"{path} was changed: its records do not give the version's id")
    _verify_images(images, frozenset(withdrawn), on_progress)
    if withdrawn:
        raise Withdrawn(f"{version}: withdrawn: {len(withdrawn)} of {len(images)} images, {withdrawn[0]} first")
    return version.version_id, sum(hasher.splits.values()), len(images) + 1


def _verify_images(images: Mapping[str, str], withdrawn: frozenset[str], on_progress: OnProgress) -> None:
    for done, (name, sha256) in enumerate(sorted(images.items()), start=1):
        if name in withdrawn:
            continue
        path = storage.local_path(name)
        if not path.is_file():
            raise NotVerified(f"{path} is missing")
        if file_sha256(path) != sha256:
            raise NotVerified(f"{path} was changed: its bytes are not those of its name")
        on_progress(done, len(images), "verifying images")


def verify_directory(directory: Path, on_progress: OnProgress) -> tuple[str, int, int]:
    """(id, records, files) of an export, proved by its manifest. Raises NotVerified."""
    try:
        manifest = verify_export(directory, lambda done, total: on_progress(done, total, "verifying files"))
    except ExportRefused as error:
        raise NotVerified(str(error)) from None
    return manifest.version_id, sum(manifest.splits.values()), len(manifest.files)
