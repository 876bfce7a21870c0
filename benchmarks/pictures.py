"""Pictures as heavy as photographs, stored as ingest stores them: what pages and model calls of a benchmark carry.

Imported once Django is set up. Not here: samples made of them, which differ by what is measured.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as Pillow

from annotation_server.samples import storage
from annotation_server.samples.images import clean
from annotation_server.samples.models import Image


def stored_pictures(number: int, side: int) -> list[Image]:
    """So many different ones, `side` pixels square: soft colours under a photograph's noise, the same every time."""
    dice = np.random.default_rng(0)
    coarse = dice.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    noise = dice.normal(0, 6, (side, side, 3))  # drawn once and shifted: two hundred megapixels of it take a minute
    rows = []
    for place in range(number):
        smooth = Pillow.fromarray(np.roll(coarse, place, axis=(0, 2))).resize((side, side), Pillow.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(smooth, dtype=np.float32) + np.roll(noise, 7 * place, axis=0), 0, 255)
        file = io.BytesIO()
        Pillow.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=85)
        picture = clean(file.getvalue(), max_pixels=side * side)
        storage.put(picture.path, picture.content)
        rows.append(
            Image(
                sha256=picture.sha256,
                source_sha256=picture.source_sha256,
                extension=picture.extension,
                width=picture.width,
                height=picture.height,
                size=len(picture.content),
            )
        )
    return Image.objects.bulk_create(rows)
