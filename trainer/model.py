"""A screener: a vision-language model with tokenizer and image processor, loaded from and saved to a directory.

Qwen3-VL, Qwen2.5-VL and InternVL3 (Hugging Face format) are read; anything else is refused by name. No AutoProcessor
and no torchvision: tokenizer and PIL image processor are held side by side, image placeholders are expanded in
data.py. Nothing is ever fetched.
Not here: prompts and pixels (data.py, images.py), forward passes of groups (shared_prefix.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from trainer import prefix_attention
from trainer.config import Refused
from trainer.fast_vision import speed_up_vision
from trainer.last_layer import shorten_last_layer
from trainer.lora import has_adapter, merged_weights
from trainer.tokenizer import IMAGE_END, IMAGE_PAD, IMAGE_START, VIDEO_PAD, train_tokenizer


class ModelRefused(Refused):
    """A model directory that cannot be used; the message names the directory and what was expected."""


T = TypeVar("T")
PrefixAttention = Literal["merged", "joined", "mask"]


class Architecture(StrEnum):
    """The model families that are read, by the `model_type` of their config.json."""

    QWEN3_VL = "qwen3_vl"
    QWEN2_5_VL = "qwen2_5_vl"
    INTERNVL = "internvl"


@dataclass(frozen=True, kw_only=True)
class Screener:
    """What judges images: everything needed to turn a prompt and images into logits."""

    model: Any
    """A transformers ...ForConditionalGeneration."""
    tokenizer: Any
    image_processor: Any
    architecture: Architecture
    prefix_attention: PrefixAttention = "merged"
    """How several branches share a prompt in one forward (prefix_attention.py); never `auto`."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def inside(self, function: Callable[..., T], *given: Any) -> T:
        """Call a function that uses parts of the model; where it is split among processes they are gathered inside."""
        found: T = getattr(self.model, "run_inside", _call)(function, *given)
        return found

    @property
    def image_token_id(self) -> int:
        """The token each merged image patch takes in the prompt."""
        return int(self.model.config.image_token_id)

    @property
    def end_token_id(self) -> int:
        """The token that ends a completion."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_token_id(self) -> int:
        """The token that fills up shorter rows; masked everywhere, so its identity does not matter."""
        pad = self.tokenizer.pad_token_id
        return int(self.end_token_id if pad is None else pad)

    @property
    def banned_token_ids(self) -> list[int]:
        """Tokens that may never be sampled: an image placeholder in a completion breaks every later forward of it."""
        config = self.model.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return sorted({getattr(config, name) for name in names if getattr(config, name, None) is not None})

    @property
    def image_marks(self) -> tuple[str, str, str]:
        """The texts that open an image, stand for one merged patch, and close it."""
        if self.architecture is Architecture.INTERNVL:
            return ("<img>", "<IMG_CONTEXT>", "</img>")
        return (IMAGE_START, IMAGE_PAD, IMAGE_END)

    @property
    def image_placeholder(self) -> str:
        """What the chat template writes where an image stands."""
        opening, patch, closing = self.image_marks
        return patch if self.architecture is Architecture.INTERNVL else opening + patch + closing

    @property
    def merge_size(self) -> int:
        """Image patches per side that become one token (Qwen models)."""
        return int(self.model.config.vision_config.spatial_merge_size)

    @property
    def vision_tower(self) -> Any:
        """The module that turns pixels into image tokens; its parameters are the vision parameters."""
        inner = self.model.model
        return inner.vision_tower if self.architecture is Architecture.INTERNVL else inner.visual

    @property
    def sight_learns(self) -> bool:
        """Whether anything that stands before the text stack is trained: the tower, or what joins it to the text.

        Where nothing is, what images become stays the same for a whole run, and needs no graph.
        """
        inner = self.model.model
        text = {id(weight) for weight in inner.language_model.parameters()}
        return any(weight.requires_grad for weight in inner.parameters() if id(weight) not in text)


def resolve_device(device: str) -> torch.device:
    """`auto` takes CUDA where there is one. ModelRefused when cuda is asked for and absent."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelRefused("device: expected a CUDA device, found none; use device=cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` computes in float32 on a CPU, whatever the weights are stored in, and in bfloat16 on CUDA."""
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def has_weights(directory: Path) -> bool:
    """Whether the directory holds a model to load rather than one to begin."""
    return any(directory.glob("*.safetensors"))


def load_screener(directory: Path, device: str = "auto", dtype: str = "auto") -> Screener:
    """A trained model with its tokenizer and image processor. ModelRefused names what is missing or unsupported."""
    config, architecture = _read_config(directory)
    if not has_weights(directory):
        raise ModelRefused(f"{directory}: expected weights (*.safetensors)")
    place = resolve_device(device)
    disable_progress_bar()  # a run has its own line of progress
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            directory,
            config=config,
            dtype=resolve_dtype(dtype, place),
            attn_implementation="sdpa",
            local_files_only=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelRefused(f"{directory}: the weights cannot be loaded ({_one_line(error)})") from None
    tokenizer = _read_tokenizer(directory)
    if tokenizer is None:
        raise ModelRefused(f"{directory}: expected a tokenizer (tokenizer.json)")
    return assemble_screener(
        model.to(place), tokenizer, _image_processor(directory, config, architecture), architecture
    )


def new_screener(
    directory: Path, texts: Iterable[str], seed: int, device: str = "auto", dtype: str = "auto"
) -> Screener:
    """Random weights for the architecture of `directory`/config.json, the same for one seed.

    A directory without a tokenizer gets one trained on `texts`, with at most the config's `vocab_size` tokens; the
    config's special token ids then follow it. Qwen models only: InternVL names its tokens in its own tokenizer.
    """
    config, architecture = _read_config(directory)
    tokenizer = _read_tokenizer(directory)
    if tokenizer is None:
        if architecture is Architecture.INTERNVL:
            raise ModelRefused(f"{directory}: expected a tokenizer (tokenizer.json): InternVL brings its own")
        try:
            tokenizer = train_tokenizer(texts, config.text_config.vocab_size)
        except ValueError as error:
            raise ModelRefused(f"{directory / 'config.json'}: {error}") from None
        follow_tokenizer(config, tokenizer)
    place = resolve_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model = model.to(device=place, dtype=resolve_dtype(dtype, place))
    return assemble_screener(model, tokenizer, _image_processor(directory, config, architecture), architecture)


def outlined_screener(directory: Path, dtype: str = "auto") -> Screener:
    """The model of a directory by its config alone: shapes without numbers, which take no memory and compute nothing.

    ModelRefused as in loading. Tokenizer and image processor are left out.
    """
    config, architecture = _read_config(directory)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=resolve_dtype(dtype, resolve_device("auto")))
    return Screener(model=model, tokenizer=None, image_processor=None, architecture=architecture)


def checkpoint_layers(model: Any) -> None:
    """Compute each layer's activations again going backward, in training mode, instead of keeping them."""
    # The second name is the first one's before transformers 5.20.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def save_screener(
    screener: Screener,
    directory: Path,
    stored_dtype: torch.dtype | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a directory that transformers loads by itself: weights, config, tokenizer, template, image processor.

    `stored_dtype` writes the weights in another type than they are computed in; the screener itself is not changed.
    An adapter is merged into what is written. `weights`: those to write, where the model's own are split among
    processes (distributed.whole_weights).
    """
    directory.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()
    model = screener.model
    if weights is None:
        weights = merged_weights(model) if has_adapter(model) else model.state_dict()
    if stored_dtype is not None:
        cast: dict[int, torch.Tensor] = {}  # weights that are tied stay one tensor
        for name, value in weights.items():
            if value.is_floating_point():
                weights[name] = cast.setdefault(value.data_ptr(), value.to(stored_dtype))
    model.save_pretrained(directory, state_dict=weights)
    if stored_dtype is not None:
        _tell_dtype(directory / "config.json", stored_dtype)
    screener.tokenizer.save_pretrained(directory)
    screener.image_processor.save_pretrained(directory)


def _tell_dtype(path: Path, stored_dtype: torch.dtype) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    for part in (told, *(value for value in told.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = str(stored_dtype).removeprefix("torch.")
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _call(function: Callable[..., T], *given: Any) -> T:
    return function(*given)


def assemble_screener(model: Any, tokenizer: Any, image_processor: Any, architecture: Architecture) -> Screener:
    """A transformers model, changed in place to compute as this trainer does, with what belongs to it."""
    speed_up_vision(model)
    shorten_last_layer(model)
    # The text stack alone: the vision tower has no prompt to share.
    model.config.text_config._attn_implementation = prefix_attention.NAME
    model.eval()
    return Screener(
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        architecture=architecture,
        prefix_attention="merged" if model.device.type == "cpu" else "joined",
    )


def _read_config(directory: Path) -> tuple[Any, Architecture]:
    path = directory / "config.json"
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise ModelRefused(f"{path} is missing: expected a Hugging Face model directory") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelRefused(f"{path}: cannot be read ({_one_line(error)})") from None
    if model_type not in list(Architecture):
        raise ModelRefused(f"{path}: model_type {model_type!r} is not supported: expected {', '.join(Architecture)}")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise ModelRefused(f"{path}: {_last_line(error)}") from None
    _refuse_partial_attention(path, config.text_config)
    return config, Architecture(model_type)


def _refuse_partial_attention(path: Path, text_config: Any) -> None:
    # A shared prefix is one row with a mask of our own: a layer that looks back only so far, or keeps a running
    # state instead of keys, would silently compute something else.
    kinds = set(getattr(text_config, "layer_types", None) or []) - {"full_attention"}
    if getattr(text_config, "use_sliding_window", False):
        kinds.add("sliding_attention")
    if kinds:
        raise ModelRefused(f"{path}: text layers of type {sorted(kinds)[0]} are not supported: expected full_attention")


def _read_tokenizer(directory: Path) -> Any | None:
    if not any((directory / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelRefused(f"{directory}: the tokenizer cannot be loaded ({_one_line(error)})") from None


def follow_tokenizer(config: Any, tokenizer: Any) -> None:
    """Give a new model's config the vocabulary size and special token ids of its tokenizer."""
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.bos_token_id = None
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    marks = {
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
        "vision_start_token_id": IMAGE_START,
        "vision_end_token_id": IMAGE_END,
    }
    for name, token in marks.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))


def _image_processor(directory: Path, config: Any, architecture: Architecture) -> Any:
    kind: Any = GotOcr2ImageProcessorPil if architecture is Architecture.INTERNVL else Qwen2VLImageProcessorPil
    if (directory / "preprocessor_config.json").exists():
        return kind.from_pretrained(directory, local_files_only=True)
    vision = config.vision_config
    if architecture is Architecture.INTERNVL:
        height, width = vision.image_size
        return kind(size={"height": height, "width": width})
    side = vision.patch_size * vision.spatial_merge_size
    return kind(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": side * side, "longest_edge": 1280 * side * side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _last_line(error: Exception) -> str:
    # A refused config names the class first and the fault last.
    return str(error).strip().splitlines()[-1].strip()[:200] if str(error).strip() else type(error).__name__
