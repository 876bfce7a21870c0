"""Reading a run's settings: a TOML file and ``--set key=value`` overrides into one frozen dataclass.

Each command's own settings stand in its own module (SFTConfig in sft.py); here are the loading, the settings every run
shares, and `Refused`, the base of every user's mistake. Not here: what a setting does.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trainer.contract.dimensions import DIMENSIONS, Dimension, Polarity

C = TypeVar("C")


class Refused(ValueError):
    """A user's mistake: the message is one line that names the file, row or setting. Commands print it and exit 1."""


class ConfigRefused(Refused):
    """A setting that is unknown, missing, of another type, or out of range."""


class Tracker(StrEnum):
    """Who is told every figure of a training run (tracking.py)."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    TRACKIO = "trackio"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every command that reads an export and a model has in common."""

    export_dir: Path
    """The dataset version to read: a directory with a manifest, as the platform wrote it. Relative to where you are."""
    model_dir: Path
    """A Hugging Face model directory on this disk; one without weights starts from random ones."""
    run_dir: Path
    """Where everything this run writes goes: the resolved settings, metrics, checkpoints, the trained model."""
    seed: int = 0
    """Decides every random choice of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: a CUDA device where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to compute in. auto: float32 on a CPU, bfloat16 on CUDA."""
    polarity: Polarity | None = None
    """What answers list. None: whatever the export says; another polarity complements its answers."""
    dimensions: tuple[Dimension, ...] = DIMENSIONS
    """The dimensions to read records of."""
    threads: int = 0
    """Computing threads of torch; 0 leaves its choice. A small model on a CPU writes with two at most (rollout.py)."""
    image_max_side: int | None = None
    """Longest image side in pixels; None leaves it to the model's image processor. InternVL has one fixed size."""
    image_cache_mb: int = 1024
    """Prepared images are kept in memory up to this many megabytes; the rest is read again when needed."""

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"threads: expected 0 or more, got {self.threads}")
        require(bool(self.dimensions), "dimensions: expected at least one")
        require(
            self.image_max_side is None or self.image_max_side > 0,
            f"image_max_side: expected a positive number of pixels, got {self.image_max_side}",
        )
        require(self.image_cache_mb >= 0, f"image_cache_mb: expected 0 or more, got {self.image_cache_mb}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters of the language model; `r` 0 trains all weights."""

    r: int = 0
    """Rank of the adapters; 0: none."""
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / r."""
    dropout: float = 0.0
    """Share of the adapter's inputs dropped in SFT. GRPO leaves it out: its log-probabilities must be the model's."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the language model that get an adapter, by the last part of their name."""

    def __post_init__(self) -> None:
        require(self.r >= 0, f"lora.r: expected 0 or more, got {self.r}")
        require(self.alpha > 0, f"lora.alpha: expected more than 0, got {self.alpha:g}")
        require(0 <= self.dropout < 1, f"lora.dropout: expected 0 or more and less than 1, got {self.dropout:g}")
        require(bool(self.target_modules), "lora.target_modules: expected at least one name")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig):
    """What every command that changes weights has in common."""

    steps: int = 0
    """Optimizer steps; 0 where `minutes` sets the length."""
    minutes: float = 0.0
    """Training time; its schedule follows the clock, so such a run cannot be repeated exactly. 0: `steps` counts."""
    learning_rate: float = 1e-4
    """Peak rate of AdamW."""
    vision_lr: float = 1.0
    """The vision tower's rate as a multiple of the others'; 0 leaves the tower as it is."""
    vision_lr_early: float | None = None
    """The multiple during `vision_early`, where it differs: a warmed tower wants to wait for the language model."""
    vision_early: float = 0.0
    """The first part of the run, as a fraction, in which `vision_lr_early` holds."""
    warmup: float = 0.04
    """Fraction of the run over which the rate rises from 0 to its peak."""
    final_lr: float = 0.1
    """What the rate falls to at the end, straight, as a fraction of its peak."""
    weight_decay: float = 0.02
    """Of weight matrices; norms, biases and embeddings are left out."""
    beta2: float = 0.99
    """AdamW's second decay."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Train adapters beside frozen weights."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations again going backward."""
    prefix_attention: Literal["auto", "merged", "joined", "mask"] = "auto"
    """How branches share a prompt. auto: merged on a CPU, joined on CUDA; mask is the slow and obvious one."""
    self_check: bool = True
    """Compare the first batch with repeated prompts, and refuse to train where they differ."""
    fsdp: bool = False
    """With torchrun: split weights, gradients and optimizer among the processes, for models that do not fit."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one only when the run is stopped."""
    keep_checkpoints: int = 2
    """Older ones are removed."""
    resume: bool = False
    """Go on from the last checkpoint in `run_dir`, or begin where there is none."""
    stored_dtype: Literal["same", "bfloat16", "float16"] = "same"
    """What the final model's weights are stored in."""
    sample_completions: int = 12
    """Completions of each evaluation that are kept to be read; 0 keeps none."""
    tracking: tuple[Tracker, ...] = (Tracker.TENSORBOARD,)
    """Who is told every figure besides metrics.jsonl; wandb and trackio where they are installed."""
    report: bool = True
    """Draw plots and write report.html when the run ends or is stopped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.steps > 0) != (self.minutes > 0) and min(self.steps, self.minutes) >= 0,
            f"set either steps or minutes to more than 0, got steps={self.steps} and minutes={self.minutes:g}",
        )
        require(self.learning_rate > 0, f"learning_rate: expected more than 0, got {self.learning_rate:g}")
        require(self.vision_lr >= 0, f"vision_lr: expected 0 or more, got {self.vision_lr:g}")
        require((self.vision_lr_early or 0) >= 0, f"vision_lr_early: expected 0 or more, got {self.vision_lr_early}")
        for name in ("vision_early", "warmup", "final_lr"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name}: expected a fraction from 0 to 1, got {value:g}")
        require(0 <= self.beta2 < 1, f"beta2: expected 0 or more and less than 1, got {self.beta2:g}")
        require(self.weight_decay >= 0, f"weight_decay: expected 0 or more, got {self.weight_decay:g}")
        require(self.clip > 0, f"clip: expected more than 0, got {self.clip:g}")
        require(self.checkpoint_every >= 0, f"checkpoint_every: expected 0 or more, got {self.checkpoint_every}")
        require(self.sample_completions >= 0, f"sample_completions: expected 0 or more, got {self.sample_completions}")
        require(self.keep_checkpoints >= 1, f"keep_checkpoints: expected 1 or more, got {self.keep_checkpoints}")


def require(condition: bool, message: str) -> None:
    """Raise ConfigRefused with `message` unless `condition` holds."""
    if not condition:
        raise ConfigRefused(message)


def load_config(kind: type[C], file: Path | None, overrides: list[str]) -> C:
    """A `kind` from a TOML file and overrides such as ``steps=10`` or ``prompt_mix.ask=1``, which win over the file.

    Raises ConfigRefused: no such file, not TOML, an unknown key (with the nearest known one), a missing setting, a
    value of another type, or whatever `kind` refuses about its own values.
    """
    where = str(file) if file else "settings"
    tree = _read_toml(file) if file else {}
    for override in overrides:
        _put(tree, override)
    try:
        return _build(kind, tree, "")
    except ConfigRefused as error:
        raise ConfigRefused(f"{where}: {error}") from None


def settings_json(config: Any) -> dict[str, Any]:
    """The resolved settings with plain values, as they are written into the run directory."""
    return {name: _plain(value) for name, value in asdict(config).items()}


@dataclass(frozen=True)
class _Typed:
    """An override's value as it was typed: read as TOML where it is TOML, else taken as text."""

    text: str

    def parsed(self) -> Any:
        try:
            return tomllib.loads(f"value = {self.text}")["value"]
        except tomllib.TOMLDecodeError:
            return self.text


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigRefused(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigRefused(f"{file}: not TOML ({error})") from None


def _put(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigRefused(f"--set {override}: expected key=value")
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigRefused(f"--set {override}: {parent} is not a group of settings")
    tree[last] = _Typed(value.strip())


def _build(kind: type[C], tree: dict[str, Any], prefix: str) -> C:
    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigRefused(f"there is no setting {prefix}{name}{hint}")
    for one in fields(kind):  # type: ignore[arg-type]
        if one.default is MISSING and one.default_factory is MISSING and one.name not in tree:
            raise ConfigRefused(f"setting {prefix}{one.name} is missing: expected {_expected(hints[one.name])}")
    values = {name: _convert(value, hints[name], prefix + name) for name, value in tree.items()}
    try:
        return kind(**values)
    except ConfigRefused:
        raise
    except ValueError as error:  # a dataclass of the contract, which knows no ConfigRefused
        raise ConfigRefused(f"{prefix.rstrip('.')}: {error}") from None


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        value = value.parsed() if isinstance(value, _Typed) else value
        if isinstance(value, dict):
            return _build(hint, value, f"{name}.")  # type: ignore[arg-type]
    elif origin in (Union, types.UnionType):
        if isinstance(value, _Typed) and value.text.lower() == "none":
            return None
        inner = next(option for option in options if option is not types.NoneType)
        return _convert(value, inner, name)
    elif origin is tuple:
        items = value.parsed() if isinstance(value, _Typed) else value
        if isinstance(value, _Typed) and not isinstance(items, list):
            items = [_Typed(item.strip()) for item in value.text.split(",")]
        if isinstance(items, list):
            return tuple(_convert(item, options[0], name) for item in items)
    else:
        return _scalar(value, hint, name)
    raise _wrong(value, hint, name)


def _scalar(value: Any, hint: Any, name: str) -> Any:
    text = value.text if isinstance(value, _Typed) else value
    parsed = value.parsed() if isinstance(value, _Typed) else value
    textual = parsed if isinstance(parsed, str) else text
    if get_origin(hint) is Literal:
        if textual in get_args(hint):
            return textual
    elif isinstance(hint, type) and issubclass(hint, StrEnum):
        if isinstance(textual, str) and textual in list(hint):
            return hint(textual)
    elif hint is Path:
        if isinstance(textual, str) and textual:
            return Path(textual)
    elif hint is str:
        if isinstance(textual, str):
            return textual
    elif hint is float:
        if isinstance(parsed, int | float) and not isinstance(parsed, bool):
            return float(parsed)
    elif isinstance(parsed, hint) and (hint is bool or not isinstance(parsed, bool)):
        return parsed
    raise _wrong(value, hint, name)


def expected(hint: Any) -> str:
    """What a value of a type looks like, in words."""
    return _expected(hint)


def _wrong(value: Any, hint: Any, name: str) -> ConfigRefused:
    shown = value.text if isinstance(value, _Typed) else value
    return ConfigRefused(f"{name}: expected {_expected(hint)}, found {shown!r}")


def _expected(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(options)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(option) for option in options if option is not types.NoneType) + " or none"
    if origin is tuple:
        return f"a list, each {_expected(options[0])}"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "one of " + ", ".join(hint)
    return names.get(hint, "a group of settings")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
