"""What stands between the settings of a run and its first step, in one order for SFT and GRPO alike.

`open_run` finds out, before a model is loaded, whether settings, run directory and export go together; `make_ready`
turns a loaded model into one that is trained: attention, adapter, checkpointed layers, splitting, the optimizer, and
what a checkpoint held. The self-check of the first batch is here, too.
Not here: loading (model.py), which records (sft.py, grpo.py), the loops.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer.checkpoint import MODEL, RunDirectory, TrainerState, restore
from trainer.config import TrainingConfig, require
from trainer.contract.exports import Manifest
from trainer.data import open_export
from trainer.distributed import Ranks, copy_weights, is_split, split_model
from trainer.images import ImageStore
from trainer.lora import ADAPTER, add_adapter, load_adapter
from trainer.model import Screener, checkpoint_layers, resolve_dtype
from trainer.optimization import computing, make_optimizer
from trainer.shared_prefix import PrefixGroups, self_check


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run whose settings, directory and export go together."""

    command: str
    directory: RunDirectory
    manifest: Manifest
    checkpoint: Path | None
    """What it goes on from."""

    def begin(self, config: TrainingConfig, state: TrainerState) -> None:
        """Write into the directory what the run is: the last thing before its first step, when nothing is refused."""
        self.directory.begin(config, self.command, self.manifest.version_id, state)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRun:
    """What is trained, and with what."""

    screener: Screener
    writer: Screener
    """What writes completions: the screener, or a whole copy of it where it is split among processes."""
    optimizer: torch.optim.Optimizer
    state: TrainerState
    images: ImageStore


def open_run(config: TrainingConfig, command: str, ranks: Ranks, *, shared: str) -> OpenedRun:
    """Before anything is loaded: Refused says what does not go together. All chance follows from the seed from here on.

    `shared` names the setting whose number the processes share.
    """
    number = getattr(config, shared)
    require(
        number >= ranks.count,
        f"{shared}: expected at least one for each of {ranks.count} processes, got {number}",
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    directory = RunDirectory(config, ranks)
    manifest = open_export(config.export_dir)
    directory.refuse_another_run(command, manifest.version_id)
    checkpoint = directory.latest_checkpoint() if config.resume else None
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    return OpenedRun(command, directory, manifest, checkpoint)


def start_directory(config: TrainingConfig, checkpoint: Path | None) -> Path:
    """Where weights are loaded from: a checkpoint of an adapter holds the adapter alone."""
    return checkpoint / MODEL if checkpoint and not config.lora.r else config.model_dir


def as_configured(screener: Screener, config: TrainingConfig) -> Screener:
    """The loaded screener with the attention that `prefix_attention` names."""
    return (
        screener if config.prefix_attention == "auto" else replace(screener, prefix_attention=config.prefix_attention)
    )


def make_ready(
    opened: OpenedRun, screener: Screener, config: TrainingConfig, ranks: Ranks, *, dropout: bool = True
) -> ReadyRun:
    """The loaded screener as it is trained; the model is changed in place. `dropout` False leaves lora.dropout out."""
    screener = _prepare(as_configured(screener, config), config, ranks, opened.checkpoint, dropout=dropout)
    writer = split(screener, config)
    optimizer = make_optimizer(screener, config)
    state = restore(opened.checkpoint, optimizer, screener.device) if opened.checkpoint else TrainerState()
    images = ImageStore(screener, config.export_dir, config.image_max_side, config.image_cache_mb << 20)
    return ReadyRun(screener=screener, writer=writer, optimizer=optimizer, state=state, images=images)


def _prepare(
    screener: Screener, config: TrainingConfig, ranks: Ranks, checkpoint: Path | None, *, dropout: bool
) -> Screener:
    require(not (config.fsdp and config.lora.r), "fsdp: adapters are small, split weights are not needed: set lora.r=0")
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
    """`self_check` without dropout, as precisely as what is computed in allows. SelfCheckFailed on a mismatch."""
    if screener.prefix_attention == "mask":
        return
    training = screener.model.training
    # Checkpointed layers compute again in training mode only: else the check would need what steps do without.
    screener.model.train(config.gradient_checkpointing)
    for module in screener.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    bits = 8 * resolve_dtype(config.dtype, screener.device).itemsize
    with computing(screener, config):
        self_check(screener, groups, thorough=not config.fsdp, read_before=read_before, bits=bits)
    screener.model.train(training)
