"""The faster vision tower gives the stock tower's numbers, and only the model it was asked to speed up has it.

The stock tower is given the stock processor's patch rows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed

from tests.trainer.conftest import make_screener, random_images
from trainer import fast_vision
from trainer.images import pixel_inputs


@pytest.mark.parametrize("architecture", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("sizes", [[(16, 16)] * 5, [(16, 16), (16, 24), (24, 16)]], ids=["equal", "different"])
def test_it_equals_the_stock_tower(tmp_path: Path, architecture: str, sizes: list[tuple[int, int]]) -> None:
    fast = make_screener(tmp_path / "model", architecture)
    config = copy.deepcopy(fast.model.config)
    stock = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    stock.load_state_dict(fast.model.state_dict())
    images = [random_images(1, seed=n, height=h, width=w)[0] for n, (h, w) in enumerate(sizes)]
    pictures = [Image.fromarray(image.numpy()) for image in images]

    def run(model: Any, pixels: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tower = model.model.visual
        out = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        return out.detach(), {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}

    ours, our_gradients = run(fast.model, pixel_inputs(fast, images))
    theirs, their_gradients = run(stock, fast.image_processor(pictures, return_tensors="pt"))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_one_frame_stands_for_all(frames: int) -> None:
    torch.manual_seed(0)
    config = SimpleNamespace(patch_size=4, temporal_patch_size=frames, in_channels=3, hidden_size=8)
    stock = Qwen3VLVisionPatchEmbed(config)
    fast = copy.deepcopy(stock)
    assert fast_vision.speed_up_vision(fast) == 1
    frame = torch.randn(5, 3, 1, 16)
    every = frame.expand(-1, -1, frames, -1).reshape(5, -1)
    expected = stock(every)
    expected.sin().sum().backward()
    for rows in (frame.reshape(5, -1), every):
        fast.zero_grad()
        found = fast(rows)
        found.sin().sum().backward()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(fast.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_another_model_is_not_touched(tmp_path: Path) -> None:
    fast = make_screener(tmp_path / "model")
    stock = AutoModelForImageTextToText.from_config(copy.deepcopy(fast.model.config))
    exchanged = set(fast_vision._FASTER.values())
    assert not any(type(module) in exchanged for module in stock.modules())
    assert any(type(module) in exchanged for module in fast.model.modules())
