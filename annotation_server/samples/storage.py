"""Where bytes lie: files under STORAGE_ROOT, named by their content, written whole or not at all.

The one seam for another store (S3): whoever needs stored bytes goes through these functions and a name such as
``images/ab/<sha256>.jpg``. Not here: what the bytes are (images.py), which rows know of them (models.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from django.conf import settings


def local_path(name: str) -> Path:
    """The file of that name, there or not. ValueError for a name that leads out of the store."""
    root = Path(settings.STORAGE_ROOT)
    path = root / name
    if path.is_absolute() and ".." not in path.parts and path.is_relative_to(root):
        return path
    raise ValueError(f"{name!r} is not a name in the store")


def exists(name: str) -> bool:
    """Whether the bytes are there."""
    return local_path(name).is_file()


def open_stored(name: str) -> IO[bytes]:
    """The bytes, to be read. FileNotFoundError where they are gone."""
    return local_path(name).open("rb")


def put(name: str, content: bytes) -> None:
    """Store bytes under the name of their content; done already when something of that name and size is there."""
    path = local_path(name)
    if path.is_file() and path.stat().st_size == len(content):
        return
    with writing(name) as file:
        file.write(content)


@contextmanager
def writing(name: str) -> Iterator[IO[bytes]]:
    """A file to write into that takes the name when the block ends well, and leaves nothing when it does not.

    Written aside, synced, renamed, and the directory synced: after a crash the name holds all of it or nothing.
    """
    with pending() as file:
        yield file
        keep(file, name)


@contextmanager
def pending() -> Iterator[IO[bytes]]:
    """A file whose name is known only once it is written: `keep` names it, else it vanishes with the block."""
    aside = Path(settings.STORAGE_ROOT) / "pending"
    aside.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=aside, delete=False) as file:
        try:
            yield file.file
        finally:
            Path(file.name).unlink(missing_ok=True)


def keep(file: IO[bytes], name: str) -> None:
    """Give a pending file its name. Stored files are read-only: content that has a name does not change."""
    path = local_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.flush()
    os.fchmod(file.fileno(), 0o444)
    os.fsync(file.fileno())
    Path(file.name).rename(path)
    _sync_directory(path.parent)


def delete(name: str) -> None:
    """Remove the bytes; gone already is fine."""
    local_path(name).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
