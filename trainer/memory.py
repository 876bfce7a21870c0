"""What a run will need before it starts, and one line that names the setting to lower when memory runs out.

The estimate is arithmetic on shapes: weights, gradients, the optimizer's two moments, the activations of one packed
row, and the keys and values of completions being written. It leaves out what libraries keep for themselves. Ours.
Not here: measuring (benchmarks/).

Shapes in formulas: H hidden width, I width of the feed-forward layer, D head size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import Refused, TrainingConfig
from trainer.data import PromptBatch
from trainer.last_layer import is_short
from trainer.model import Architecture, Screener, resolve_dtype
from trainer.shared_prefix import LOGITS_AT_ONCE


class OutOfMemory(Refused):
    """Memory ran out; the message names what to lower and the checkpoint that stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What goes through the model at one time."""

    row_tokens: int
    """Tokens of the packed row that is learnt from."""
    completion_tokens: int
    """Those of them that are predicted."""
    patches: int
    """Image patches the vision tower sees for it."""
    cached_tokens: int = 0
    """Tokens whose keys and values are held while completions are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes in one process."""

    weights: int
    """With those of a frozen reference, or of the copy that writes where weights are split."""
    gradients: int
    optimizer: int
    learning: int
    """Activations kept for going backward."""
    writing: int
    """Keys and values of completions being written."""

    @property
    def total(self) -> int:
        """The most at one time: writing and learning take turns."""
        return self.weights + self.gradients + self.optimizer + max(self.learning, self.writing)

    @property
    def to_come(self) -> int:
        """What is not there yet when the model is loaded."""
        return self.total - self.weights

    def told(self) -> str:
        """One line."""
        parts = ("weights", "gradients", "optimizer", "learning", "writing")
        shares = ", ".join(f"{name} {_size(getattr(self, name))}" for name in parts if getattr(self, name))
        return f"memory: about {_size(self.total)} ({shares})"


def load_of(
    screener: Screener, prompts: PromptBatch, branch_tokens: int, completion_tokens: int, cached_tokens: int = 0
) -> Load:
    """The load of encoded prompts with branches of so many tokens in all, of which so many are predicted."""
    return Load(
        row_tokens=int(prompts.lengths.sum()) + branch_tokens,
        completion_tokens=completion_tokens,
        patches=_patches(screener, prompts),
        cached_tokens=cached_tokens,
    )


def estimate(
    screener: Screener, config: TrainingConfig, load: Load, *, processes: int = 1, copies: int = 0
) -> Estimate:
    """What training needs in each process. `copies`: further whole sets of weights that are held."""
    weights = list(screener.model.parameters())
    split = processes if config.fsdp else 1
    all_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    trained = sum(weight.numel() * weight.element_size() for weight in weights if weight.requires_grad)
    size = resolve_dtype(config.dtype, screener.device).itemsize
    text, vision = activations(screener, load, checkpointed=config.gradient_checkpointing)
    # Under automatic 16 bits norms, residuals and copies stay in 32: about three bytes per number.
    per_number = 3 if size == 2 and config.dtype == "auto" else size
    stack = screener.model.config.text_config
    per_token = 2 * _head_size(stack) * stack.num_key_value_heads * stack.num_hidden_layers
    return Estimate(
        weights=all_bytes // split + all_bytes * copies,
        gradients=trained // split,
        optimizer=2 * trained // split,
        learning=(text + vision) * per_number + _logits(screener, load),
        writing=load.cached_tokens * per_token * size,
    )


def activations(screener: Screener, load: Load, *, checkpointed: bool) -> tuple[int, int]:
    """Numbers kept for going backward by the text stack and by the vision tower (none where it is frozen)."""
    text, vision = screener.model.config.text_config, screener.model.config.vision_config
    width, size = text.hidden_size, _head_size(text)
    queries, keys = text.num_attention_heads * size, text.num_key_value_heads * size
    normed = 4 if screener.architecture is Architecture.QWEN3_VL else 2  # norms of queries and keys keep two more
    # Two norms keep their input, what they normed and their result; the feed-forward layer four times its width.
    layer = 6 * width + normed * (queries + keys) + 4 * text.intermediate_size
    if checkpointed:
        language = load.row_tokens * (width * text.num_hidden_layers + layer)
    else:
        # The last layer computes keys and values of all, and everything else of what is predicted alone.
        last = 3 * width + normed * keys if is_short(screener.model) else layer + 6 * width
        language = load.row_tokens * (layer * (text.num_hidden_layers - 1) + last)
        language += load.completion_tokens * (layer + 6 * width if is_short(screener.model) else 0)
    if not any(weight.requires_grad for weight in screener.vision_tower.parameters()):
        return language, 0
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    gated = screener.architecture is Architecture.QWEN2_5_VL
    block = 11 * vision.hidden_size + (4 if gated else 2) * vision.intermediate_size
    kept = vision.hidden_size * depth + block if checkpointed else block * depth
    return language, load.patches * kept


def announce(screener: Screener, found: Estimate, lower: str) -> list[str]:
    """The lines to print before a run: the estimate, and a warning where less is free than it will take."""
    lines = [found.told()]
    free = free_memory(screener.device)
    if free is not None and found.to_come > free:
        lines.append(f"warning: about {_size(found.to_come)} more will be needed and {_size(free)} are free: {lower}")
    return lines


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where the model is; None where that cannot be found out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    told = dict(line.split(":", 1) for line in lines)
    return int(told["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in told else None


@contextlib.contextmanager
def naming_what_to_lower(doing: str, lower: str, checkpoints: Any) -> Iterator[None]:
    """Inside, running out of memory becomes OutOfMemory. `checkpoints` tells its `latest_checkpoint()`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        last = checkpoints.latest_checkpoint()
        stands = f"; go on from {last} with resume=true" if last else ""
        raise OutOfMemory(f"out of memory while {doing}: {lower}{stands}") from None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _logits(screener: Screener, load: Load) -> int:
    vocabulary = int(screener.model.get_output_embeddings().weight.shape[0])
    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    return 3 * 4 * vocabulary * min(load.completion_tokens, at_once)


def _patches(screener: Screener, prompts: PromptBatch) -> int:
    if prompts.image_grid_thw is not None:
        return int(prompts.image_grid_thw.prod(-1).sum())
    images, _, height, width = prompts.pixel_values.shape
    down, across = (int(side) for side in screener.model.config.vision_config.patch_size)
    return int(images) * ((int(height) // down) * (int(width) // across) + 1)


def _head_size(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{max(1, round(size / 2**20))} MB"
