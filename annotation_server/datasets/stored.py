"""The stored records of a frozen version: one canonical line each, compressed, under the version's id."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator

from annotation_server.datasets.models import DatasetVersion
from annotation_server.samples import storage
from trainer.contract.records import Record, RecordRefused, record_from_json


class StoredRecordsDamaged(ValueError):
    """The stored file is gone or cannot be read; the message names it."""


def stored_name(version_id: str) -> str:
    """Where the records of a version lie in the store."""
    return f"versions/{version_id}.jsonl.gz"


def stored_records(version: DatasetVersion) -> Iterator[Record]:
    """The records of a frozen version in order. Raises StoredRecordsDamaged naming the file and row."""
    name = stored_name(version.version_id)
    path = storage.local_path(name)
    number = 0
    try:
        with storage.open_stored(name) as file, gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                number += 1
                yield record_from_json(json.loads(line))
    except FileNotFoundError:
        raise StoredRecordsDamaged(f"{path} is missing: the version's records are gone") from None
    # OSError is also what gzip raises for bytes that are not its own, EOFError for a file cut short.
    except (OSError, EOFError, zlib.error) as error:
        raise StoredRecordsDamaged(f"{path} was changed: it cannot be read after row {number} ({error})") from None
    except (ValueError, RecordRefused) as error:
        raise StoredRecordsDamaged(f"{path} row {number}: {error}") from None
