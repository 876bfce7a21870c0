"""The run directory: what a run was told, what it ran on, its metrics, its checkpoints and the model it made.

Layout: ``config.json`` (resolved settings), ``environment.json`` (versions, platform, seed, the export's version id),
``metrics.jsonl``, ``checkpoints/step-00000100/`` (a model directory, ``optimizer.pt``, ``state.json``), and ``model/``,
the final plain Hugging Face directory. Checkpoints and model appear whole or not at all.
Not here: what is trained (sft.py, grpo.py), how a model is written (model.py).
"""

from __future__ import annotations

import json
import pickle
import platform
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.config import ConfigRefused, TrainingConfig, settings_json
from trainer.distributed import ALONE, Ranks, is_split, optimizer_state, split_like, whole_weights
from trainer.lora import ADAPTER, save_adapter
from trainer.model import Screener, save_screener

CHECKPOINTS, MODEL, METRICS = "checkpoints", "model", "metrics.jsonl"


@dataclass(kw_only=True)
class TrainerState:
    """Where a run stands, beside weights and optimizer. Data order and augmentation follow from seed and step."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Training time spent."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What a method keeps for itself, JSON: hard cases, finished phases."""


class RunDirectory:
    """One run's directory. Opening it for another run than the one it holds is refused. The first process writes."""

    def __init__(self, config: TrainingConfig, ranks: Ranks = ALONE) -> None:
        self.path = config.run_dir
        self._config, self._ranks = config, ranks
        self._keep = config.keep_checkpoints
        if not ranks.main:
            return
        if (self.path / "config.json").exists() and not config.resume:
            raise ConfigRefused(f"run_dir: {self.path} already holds a run; set resume=true or choose another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigRefused(f"run_dir: {self.path}: {error.strerror}") from None

    def begin(self, config: TrainingConfig, command: str, export_version: str, state: TrainerState) -> None:
        """Write what the run is; on a resume, drop metrics of steps after the checkpoint, which will come again.

        ConfigRefused when the run to go on with learnt from another dataset version.
        """
        if not self._ranks.main:
            return
        told = self.path / "environment.json"
        before = json.loads(told.read_text(encoding="utf-8"))["export_version"] if told.exists() else export_version
        if before != export_version:
            raise ConfigRefused(f"export_dir: {self.path} began with version {before}, this is {export_version}")
        _write_json(self.path / "config.json", {"command": command, **settings_json(config)})
        _write_json(self.path / "environment.json", environment(config.seed, export_version))
        metrics = self.path / METRICS
        if metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= state.step]
            metrics.write_text("".join(line + "\n" for line in kept))

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if not self._ranks.main:
            return
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, or None."""
        found = sorted(path for path in (self.path / CHECKPOINTS).glob("step-*") if not path.name.endswith(".partial"))
        return found[-1] if found else None

    def save_checkpoint(self, screener: Screener, optimizer: torch.optim.Optimizer, state: TrainerState) -> Path:
        """Everything needed to go on as if nothing had happened; older checkpoints beyond the kept ones go.

        Every process calls it. Of a model with an adapter, the adapter is kept.
        """
        target = self.path / CHECKPOINTS / f"step-{state.step:08d}"
        told_optimizer = optimizer_state(optimizer)
        weights = whole_weights(screener.model) if is_split(screener.model) else None
        if not self._ranks.main:
            return target
        partial = _fresh(target.with_name(target.name + ".partial"))
        if self._config.lora.r:
            save_adapter(screener.model, self._config.lora, self._config.model_dir, partial / ADAPTER)
        else:
            save_screener(screener, partial / MODEL, weights=weights)
        torch.save({"optimizer": told_optimizer, "torch_rng": _torch_rng()}, partial / "optimizer.pt")
        generator = random.getstate()
        told = {"step": state.step, "seconds": state.seconds, "extra": state.extra, "random": generator}
        _write_json(partial / "state.json", told)
        _replace(partial, target)
        complete = sorted(path for path in target.parent.glob("step-*") if not path.name.endswith(".partial"))
        for old in complete[: -self._keep]:
            shutil.rmtree(old)
        return target

    def save_model(self, screener: Screener, stored_dtype: str) -> Path:
        """The final model as a plain directory, an adapter merged into it and beside it. Every process calls it."""
        weights = whole_weights(screener.model) if is_split(screener.model) else None
        if not self._ranks.main:
            return self.path / MODEL
        if self._config.lora.r:
            adapter = _fresh(self.path / f"{ADAPTER}.partial")
            save_adapter(screener.model, self._config.lora, self._config.model_dir, adapter)
            _replace(adapter, self.path / ADAPTER)
        partial = _fresh(self.path / f"{MODEL}.partial")
        save_screener(screener, partial, None if stored_dtype == "same" else getattr(torch, stored_dtype), weights)
        _replace(partial, self.path / MODEL)
        return self.path / MODEL


def restore(checkpoint: Path, optimizer: torch.optim.Optimizer, device: torch.device) -> TrainerState:
    """Put optimizer and random generators back as they were; the model is loaded from ``checkpoint/model``.

    ConfigRefused when the checkpoint is damaged or belongs to another model or optimizer.
    """
    try:
        kept = torch.load(checkpoint / "optimizer.pt", map_location=device, weights_only=True)
        told = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        optimizer.load_state_dict(split_like(optimizer, kept["optimizer"]))
        kind, numbers, gauss = told["random"]
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigRefused(f"{checkpoint}: cannot be resumed from ({why})") from None
    random.setstate((kind, tuple(numbers), gauss))
    torch.set_rng_state(kept["torch_rng"]["cpu"].cpu())
    if device.type == "cuda" and "cuda" in kept["torch_rng"]:
        torch.cuda.set_rng_state(kept["torch_rng"]["cuda"].cpu(), device)
    return TrainerState(step=told["step"], seconds=told["seconds"], extra=told["extra"])


def find_model(path: Path) -> Path:
    """The model directory that `path` means: itself, or of a run its model, or the one of its newest checkpoint.

    ConfigRefused for a run that holds none.
    """
    if (path / MODEL / "config.json").exists():
        return path / MODEL
    checkpoints = sorted((path / CHECKPOINTS).glob(f"step-*[0-9]/{MODEL}"))
    if not checkpoints and run_settings(path) and not any(path.glob("*.safetensors")):
        raise ConfigRefused(f"{path}: this run has no whole model yet: go on with it (resume=true) to its end")
    return checkpoints[-1] if checkpoints else path


def run_settings(path: Path) -> dict[str, Any]:
    """The settings of the run that `path` is, or that made the model which `path` is; empty where there is none."""
    for directory in (path, *path.resolve().parents[:3]):  # as far up as from a checkpoint's model
        try:
            told = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(told, dict) and "command" in told:
            return told
    return {}


def environment(seed: int, export_version: str) -> dict[str, Any]:
    """What the run's numbers depend on beside its settings."""
    packages = ("torch", "transformers", "tokenizers", "pillow", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "export_version": export_version,
    }


def _torch_rng() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _write_json(path: Path, value: object) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _replace(partial: Path, target: Path) -> None:
    # A rename is all or nothing, and the old directory stays complete under another name until the new one stands.
    old = target.with_name(target.name + ".old.partial")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
