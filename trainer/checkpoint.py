"""The run directory: what a run was told, what it ran on, its metrics, its checkpoints and the model it made.

Layout: ``config.json`` (resolved settings), ``environment.json`` (versions, machine, git, seed, the export's version
id), ``metrics.jsonl`` and ``tensorboard/``, ``samples.jsonl`` (completions of each evaluation), GRPO's
``hard_cases.jsonl``, ``difficulty.jsonl`` and ``review.jsonl``, ``checkpoints/step-00000100/`` (a model directory,
``optimizer.safetensors``, ``state.json``), ``plots/`` and ``report.html``, and ``model/``, the final plain Hugging Face
directory. Checkpoints and model appear whole or not at all.
Not here: what is trained (sft.py, grpo.py), how a model is written (model.py), what is plotted (report.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainer.config import ConfigRefused, Refused, TrainingConfig, settings_json
from trainer.contract.exports import ExportRefused
from trainer.distributed import ALONE, Ranks, is_split, optimizer_state, split_like, whole_weights
from trainer.lora import ADAPTER, save_adapter
from trainer.model import Screener, save_screener
from trainer.report import write_report
from trainer.tracking import Writes, flat_numbers, open_trackers

CHECKPOINTS, MODEL, METRICS = "checkpoints", "model", "metrics.jsonl"
SAMPLES, HARD_CASES, DIFFICULTY, REVIEW = "samples.jsonl", "hard_cases.jsonl", "difficulty.jsonl", "review.jsonl"
STEP_LOGS = (METRICS, SAMPLES, HARD_CASES)
"""Files that grow by rows naming their step."""
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


class NotSaved(Refused):
    """A checkpoint or model could not be written; what stood before still does."""


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
        self._trackers: list[Writes] = []
        self._rows: Counter[str] = Counter()
        """How many rows each of the STEP_LOGS has."""
        if not ranks.main:
            return
        if (self.path / "config.json").exists() and not config.resume:
            raise ConfigRefused(f"run_dir: {self.path} already holds a run; set resume=true or choose another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigRefused(f"run_dir: {self.path}: {error.strerror}") from None

    def refuse_another_run(self, command: str, export_version: str) -> None:
        """ConfigRefused when the run to go on with was of another command, dataset version or kind of record."""
        told = _read_json(self.path / "config.json")
        began = told.get("command", command)
        if began != command:
            raise ConfigRefused(f"run_dir: {self.path} holds a run of {began}; choose another for {command}")
        before = _read_json(self.path / "environment.json").get("export_version", export_version)
        if before != export_version:
            raise ConfigRefused(f"export_dir: {self.path} began with version {before}, this is {export_version}")
        settings = settings_json(self._config)
        for name in ("dimensions", "polarity"):  # what is remembered of records would be of others
            if name in told and _as_set(told[name]) != _as_set(settings[name]):
                raise ConfigRefused(f"{name}: {self.path} began with {_as_set(told[name])}, expected the same")

    def begin(self, config: TrainingConfig, command: str, export_version: str, state: TrainerState) -> None:
        """Write what the run is; on a resume, drop what was logged after the checkpoint, which will come again.

        ConfigRefused as `refuse_another_run`; what is refused leaves no trace that would keep others out.
        """
        if not self._ranks.main:
            return
        self.refuse_another_run(command, export_version)
        settings = {"command": command, **settings_json(config)}
        self._trackers = open_trackers(config.tracking, self.path, settings, state.step)
        sittings = _read_json(self.path / "environment.json").get("sittings", [])
        sitting = {"from_step": state.step, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        about = {**environment(config.seed, export_version), "sittings": [*sittings, sitting]}
        _write_json(self.path / "config.json", settings)
        _write_json(self.path / "environment.json", about)
        checkpoint = self.latest_checkpoint()
        kept = _read_json(checkpoint / STATE).get("rows", {}) if checkpoint else {}
        for name in STEP_LOGS:
            self._rows[name] = _cut_log(self.path / name, kept.get(name, 0))

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the same to whoever else is told (`tracking`)."""
        self.log_rows(METRICS, step, [figures])
        numbers = dict(flat_numbers(figures))
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def log_rows(self, name: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one of the STEP_LOGS, each with its step."""
        if not self._ranks.main:
            return
        lines = [json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows]
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write("".join(lines))
        self._rows[name] += len(lines)

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A whole file of rows as they are by now, whole or not at all."""
        if not self._ranks.main:
            return
        partial = self.path / f"{name}.partial"
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        partial.replace(self.path / name)

    def finish(self) -> str:
        """The run ends or is stopped: trackers hear of it, and a report is written if wanted; a line says where."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []
        return write_report(self.path) if self._config.report and self._ranks.main else ""

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, or None."""
        found = sorted(path for path in (self.path / CHECKPOINTS).glob("step-*") if not path.name.endswith(".partial"))
        return found[-1] if found else None

    def save_checkpoint(self, screener: Screener, optimizer: torch.optim.Optimizer, state: TrainerState) -> Path:
        """Everything needed to go on as if nothing had happened; older checkpoints beyond the kept ones go.

        Every process calls it. Of a model with an adapter, the adapter is kept. NotSaved when it cannot be written, for
        want of space say: earlier checkpoints are as they were.
        """
        target = self.path / CHECKPOINTS / f"step-{state.step:08d}"
        told_optimizer = optimizer_state(optimizer)
        weights = whole_weights(screener.model) if is_split(screener.model) else None
        if not self._ranks.main:
            return target
        with self._whole_or_nothing(target) as partial:
            if self._config.lora.r:
                save_adapter(screener.model, self._config.lora, self._config.model_dir, partial / ADAPTER)
            else:
                save_screener(screener, partial / MODEL, weights=weights)
            save_file(_named_tensors(told_optimizer) | _torch_rng(), partial / OPTIMIZER)
            told = {"step": state.step, "seconds": state.seconds, "extra": state.extra, "random": random.getstate()}
            told |= {"rows": dict(self._rows), "optimizer_groups": told_optimizer["param_groups"]}
            _write_json(partial / STATE, told)
        complete = sorted(path for path in target.parent.glob("step-*") if not path.name.endswith(".partial"))
        for old in complete[: -self._keep]:
            shutil.rmtree(old)
        return target

    def save_model(self, screener: Screener, stored_dtype: str) -> Path:
        """The final model as a plain directory, an adapter merged into it and beside it. Every process calls it.

        NotSaved when it cannot be written.
        """
        weights = whole_weights(screener.model) if is_split(screener.model) else None
        if not self._ranks.main:
            return self.path / MODEL
        if self._config.lora.r:
            with self._whole_or_nothing(self.path / ADAPTER) as partial:
                save_adapter(screener.model, self._config.lora, self._config.model_dir, partial)
        with self._whole_or_nothing(self.path / MODEL) as partial:
            save_screener(screener, partial, None if stored_dtype == "same" else getattr(torch, stored_dtype), weights)
        return self.path / MODEL

    @contextlib.contextmanager
    def _whole_or_nothing(self, target: Path) -> Iterator[Path]:
        """A directory to fill, which becomes `target` when all of it is on the disk."""
        partial = target.with_name(target.name + ".partial")
        try:
            _fresh(partial)
            yield partial
            _flush(partial)
            _replace(partial, target)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            why = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
            last = self.latest_checkpoint()
            stands = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise NotSaved(f"{target}: could not be written ({why}); {stands}") from None


@contextlib.contextmanager
def saved_if_it_fails(config: TrainingConfig, save: Callable[[], object]) -> Iterator[None]:
    """For evaluations between steps: what is refused or interrupted inside costs no training, `save` comes first."""
    try:
        yield
    except (Refused, ExportRefused, KeyboardInterrupt):
        if not config.fsdp:  # split weights are saved by all processes together, and the others know of nothing
            save()
        raise


def restore(checkpoint: Path, optimizer: torch.optim.Optimizer, device: torch.device) -> TrainerState:
    """Put optimizer and random generators back as they were; the model is loaded from ``checkpoint/model``.

    ConfigRefused when the checkpoint is damaged or belongs to another model or optimizer.
    """
    try:
        kept = load_file(checkpoint / OPTIMIZER)
        told = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        whole = {"state": _by_parameter(kept), "param_groups": _groups(told["optimizer_groups"])}
        optimizer.load_state_dict(split_like(optimizer, whole))
        kind, numbers, gauss = told["random"]
        cpu_rng = kept["torch_rng.cpu"]
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigRefused(f"{checkpoint}: cannot be resumed from ({why})") from None
    random.setstate((kind, tuple(numbers), gauss))
    torch.set_rng_state(cpu_rng)
    if device.type == "cuda" and "torch_rng.cuda" in kept:
        torch.cuda.set_rng_state(kept["torch_rng.cuda"], device)
    return TrainerState(step=told["step"], seconds=told["seconds"], extra=told["extra"])


def find_model(path: Path) -> Path:
    """The model directory that `path` means: itself, or of a run its model, or the one of its newest checkpoint.

    ConfigRefused for a run that holds none.
    """
    for standing in (path / MODEL, path / f"{MODEL}-2"):  # the second between two renames only
        if (standing / "config.json").exists():
            return standing
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
    packages = ("torch", "transformers", "tokenizers", "safetensors", "pillow", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "seed": seed,
        "export_version": export_version,
    }


def _git_state() -> dict[str, Any] | None:
    """The commit this code is at and whether files differ from it; None outside of a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _named_tensors(told: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of an optimizer's state, named by parameter number and purpose."""
    return {
        f"state.{number}.{name}": value.detach().cpu().contiguous()
        for number, kept in told["state"].items()
        for name, value in kept.items()
    }


def _by_parameter(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """The reverse of `_named_tensors`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("state."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    return state


def _groups(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's groups, in which JSON has made lists of pairs."""
    return [{**group, "betas": tuple(group["betas"])} for group in told]


def _torch_rng() -> dict[str, torch.Tensor]:
    states = {"torch_rng.cpu": torch.get_rng_state()}
    return {**states, "torch_rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _cut_log(path: Path, rows: int) -> int:
    """Keep the first so many rows; how many there are then. What comes after them will come again."""
    if not path.exists():
        return 0
    kept = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1][:rows]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return len(kept)


def _read_json(path: Path) -> dict[str, Any]:
    """What one of the directory's files tells; nothing where there is none. ConfigRefused when it is damaged."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigRefused(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(told, dict):
        raise ConfigRefused(f"{path}: cannot be read (it holds no settings)")
    return told


def _as_set(value: Any) -> str:
    """A setting's value as it would be given, a list in one order."""
    return ",".join(sorted(value)) if isinstance(value, list) else str(value).lower()


def _write_json(path: Path, value: object) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _flush(directory: Path) -> None:
    """Every byte to the disk, so that a name never stands for less than it says, even after a power cut."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _replace(partial: Path, target: Path) -> None:
    """Put a complete directory where another may stand. At any moment one of the two stands complete, under a name
    that counts: a checkpoint's second name sorts behind its first, and before those of later steps.
    """
    second, old = target.with_name(f"{target.name}-2"), target.with_name(target.name + ".old.partial")
    if second.exists():  # a kill came between two of these renames
        _exchange(second, target, old)
    if target.exists():
        partial.rename(second)
        _exchange(second, target, old)
    else:
        partial.rename(target)


def _exchange(second: Path, target: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    second.rename(target)
    shutil.rmtree(old, ignore_errors=True)
