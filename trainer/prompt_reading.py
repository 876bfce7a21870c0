"""A batch of prompts read once: every layer's keys and values, and the hidden state that follows each prompt.

What writing completions (rollout.py) and learning from them (shared_prefix.py) begin with. With gradients enabled its
graph is kept, and both may begin with one reading (seen_prompts.py). Not here: encoding (data.py), decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from trainer.data import PromptBatch
from trainer.last_layer import is_short
from trainer.model import Screener

# Shapes: N prompts, P tokens of the longest, K key heads, D head size, H hidden width.


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """N prompts after the text stack."""

    lengths_N: Tensor
    layers: list[tuple[Tensor, Tensor]]
    """(N, K, P, D) keys and values of each layer; what stands behind a shorter prompt is not to be looked at."""
    last_NH: Tensor
    """The hidden state of each prompt's last token, from which its completion's first word is predicted."""


def read_prompts(screener: Screener, prompts: PromptBatch) -> ReadPrompts:
    """Run prompts through the model."""
    cache = DynamicCache()
    even = bool(prompts.attention_mask.all())
    ends_N, short = prompts.lengths - 1, is_short(screener.model)
    hidden = screener.model.model(
        input_ids=prompts.input_ids,
        attention_mask=None if even else prompts.attention_mask,
        position_ids=prompts.position_ids,
        past_key_values=cache,
        use_cache=True,
        **({"ends": ends_N} if short else {}),
        **(prompts.image_inputs() if sum(prompts.images_per_prompt) else {}),
    ).last_hidden_state
    last_NH = hidden[:, 0] if short else hidden[torch.arange(len(ends_N), device=ends_N.device), ends_N]
    return ReadPrompts(prompts.lengths, [(layer.keys, layer.values) for layer in cache.layers], last_NH)


def together(read: Sequence[ReadPrompts]) -> ReadPrompts:
    """Prompts that were read apart as one batch, without their graph."""
    longest = max(one.layers[0][0].shape[2] for one in read)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        padded = [F.pad(part.detach(), (0, 0, 0, longest - part.shape[2])) for part in parts]
        return padded[0] if len(padded) == 1 else torch.cat(padded)

    by_layer = list(zip(*(one.layers for one in read), strict=True))
    return ReadPrompts(
        torch.cat([one.lengths_N for one in read]),
        [(stacked([keys for keys, _ in layer]), stacked([values for _, values in layer])) for layer in by_layer],
        torch.cat([one.last_NH.detach() for one in read]),
    )
