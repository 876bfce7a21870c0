"""Images reach the model upright, each of them, with the numbers of the model's own processor."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.trainer.conftest import SIDE, MakeExport, make_screener, random_images
from trainer.contract import prompts
from trainer.contract.dimensions import DIMENSIONS, Polarity
from trainer.contract.exports import ExportRefused, read_records
from trainer.data import encode_prompts
from trainer.images import ImageStore, pixel_inputs, prepare_image, read_image
from trainer.model import Screener

ASK = prompts.ask(DIMENSIONS[0], Polarity.ACCEPTABLE, 4)


def last_logits(screener: Screener, images: list[torch.Tensor]) -> torch.Tensor:
    batch = encode_prompts(screener, [ASK], [images])
    with torch.no_grad():
        logits: torch.Tensor = screener.model(**batch.model_inputs()).logits[0, -1]
    return logits


@pytest.mark.parametrize("index", range(5))
def test_every_image_reaches_the_model(any_screener: Screener, index: int) -> None:
    images = random_images(5)
    before = last_logits(any_screener, images)
    images[index] = images[index].clone()
    images[index][:8, :8] = 255 - images[index][:8, :8]
    change = (last_logits(any_screener, images) - before).abs().max()
    assert change > 1e-4


def test_pixels_equal_the_models_own_processor(any_screener: Screener) -> None:
    pictures = [Image.effect_noise((37 + 9 * n, 29), 90).convert("RGB") for n in range(3)]
    ours = pixel_inputs(any_screener, [prepare_image(any_screener, picture) for picture in pictures])
    stock = any_screener.image_processor(pictures, return_tensors="pt")
    theirs = stock["pixel_values"]
    if "image_grid_thw" in ours:
        assert torch.equal(ours["image_grid_thw"], stock["image_grid_thw"])
        first, *others = frames(any_screener, theirs)
        assert others
        assert all(torch.equal(frame, first) for frame in others)
        theirs = first
    torch.testing.assert_close(ours["pixel_values"], theirs, atol=1e-5, rtol=1e-5)


def frames(screener: Screener, rows_NK: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Patch rows of the stock processor taken apart: each frame's."""
    count, patch = screener.image_processor.temporal_patch_size, screener.image_processor.patch_size
    return tuple(frame.flatten(1) for frame in rows_NK.view(len(rows_NK), 3, count, patch * patch).unbind(2))


def test_images_of_different_sizes_stand_in_one_prompt(tmp_path: Path) -> None:
    screener = make_screener(tmp_path / "model")
    images = [*random_images(3), *random_images(2, height=SIDE, width=2 * SIDE)]
    batch = encode_prompts(screener, [ASK], [images])
    stock, _ = screener.model.model.get_rope_index(
        batch.input_ids,
        batch.mm_token_type_ids,
        image_grid_thw=batch.image_grid_thw,
        attention_mask=batch.attention_mask,
    )
    assert torch.equal(batch.position_ids, stock)
    assert int(batch.next_position[0]) == int(stock.max()) + 1


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (4, 2), "red")
    tagged = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tagged, "JPEG", exif=exif)
    assert read_image(tagged.getvalue()).size == (2, 4)


def test_transparency_stands_on_white() -> None:
    stored = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(stored, "PNG")
    assert read_image(stored.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_a_longer_side_is_bounded(tmp_path: Path) -> None:
    screener = make_screener(tmp_path / "model")
    prepared = prepare_image(screener, Image.new("RGB", (100, 50)), max_side=32)
    assert tuple(prepared.shape) == (16, 32, 3)


def test_the_store_reads_each_image_once_and_forgets_the_oldest(screener: Screener, make_export: MakeExport) -> None:
    export = make_export(samples=2)
    first, other = list({record.sample_id: record for record in read_records(export)}.values())
    store = ImageStore(screener, export, max_bytes=len(first.images) * SIDE * SIDE * 3)
    kept = store.of(first)
    assert all(again is before for again, before in zip(store.of(first), kept, strict=True))
    store.of(other)
    again = store.of(first)
    assert not any(one is before for one, before in zip(again, kept, strict=True))
    assert all(torch.equal(one, before) for one, before in zip(again, kept, strict=True))


def test_a_changed_image_is_refused_by_name(screener: Screener, make_export: MakeExport) -> None:
    export = make_export(samples=1)
    record = next(read_records(export))
    path = export / record.original.path
    path.unlink()
    path.write_bytes(b"something else")
    with pytest.raises(ExportRefused, match=path.name):
        ImageStore(screener, export).of(record)
