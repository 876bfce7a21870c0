"""The prompts of a step, computed once for writing and for learning: tokens, the tower's features, and the text's keys.

Weights do not change between the completions and the (first) update from them, so one reading serves both: its graph is
kept for the backward pass, prompt by prompt, so that a group which teaches nothing costs none. Where the text cannot be
kept (layers that are computed again going backward) the tower's features alone are. A frozen tower looks without a
graph. Not here: the reading itself (prompt_reading.py), writing (rollout.py), learning (shared_prefix.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.contract.prompts import Prompt
from trainer.data import PromptBatch, encode_prompts
from trainer.images import ImageTensor
from trainer.model import Screener
from trainer.prompt_reading import ReadPrompts, read_prompts, together

Once = Literal["prompts", "images", "nothing"]
"""What is computed once for writing and learning: the whole prompt, what the tower makes of its images, or neither."""


@dataclass(frozen=True, slots=True)
class SeenPrompts:
    """Encoded prompts, and what was made of them."""

    screener: Screener
    batch: PromptBatch
    images: Sequence[Sequence[ImageTensor]]
    """Each prompt's pictures."""
    places: tuple[int, ...]
    """Which of a step's prompts these are: several processes share them."""
    features: list[Any] | None
    """What the tower made of each one's images; None: it looks whenever it is asked."""
    read: list[ReadPrompts] | None
    """Each prompt's keys and values; None: each side computes them for itself."""

    def token_ids(self, place: int) -> list[int]:
        """One prompt's tokens."""
        row = self.places.index(place)
        ids: list[int] = self.batch.input_ids[row, : int(self.batch.lengths[row])].tolist()
        return ids

    def images_of(self, place: int) -> Sequence[ImageTensor]:
        """One prompt's pictures."""
        return self.images[self.places.index(place)]

    def select(self, places: Sequence[int]) -> PromptBatch:
        """Some of the prompts as a batch of their own."""
        if tuple(places) == self.places:
            return self.batch
        return self.batch.select([self.places.index(place) for place in places])

    def beginnings(self, places: Sequence[int]) -> list[ReadPrompts] | None:
        """Each prompt as it was read, with its graph, which serves one backward pass; None where none was read."""
        return None if self.read is None else [self.read[self.places.index(place)] for place in places]

    def to_write(self, places: Sequence[int]) -> ReadPrompts | None:
        """The same as one batch without a graph."""
        found = self.beginnings(places)
        return None if found is None else together(found)

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
    once: Once,
) -> SeenPrompts:
    """Encode prompts, and compute now what is to be computed `once`."""
    batch = encode_prompts(screener, prompts, images)
    seen = SeenPrompts(screener, batch, images, tuple(places), None, None)
    if once == "nothing":
        return seen
    learns = any(weight.requires_grad for weight in screener.vision_tower.parameters())
    features = []
    for number in range(len(batch.lengths)):
        given = batch.select([number]).image_inputs()
        with torch.set_grad_enabled(learns):
            features.append(screener.model.model.get_image_features(**given, return_dict=True))
    seen = replace(seen, features=features)
    if once == "images":
        return seen
    read = []
    for place in places:
        with seen.shown([place], graph=learns):
            read.append(read_prompts(screener, seen.select([place])))
    return replace(seen, read=read)


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
