"""Images as a model gets them: upright, at most so many pixels long, as data URIs; each prepared once per chunk.

Not here: storage itself (annotation_server/samples/storage.py).
"""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from threading import Lock

from PIL import Image as Pillow
from PIL import ImageOps

from annotation_server.samples import storage
from annotation_server.samples.models import Image

_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_ORIENTATION = 0x0112
_KEPT = 64
"""The four tasks of a sample follow one another: a dozen samples' images in memory are plenty."""


class PictureMissing(Exception):
    """An image's bytes are gone, or can no longer be read; the message is one line."""


class Pictures:
    """Data URIs at one size. May be asked from several threads."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._ready: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def data_uri(self, image: Image) -> str:
        """The image for a message. Raises PictureMissing."""
        with self._lock:
            if image.sha256 in self._ready:
                self._ready.move_to_end(image.sha256)
                return self._ready[image.sha256]
        uri = self._prepare(image)
        with self._lock:
            self._ready[image.sha256] = uri
            while len(self._ready) > _KEPT:
                self._ready.popitem(last=False)
        return uri

    def _prepare(self, image: Image) -> str:
        if image.withdrawn_at is not None:
            raise PictureMissing(f"image {image} was withdrawn")
        try:
            with storage.open_stored(image.path) as file:
                content = file.read()
            return as_data_uri(content, self._side)
        except OSError as error:
            raise PictureMissing(f"image {image.path} cannot be read: {error}") from None


def as_data_uri(content: bytes, side: int) -> str:
    """Stored bytes as they are where they are upright and small enough, else turned, shrunk and encoded again."""
    with Pillow.open(io.BytesIO(content)) as picture:
        kind = picture.format or ""
        upright = picture.getexif().get(_ORIENTATION, 1) == 1
        if not upright or max(picture.size) > side:
            kind, content = _encode(ImageOps.exif_transpose(picture), side)
    return f"data:{_MEDIA_TYPES[kind]};base64,{base64.b64encode(content).decode()}"


def _encode(picture: Pillow.Image, side: int) -> tuple[str, bytes]:
    see_through = picture.has_transparency_data
    small = picture.convert("RGBA" if see_through else "RGB")
    small.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    kind = "PNG" if see_through else "JPEG"
    out = io.BytesIO()
    small.save(out, kind, quality=92)
    return kind, out.getvalue()
