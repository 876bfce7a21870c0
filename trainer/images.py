"""Images as the model reads them: upright, RGB, resized once, kept as bytes, and turned into pixel rows per batch.

An `ImageTensor` is uint8 (height, width, 3), already of the size its model reads: 12 kB for 64 pixels square, so that
tens of thousands stay in memory; normalising and cutting into patches happens per batch, on the model's device.
The numbers equal those of the model's own image processor. Not here: where images stand in a prompt (data.py).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from trainer.contract.exports import ExportRefused
from trainer.contract.records import ImageFile, Record
from trainer.model import Architecture, Screener

ImageTensor = torch.Tensor

# Shapes: I images, R pixel rows or columns of an image, C = 3 colours, N patches of all images, K values of one patch.


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as a person sees it: turned by its EXIF orientation, transparency on white, RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def read_image(data: bytes) -> Image.Image:
    """Decode stored or received bytes into an upright RGB picture. ValueError when they are not an image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return upright_rgb(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image that can be read ({error})") from None


def prepare_image(screener: Screener, image: Image.Image, max_side: int | None = None) -> ImageTensor:
    """An upright RGB picture at the size the model reads; `max_side` bounds the longer side in pixels.

    InternVL always reads one square tile of its configured size: five images of up to twelve tiles each would not fit
    a compact model's prompt (ours). ValueError when a Qwen model cannot read the aspect ratio (beyond 200).
    """
    processor = screener.image_processor
    width, height = image.size
    if screener.architecture is Architecture.INTERNVL:
        height, width = processor.size["height"], processor.size["width"]
    else:
        shrink = min(1.0, max_side / max(width, height)) if max_side else 1.0
        height, width = smart_resize(
            max(1, math.floor(height * shrink)),
            max(1, math.floor(width * shrink)),
            factor=processor.patch_size * processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling(processor.resample))
    return torch.from_numpy(np.array(image, dtype=np.uint8))


def stored_bytes(export_dir: Path, image: ImageFile) -> bytes:
    """The bytes of one image of an export. ExportRefused when the file is gone or changed."""
    path = export_dir / image.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportRefused(f"{path}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise ExportRefused(f"{path} was changed: its bytes are not those of the record")
    return data


_READERS = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="images")
"""Decoding and hashing leave Python's lock: pictures that are read together do not wait for each other."""


class ImageStore:
    """The prepared images of one export, each read, checked and resized once, the least recently used dropped first."""

    def __init__(
        self, screener: Screener, export_dir: Path, max_side: int | None = None, max_bytes: int = 1 << 30
    ) -> None:
        self._screener, self._directory, self._max_side, self._max_bytes = screener, export_dir, max_side, max_bytes
        self._kept: OrderedDict[str, ImageTensor] = OrderedDict()
        self._bytes = 0

    def of(self, record: Record) -> list[ImageTensor]:
        """The original and the candidates of a record, in prompt order.

        ExportRefused when a file is gone, changed, or not an image.
        """
        found: dict[str, ImageTensor] = {}
        missing: dict[str, ImageFile] = {}
        for image in record.images:
            if (kept := self._kept.get(image.sha256)) is not None:
                self._kept.move_to_end(image.sha256)
                found[image.sha256] = kept
            else:
                missing[image.sha256] = image
        for digest, prepared in zip(missing, _READERS.map(self._read, missing.values()), strict=True):
            found[digest] = prepared
            self._keep(digest, prepared)
        return [found[image.sha256] for image in record.images]

    def _read(self, image: ImageFile) -> ImageTensor:
        data = stored_bytes(self._directory, image)
        try:
            return prepare_image(self._screener, read_image(data), self._max_side)
        except ValueError as error:
            raise ExportRefused(f"{self._directory / image.path}: {error}") from None

    def _keep(self, digest: str, prepared: ImageTensor) -> None:
        self._kept[digest] = prepared
        self._bytes += prepared.nbytes
        while self._bytes > self._max_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes


def image_grid(screener: Screener, image: ImageTensor) -> tuple[int, int]:
    """Rows and columns of tokens an image takes in the prompt."""
    if screener.architecture is Architecture.INTERNVL:
        vision = screener.model.config.vision_config
        ratio = screener.model.config.downsample_ratio
        sides = [int(pixels // patch * ratio) for pixels, patch in zip(image.shape, vision.patch_size, strict=False)]
        return sides[0], sides[1]
    side = screener.image_processor.patch_size * screener.image_processor.merge_size
    return image.shape[0] // side, image.shape[1] // side


def pixel_inputs(screener: Screener, images: Sequence[ImageTensor]) -> dict[str, torch.Tensor]:
    """What the vision tower takes: ``pixel_values`` and, for Qwen models, ``image_grid_thw`` (I, 3).

    pixel_values is (N, K) patch rows in the order of Qwen's merge blocks, of the one frame that a still image has
    (fast_vision.py), or (I, C, R, R) for InternVL; float32 on the screener's device.
    """
    device = screener.device
    if screener.architecture is Architecture.INTERNVL:
        return {"pixel_values": _normalised(screener, torch.stack(list(images)).to(device))}
    if len({image.shape for image in images}) == 1:
        rows_NK = _patch_rows(screener, torch.stack(list(images)).to(device))
    else:
        rows_NK = torch.cat([_patch_rows(screener, image[None].to(device)) for image in images])
    patch = screener.image_processor.patch_size
    grids = [(1, image.shape[0] // patch, image.shape[1] // patch) for image in images]
    return {"pixel_values": rows_NK, "image_grid_thw": torch.tensor(grids, device=device)}


def _normalised(screener: Screener, images_IRRC: torch.Tensor) -> torch.Tensor:
    processor = screener.image_processor
    mean = torch.tensor(processor.image_mean, device=images_IRRC.device)
    std = torch.tensor(processor.image_std, device=images_IRRC.device)
    scaled = (images_IRRC.float() * processor.rescale_factor - mean) / std
    colours_first: torch.Tensor = scaled.permute(0, 3, 1, 2)
    return colours_first


def _patch_rows(screener: Screener, images_IRRC: torch.Tensor) -> torch.Tensor:
    processor: Any = screener.image_processor
    patch, merge = processor.patch_size, processor.merge_size
    count, height, width, colours = images_IRRC.shape
    down, across = height // (patch * merge), width // (patch * merge)
    pixels = images_IRRC.reshape(count, down, merge, patch, across, merge, patch, colours)
    # One row per patch: blocks of merge x merge patches stay together. Bytes are moved, a quarter of what numbers take.
    rows_NK = pixels.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, colours * patch * patch).float()
    # (x · rescale - mean) / std in one pass.
    mean, std = (torch.tensor(of, device=rows_NK.device) for of in (processor.image_mean, processor.image_std))
    scale_K, offset_K = (
        each.repeat_interleave(patch * patch) for each in (processor.rescale_factor / std, -mean / std)
    )
    return torch.addcmul(offset_K, rows_NK, scale_K, out=rows_NK)
