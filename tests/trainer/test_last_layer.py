"""The last layer computes the rows that are read and no others, and these as the stock layer does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.trainer.conftest import random_images
from trainer.contract import prompts
from trainer.contract.dimensions import DIMENSIONS, Polarity
from trainer.data import encode_prompts
from trainer.last_layer import is_short, shorten_last_layer
from trainer.model import Screener
from trainer.prompt_reading import read_prompts

# (N, P, H): N prompts, P tokens of the longest, H hidden width.


@pytest.mark.parametrize("counts", [(4, 4), (4, 2)], ids=["even", "padded"])
def test_reading_prompts_equals_the_stock_forward(any_screener: Screener, counts: tuple[int, ...]) -> None:
    asked = [prompts.ask(DIMENSIONS[0], Polarity.ACCEPTABLE, count) for count in counts]
    images = [random_images(count + 1, seed=count) for count in counts]
    batch = encode_prompts(any_screener, asked, images)
    rows: list[int] = []
    layers = any_screener.model.model.language_model.layers
    layers[-1].mlp.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    cache = DynamicCache()
    with torch.no_grad():
        stock_NPH: Tensor = any_screener.model.model(
            **batch.model_inputs(), past_key_values=cache, use_cache=True
        ).last_hidden_state
        read = read_prompts(any_screener, batch)
    assert rows == [int(batch.lengths.max()), 1]
    torch.testing.assert_close(read.last_NH, stock_NPH[torch.arange(2), batch.lengths - 1], atol=1e-5, rtol=1e-5)
    for (keys, values), layer in zip(read.layers, cache.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys)
        torch.testing.assert_close(values, layer.values)


def test_a_last_layer_with_image_features_behind_it_stays_as_it_is(screener: Screener) -> None:
    model = copy.deepcopy(screener.model)
    layers = model.model.language_model.layers
    layers[-1].__class__ = type(layers[0])
    model.config.vision_config.deepstack_visual_indexes = list(range(len(layers)))
    assert not shorten_last_layer(model)
    assert not is_short(model)
    model.config.vision_config.deepstack_visual_indexes = [0]
    assert shorten_last_layer(model)
    assert is_short(model)
