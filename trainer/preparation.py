"""What stands between a loaded model and its first step: adapter, checkpointed layers, splitting, the self-check.

One order, for SFT and GRPO alike. Not here: loading (model.py), the loops (sft.py, grpo.py).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from trainer.checkpoint import MODEL
from trainer.config import TrainingConfig, require
from trainer.distributed import Ranks, copy_weights, is_split, split_model
from trainer.lora import ADAPTER, add_adapter, load_adapter
from trainer.model import Screener, checkpoint_layers, resolve_dtype
from trainer.optimization import computing
from trainer.shared_prefix import PrefixGroups, self_check


def start_directory(config: TrainingConfig, checkpoint: Path | None) -> Path:
    """Where weights are loaded from: a checkpoint of an adapter holds the adapter alone."""
    return checkpoint / MODEL if checkpoint and not config.lora.r else config.model_dir


def prepare(
    screener: Screener, config: TrainingConfig, ranks: Ranks, checkpoint: Path | None, *, dropout: bool = True
) -> Screener:
    """The screener as it is trained; the model is changed in place. `dropout` False leaves lora.dropout out."""
    require(not (config.fsdp and config.lora.r), "fsdp: adapters are small, split weights are not needed: set lora.r=0")
    if config.prefix_attention != "auto":
        screener = replace(screener, prefix_attention=config.prefix_attention)
    if config.lora.r:
        add_adapter(screener.model, config.lora if dropout else replace(config.lora, dropout=0.0))
        if checkpoint:
            load_adapter(screener.model, checkpoint / ADAPTER)
    if config.gradient_checkpointing:
        checkpoint_layers(screener.model)
    ranks.same_weights(screener.model)
    return screener


def split(screener: Screener, config: TrainingConfig) -> Screener:
    """Split a prepared model where `fsdp` asks for it; what writes completions: a whole copy, or the model itself."""
    if not config.fsdp:
        return screener
    writer = replace(screener, model=copy.deepcopy(screener.model).requires_grad_(False))
    split_model(screener.model)
    return writer


def refresh(writer: Screener, screener: Screener) -> None:
    """Give the whole copy the weights that were trained."""
    if is_split(screener.model):
        copy_weights(screener.model, writer.model)


def check_first_batch(
    screener: Screener, config: TrainingConfig, groups: PrefixGroups, *, read_before: bool = False
) -> None:
    """`self_check` in evaluation mode, as precisely as what is computed in allows. SelfCheckFailed on a mismatch."""
    if screener.prefix_attention == "mask":
        return
    training = screener.model.training
    screener.model.eval()
    bits = 8 * resolve_dtype(config.dtype, screener.device).itemsize
    with computing(screener, config):
        self_check(screener, groups, thorough=not config.fsdp, read_before=read_before, bits=bits)
    screener.model.train(training)
