"""The prompts of a step, prepared once for writing and for learning: tokens, pixels, and what the vision tower saw.

The tower's weights do not change between the completions and the (first) update from them, so one look serves both: its
graph is kept for the backward pass, prompt by prompt, so that a group which teaches nothing costs none. A frozen tower
looks without a graph. Not here: the prompts' keys, which each side computes for itself (rollout.py, shared_prefix.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.contract.prompts import Prompt
from trainer.data import PromptBatch, encode_prompts
from trainer.images import ImageTensor
from trainer.model import Architecture, Screener


@dataclass(frozen=True, slots=True)
class SeenPrompts:
    """Encoded prompts, and what the tower made of each one's images (None: it looks whenever it is asked)."""

    screener: Screener
    batch: PromptBatch
    places: tuple[int, ...]
    """Which of a step's prompts these are: several processes share them."""
    features: list[Any] | None

    def token_ids(self, place: int) -> list[int]:
        """One prompt's tokens."""
        row = self.places.index(place)
        ids: list[int] = self.batch.input_ids[row, : int(self.batch.lengths[row])].tolist()
        return ids

    def select(self, places: Sequence[int]) -> PromptBatch:
        """Some of the prompts as a batch of their own."""
        if tuple(places) == self.places:
            return self.batch
        return select_prompts(self.screener, self.batch, [self.places.index(place) for place in places])

    @contextlib.contextmanager
    def shown(self, places: Sequence[int], *, graph: bool) -> Iterator[None]:
        """Inside, a forward of these prompts (and of nothing else) finds their images already seen.

        `graph`: gradients go back into the tower, once; without it they stop at the features.
        """
        if self.features is None:
            yield
            return
        given = _joined([self.features[self.places.index(place)] for place in places], graph)
        inner = self.screener.model.model
        inner.get_image_features = lambda *args, **kwargs: given
        try:
            yield
        finally:
            del inner.get_image_features


def see(
    screener: Screener,
    prompts: Sequence[Prompt],
    images: Sequence[Sequence[ImageTensor]],
    places: Sequence[int],
    *,
    once: bool,
) -> SeenPrompts:
    """Encode prompts; with `once`, let the tower look at their images now."""
    batch = encode_prompts(screener, prompts, images)
    if not once:
        return SeenPrompts(screener, batch, tuple(places), None)
    learns = any(weight.requires_grad for weight in screener.vision_tower.parameters())
    features = []
    for number in range(len(batch.lengths)):
        given = select_prompts(screener, batch, [number]).image_inputs()
        with torch.set_grad_enabled(learns):
            features.append(screener.model.model.get_image_features(**given, return_dict=True))
    return SeenPrompts(screener, batch, tuple(places), features)


def select_prompts(screener: Screener, batch: PromptBatch, places: Sequence[int]) -> PromptBatch:
    """Some prompts of a batch, padded to the longest of them."""
    rows = torch.tensor(list(places), device=batch.lengths.device)
    longest = int(batch.lengths[rows].max())
    counts = list(batch.images_per_prompt)
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    chosen = [image for place in places for image in range(firsts[place], firsts[place] + counts[place])]
    grids = batch.image_grid_thw
    if not chosen:
        pixels = batch.pixel_values[:0]
    elif grids is None:
        pixels = batch.pixel_values[chosen]
    else:
        sizes = grids.prod(-1).tolist()
        pieces = torch.split(batch.pixel_values, sizes)
        pixels = torch.cat([pieces[image] for image in chosen])
    multimodal = screener.architecture is not Architecture.INTERNVL
    positions = batch.position_ids[..., rows, :longest] if multimodal else batch.position_ids[rows, :longest]
    return PromptBatch(
        input_ids=batch.input_ids[rows, :longest],
        attention_mask=batch.attention_mask[rows, :longest],
        position_ids=positions,
        mm_token_type_ids=batch.mm_token_type_ids[rows, :longest],
        lengths=batch.lengths[rows],
        next_position=batch.next_position[rows],
        pixel_values=pixels,
        image_grid_thw=None if grids is None else grids[chosen],
        images_per_prompt=tuple(counts[place] for place in places),
    )


def _joined(features: Sequence[Any], graph: bool) -> Any:
    """What the tower would have answered about all these prompts' images together."""

    def together(parts: Sequence[Any]) -> Any:
        # Releases differ: one tensor for all images, or a tuple of one per image.
        if isinstance(parts[0], Tensor):
            whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
            return whole if graph else whole.detach()
        return tuple(together([image]) for images in parts for image in images)

    kind = type(features[0])
    pooled = together([seen.pooler_output for seen in features])
    if getattr(features[0], "deepstack_features", None) is None:
        return kind(pooler_output=pooled)
    levels = zip(*(seen.deepstack_features for seen in features), strict=True)
    return kind(pooler_output=pooled, deepstack_features=[together(level) for level in levels])
