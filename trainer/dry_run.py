"""What a run would do, without doing it: its settings as they were resolved, what its export holds and its model takes.

Nothing is loaded and nothing is written: a model's shapes follow from its config. Not here: the estimate of activations
and time, which needs the first batch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from trainer.config import RunConfig, TrainingConfig, settings_json
from trainer.contract.dimensions import DIMENSIONS, Split
from trainer.contract.exports import read_manifest, read_records
from trainer.contract.records import Record, same_polarity
from trainer.lora import add_adapter
from trainer.memory import Load, estimate
from trainer.model import ModelRefused, outlined_screener
from trainer.optimization import freeze_what_is_not_trained, training_screener_dtype


def describe(command: str, config: TrainingConfig) -> str:
    """The resolved settings as TOML, then the export's counts. ExportRefused when it cannot be read."""
    settings = settings_json(config)
    lines = [f"# python -m trainer {command}", *toml_lines(settings), ""]
    lines += [f"# {line}".rstrip() for line in (*_export_lines(config), *_model_lines(config))]
    if pace := _pace(command, settings, config):
        lines.append(f"# {pace}")
    return "\n".join(lines)


def toml_lines(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings as TOML with dotted keys; what is not set is a comment."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += toml_lines(value, f"{prefix}{name}.")
        elif value is None:
            lines.append(f"# {prefix}{name}: not set")
        else:  # JSON's text, numbers, truths and lists are TOML's, too
            lines.append(f"{prefix}{name} = {json.dumps(value, ensure_ascii=False)}")
    return lines


def _export_lines(config: RunConfig) -> list[str]:
    manifest = read_manifest(config.export_dir)
    images = [entry["bytes"] for path, entry in manifest.files.items() if path.startswith("images/")]
    found = [
        f"export: {manifest.about.get('name') or config.export_dir}, version {manifest.version_id[:12]}, "
        f"{manifest.polarity} candidates are listed, {len(images)} images of {sum(images) / 1e6:.1f} MB"
    ]
    wanted = set(config.dimensions)
    for split in Split:
        records = [record for record in read_records(config.export_dir, split) if record.dimension in wanted]
        found += _split_lines(split, same_polarity(records, config.polarity))
    return found


def _split_lines(split: Split, records: list[Record]) -> list[str]:
    if not records:
        return [f"{split}: no records in these dimensions"]
    written = sum(bool(record.rationale) for record in records)
    dimensions = Counter(record.dimension for record in records)
    sizes = Counter(len(record.answer) for record in records)
    return [
        f"{split}: {len(records)} records of {len({record.sample_id for record in records})} samples, "
        f"{written} with a rationale; " + _counted((name, dimensions[name]) for name in DIMENSIONS if dimensions[name]),
        "  letters in an answer: " + _counted((str(size), sizes[size]) for size in sorted(sizes))
        + "; candidates: " + _counted(sorted(Counter(str(len(record.candidates)) for record in records).items())),
    ]  # fmt: skip


def _counted(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {times}" for name, times in pairs)


def _model_lines(config: TrainingConfig) -> list[str]:
    directory = config.model_dir
    try:
        kind = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return [f"model: {directory} holds no config.json that can be read: this run would be refused"]
    weights = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return [
        f"model: {kind}, "
        + (f"{weights / 1e6:.1f} MB of weights" if weights else "no weights: begins from random ones"),
        _memory_line(config),
    ]


def _memory_line(config: TrainingConfig) -> str:
    """What stands in memory throughout, from the config alone: a vocabulary yet to be trained may turn out smaller."""
    try:
        screener = outlined_screener(config.model_dir, training_screener_dtype(config))
    except ModelRefused as refused:
        return f"this run would be refused: {refused}"
    if config.lora.r:
        with torch.device("meta"):
            add_adapter(screener.model, config.lora)
    freeze_what_is_not_trained(screener, config)
    frozen_start = getattr(config, "beta", 0.0) > 0 and not config.lora.r
    writer = config.fsdp and hasattr(config, "num_generations")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    nothing = Load(row_tokens=0, completion_tokens=0, patches=0)
    found = estimate(screener, config, nothing, processes=processes, copies=frozen_start + writer)
    return f"{found.told()}, and activations, which are told when the run starts"


def _pace(command: str, settings: dict[str, Any], config: RunConfig) -> str:
    """How often the run sees its records, where its length is in steps."""
    steps = settings.get("steps") or 0
    records = [
        record for record in read_records(config.export_dir, Split.TRAIN) if record.dimension in config.dimensions
    ]
    if not settings.get("answer_only", True):  # SFT leaves them out
        records = [record for record in records if record.rationale.strip()]
    if not steps or not records:
        return ""
    if command == "grpo":
        drawn = steps * settings["prompts_per_step"]
        return (
            f"{steps} steps draw {drawn} records ({drawn / len(records):.2f} times the train split) and write "
            f"{drawn * settings['num_generations']} completions"
        )
    samples = len({record.sample_id for record in records})
    return f"{steps} steps read {steps * settings['batch_samples'] / samples:.2f} times the train split"
