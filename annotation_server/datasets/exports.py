"""A version written as a directory that leaves the platform: the contract's native format, with a card and Croissant.

The same version gives the same bytes whenever it is exported: names and dates in it are the version's own.
Not here: the layout and its manifest (trainer.contract.exports), the card's and Croissant's words (card.py).
"""

from __future__ import annotations

import json
from pathlib import Path

from annotation_server.datasets.card import extra_files
from annotation_server.datasets.models import DatasetVersion
from annotation_server.datasets.selectors import withdrawn_images
from annotation_server.datasets.stored import StoredRecordsDamaged, stored_records
from annotation_server.progress import OnProgress
from annotation_server.samples import storage
from trainer.contract.dimensions import Polarity
from trainer.contract.exports import ExportRefused, write_export
from trainer.contract.records import canonical_json

FORMATS = ("native", "parquet", "webdataset", "imagefolder", "chat", "label-studio")
"""Of the design; all but the first are still to be built, and refused."""


class ExportFailed(ValueError):
    """An export that was not written; the message is one line."""


def write_version(version: DatasetVersion, directory: Path, form: str, on_progress: OnProgress) -> None:
    """Write a complete directory or nothing. Raises ExportFailed."""
    if form not in FORMATS:
        raise ExportFailed(f"there is no format {form!r}: expected one of {', '.join(FORMATS)}")
    if form != "native":
        raise ExportFailed(f"the format {form!r} is not built yet: expected 'native'")
    if version.state != DatasetVersion.State.FROZEN:
        raise ExportFailed(f"{version} is {version.state}: expected a frozen version")
    if withdrawn := withdrawn_images(version):
        raise ExportFailed(
            f"{version}: {len(withdrawn)} of its images were withdrawn ({withdrawn[0]} first): "
            "freeze a new version, which leaves them out"
        )
    total = sum(version.splits.values())
    try:
        write_export(
            directory,
            records=stored_records(version),
            polarity=Polarity(version.polarity),
            prompt_versions=dict(sorted(version.prompt_versions.items())),
            image_source=storage.local_path,
            about=about(version),
            extra_files=lambda manifest: extra_files(version, manifest),
            on_record=lambda done: on_progress(done, total, "exporting records"),
        )
    except (ExportRefused, StoredRecordsDamaged) as error:
        raise ExportFailed(str(error)) from None
    except OSError as error:
        raise ExportFailed(f"{error.filename or directory}: {error.strerror}") from None


def about(version: DatasetVersion) -> dict[str, object]:
    """What the manifest says around the content."""
    return {
        "project": version.project.slug,
        "version": version.name,
        "frozen_at": version.frozen_at.isoformat() if version.frozen_at else None,
        # In one order: databases give objects back in an order of their own.
        "summary": json.loads(canonical_json(version.summary)),
    }
