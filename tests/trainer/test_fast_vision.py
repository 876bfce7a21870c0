"""The faster vision tower gives the stock tower's numbers, and only the model it was asked to speed up has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

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
    pixels = pixel_inputs(fast, images)

    def run(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tower = model.model.visual
        out = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        return out.detach(), {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}

    ours, our_gradients = run(fast.model)
    theirs, their_gradients = run(stock)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_another_model_is_not_touched(tmp_path: Path) -> None:
    fast = make_screener(tmp_path / "model")
    stock = AutoModelForImageTextToText.from_config(copy.deepcopy(fast.model.config))
    exchanged = set(fast_vision._FASTER.values())
    assert not any(type(module) in exchanged for module in stock.modules())
    assert any(type(module) in exchanged for module in fast.model.modules())
