"""Low-rank adapters: train a few million parameters beside frozen weights, and keep the start model for nothing.

peft's layers stand inside of the model, so that everything else treats it as before. An adapter is saved as peft saves
it (``adapter_config.json``, ``adapter_model.safetensors``); the trained model is saved merged, a plain directory. The
reference policy of a KL term is the same model with its adapter switched off.
Not here: saving the merged weights (model.py, which asks `merged_weights`), the loops.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.config import ConfigRefused, LoraConfig

ADAPTER = "adapter"
_NAME = "default"
_PLACE = r"(?:.*\.)?language_model\..*\.(?:{})"


def add_adapter(model: torch.nn.Module, config: LoraConfig) -> None:
    """Freeze the model and put a new adapter into it, which changes nothing yet.

    ConfigRefused when peft is not installed or a target names no linear layer of the language model.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigRefused("lora.r: adapters need peft, which is not installed: pip install peft") from None
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(_PLACE.format(".*"), name)
    }
    if unknown := sorted(set(config.target_modules) - linear):
        known = ", ".join(sorted(linear))
        raise ConfigRefused(f"lora.target_modules: {unknown[0]} is no linear layer of this model: expected {known}")
    model.requires_grad_(False)
    peft.inject_adapter_in_model(_peft_config(config), model, adapter_name=_NAME)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates vanish in the 16 bits the frozen weights may have


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether `add_adapter` was called on it."""
    return any(_is_adapted(module) for module in model.modules())


@contextlib.contextmanager
def adapter_disabled(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before training."""
    adapted = [module for module in model.modules() if _is_adapted(module)]
    for module in adapted:
        _enable(module, False)
    try:
        yield
    finally:
        for module in adapted:
            _enable(module, True)


def save_adapter(model: torch.nn.Module, config: LoraConfig, start: Path, directory: Path) -> None:
    """Write the adapter as peft does; `start` is named in it as the model it belongs to."""
    import peft
    from safetensors.torch import save_file

    told = _peft_config(config)
    told.base_model_name_or_path = str(start)
    told.save_pretrained(directory)
    weights = peft.get_peft_model_state_dict(model, adapter_name=_NAME)
    # Names as in a model that peft wrapped, so that peft.PeftModel.from_pretrained finds them.
    named = {f"base_model.model.{name}": value.detach().contiguous().cpu() for name, value in weights.items()}
    save_file(named, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(model: torch.nn.Module, directory: Path) -> None:
    """Put saved weights into the adapter. ConfigRefused when they are damaged or of another adapter."""
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "adapter_model.safetensors"
    try:
        weights = load_file(path)
        named = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
        ours = peft.get_peft_model_state_dict(model, adapter_name=_NAME)
        if named.keys() != ours.keys():
            raise ConfigRefused(f"{path}: the adapter is another one than lora.target_modules describes")
        peft.set_peft_model_state_dict(model, named, adapter_name=_NAME)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConfigRefused(f"{path}: cannot be loaded ({str(error).splitlines()[0]}): is lora.r the same?") from None


def merged_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a plain model that computes the same, named as without an adapter. The model is not changed."""
    adapted = {name: module for name, module in model.named_modules() if _is_adapted(module)}
    weights: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            continue
        owner, _, last = name.rpartition(".base_layer.")
        if owner in adapted and last == "weight":
            value = (value.float() + adapted[owner].get_delta_weight(_NAME).float()).to(value.dtype)
        weights[name.replace(".base_layer.", ".")] = value
    return weights


def _peft_config(config: LoraConfig) -> Any:
    import peft

    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=_PLACE.format("|".join(re.escape(name) for name in config.target_modules)),
        bias="none",
    )


def _enable(module: Any, enabled: bool) -> None:
    module.enable_adapters(enabled)


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "enable_adapters")
