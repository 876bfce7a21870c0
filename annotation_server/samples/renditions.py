"""Smaller renditions of stored images, made once and kept by content: what a page shows first, and models are sent.

A rendition is upright (the orientation is applied), keeps the colour profile, and is a JPEG, or a PNG where the picture
has transparency. It can always be made again from the image. Not here: the stored bytes themselves (storage.py).
"""

from __future__ import annotations

import io

from PIL import Image as Pillow
from PIL import ImageOps

from annotation_server.samples import storage
from annotation_server.samples.models import Image

PREVIEW_SIDE = 1024
"""Pixels of the longer side of what the annotating page shows until somebody looks closer."""

CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
"""Of stored images, by their extension."""

_QUALITY = 90
_ORIENTATION = 0x0112


def has_preview(image: Image) -> bool:
    """Whether the image is large enough that a smaller one is worth while."""
    return max(image.width, image.height) > PREVIEW_SIDE * 5 // 4


def rendition(image: Image, side: int) -> tuple[str, bytes]:
    """(content type, bytes) of the image with its longer side at most `side` pixels.

    Raises FileNotFoundError when the image's own bytes are gone.
    """
    name = f"renditions/{side}/{image.sha256[:2]}/{image.sha256}"
    for content_type, extension in (("image/jpeg", "jpg"), ("image/png", "png")):
        try:
            with storage.open_stored(f"{name}.{extension}") as kept:
                return content_type, kept.read()
        except FileNotFoundError:
            continue
    content_type, extension, content = _scaled(image, side)
    storage.put(f"{name}.{extension}", content)
    return content_type, content


def fitting(image: Image, side: int) -> tuple[str, bytes]:
    """(content type, bytes) for whoever reads neither orientation nor more than `side` pixels, a model: the stored
    bytes where they are upright and small enough, else a rendition.

    Raises FileNotFoundError when the image's own bytes are gone.
    """
    if max(image.width, image.height) <= side:
        with storage.open_stored(image.path) as stored:
            content = stored.read()
        with Pillow.open(io.BytesIO(content)) as picture:
            if picture.getexif().get(_ORIENTATION, 1) == 1:
                return CONTENT_TYPES[image.extension], content
    return rendition(image, side)


def _scaled(image: Image, side: int) -> tuple[str, str, bytes]:
    with storage.open_stored(image.path) as stored, Pillow.open(stored) as picture:
        profile = picture.info.get("icc_profile")
        picture.draft("RGB", (side, side))  # a JPEG is decoded at a fraction of its size where that is enough
        upright = ImageOps.exif_transpose(picture)
        transparent = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
        small = upright.convert("RGBA" if transparent else "RGB")
        small.thumbnail((side, side), Pillow.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    if transparent:
        small.save(file, "PNG", icc_profile=profile)
        return "image/png", "png", file.getvalue()
    small.save(file, "JPEG", quality=_QUALITY, icc_profile=profile)
    return "image/jpeg", "jpg", file.getvalue()
