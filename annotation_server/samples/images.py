"""A received picture, judged and cleaned: verified by content, bounded, fully decoded, personal metadata removed.

Pixels are never re-encoded: the bytes that carry them are copied, the rest of the file is dropped piece by piece
(containers.py), except for the colour profile and the orientation. Pure functions over bytes.
Not here: where the bytes are stored (storage.py), rows (models.py).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from PIL import Image as Pillow

from annotation_server.samples.containers import Container, ContainerRefused, read_container

MAX_BYTES = 64 << 20
"""A larger file is refused before it is read."""


class ImageRefused(ValueError):
    """A file that is not a picture Winnow accepts; the message is the rest of a line that began with its path."""


@dataclass(frozen=True, slots=True)
class CleanImage:
    """A verified picture as it is stored, with what its row says."""

    content: bytes
    sha256: str
    source_sha256: str
    extension: str
    width: int
    height: int

    @property
    def path(self) -> str:
        """The name in storage and in an export; the same as the row's (models.Image.path)."""
        return f"images/{self.sha256[:2]}/{self.sha256}.{self.extension}"


def clean(received: bytes, max_pixels: int) -> CleanImage:
    """Verify a JPEG, PNG or WebP and strip it of personal metadata. Raises ImageRefused.

    The size is read from the file's own header and bounded before any decoder runs, so that a small file
    cannot ask for gigabytes; then every pixel is decoded once, so that a truncated file does not pass.
    """
    if not received:
        raise ImageRefused("the file is empty: expected a JPEG, PNG or WebP image")
    try:
        container = read_container(received)
    except ContainerRefused as error:
        raise ImageRefused(str(error)) from None
    if container.width * container.height > max_pixels:
        raise ImageRefused(
            f"{container.width} × {container.height} pixels: expected at most {max_pixels / 1e6:g} megapixels"
        )
    _decode(container)
    # Orientations 5 to 8 lie on their side.
    upright = container.orientation < 5
    return CleanImage(
        content=container.content,
        sha256=hashlib.sha256(container.content).hexdigest(),
        source_sha256=hashlib.sha256(received).hexdigest(),
        extension=container.extension,
        width=container.width if upright else container.height,
        height=container.height if upright else container.width,
    )


def _decode(container: Container) -> None:
    """Every pixel, from the bytes that will be stored. Raises ImageRefused."""
    name = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[container.extension]
    try:
        with Pillow.open(io.BytesIO(container.content), formats=[name]) as picture:
            size = picture.size
            picture.load()
    # What Pillow's decoders raise for damaged files; SyntaxError is how its PNG reader says "broken PNG file".
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise ImageRefused(f"the {name} image cannot be decoded ({error})") from None
    if size != (container.width, container.height):
        raise ImageRefused(f"the {name} image has two different sizes in its headers")
