"""Tiny models of the three architectures and a tiny export of plain colours, built on the spot; nothing is fetched."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.contract.answers import Answer, format_completion
from trainer.contract.dimensions import AnswerSource, Approach, Dimension, Polarity, Split, letters
from trainer.contract.exports import write_export
from trainer.contract.prompts import PROMPT_VERSIONS, PromptKind
from trainer.contract.records import ImageFile, Record
from trainer.contract.scores import all_answers
from trainer.data import PromptBatch, completion_ids, encode_prompts, make_example, read_split
from trainer.images import ImageStore
from trainer.model import Architecture, Screener, new_screener, save_screener
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs

SIDE = 16
MakeExport = Callable[..., Path]
TEXTS = [
    "<|im_start|>user\nOriginal:Candidate A:Candidate B:Candidate C:Candidate D:",
    "Judge physical shadow. Which candidates are acceptable?<|im_end|>\n<|im_start|>assistant\n",
    "<think>A: looks right. B: looks wrong. C: looks right. D: looks wrong.</think><answer>A,C</answer>",
]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def qwen_config(model_type: str, **text: object) -> dict[str, object]:
    """config.json of a Qwen model of a few ten thousand parameters; image tokens are 8 by 8 pixels."""
    vision: dict[str, object] = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
    vision |= {
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "initializer_range": 0.06,
    }
    if model_type == "qwen3_vl":
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    else:
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    language: dict[str, object] = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    language |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.06}
    language |= {"max_position_embeddings": 2048, "rope_parameters": rope}
    return {"model_type": model_type, "text_config": language | text, "vision_config": vision}


def internvl_config() -> dict[str, object]:
    """config.json of an InternVL of the same size."""
    vision: dict[str, object] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    vision |= {"image_size": [SIDE, SIDE], "patch_size": [4, 4], "initializer_range": 0.06}
    text: dict[str, object] = {"model_type": "qwen2", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None}
    text |= {"initializer_range": 0.06}
    names = {"image_token_id": 2, "image_seq_length": 4, "downsample_ratio": 0.5}
    return {"model_type": "internvl", "vision_config": vision, "text_config": text, **names}


def internvl_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and InternVL's own control tokens, with its way of writing an image."""
    special = ["<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: index for index, token in enumerate(special + alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=special)
    tokenizer.eos_token = tokenizer.pad_token = special[1]
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def model_directory(directory: Path, architecture: str, **text: object) -> Path:
    """A directory with a config and no weights: what a new model starts from."""
    directory.mkdir(parents=True, exist_ok=True)
    config = internvl_config() if architecture == "internvl" else qwen_config(architecture, **text)
    (directory / "config.json").write_text(json.dumps(config))
    if architecture == "internvl":
        internvl_tokenizer().save_pretrained(directory)
    return directory


def make_screener(directory: Path, architecture: str = "qwen3_vl", seed: int = 0) -> Screener:
    """A tiny screener with random weights."""
    screener = new_screener(model_directory(directory, architecture), TEXTS, seed=seed, device="cpu")
    # A patch embedding of zero-initialised parts would hide images; every parameter gets a value that matters.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in screener.model.parameters():
            if parameter.std() == 0 or parameter.numel() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return screener


def stock_inputs(screener: Screener, batch: PromptBatch) -> dict[str, torch.Tensor]:
    """`model_inputs` of a model as transformers loads it: a Qwen tower of its own is given all frames of an image."""
    inputs = batch.model_inputs()
    if screener.architecture is not Architecture.INTERNVL:
        frames = screener.image_processor.temporal_patch_size
        rows = inputs["pixel_values"]
        inputs["pixel_values"] = rows.view(len(rows), 3, 1, -1).expand(-1, -1, frames, -1).reshape(len(rows), -1)
    return inputs


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl", "internvl"])
def any_screener(request: pytest.FixtureRequest, tmp_path: Path) -> Screener:
    """A tiny screener of each architecture in turn."""
    return make_screener(tmp_path / "model", request.param)


@pytest.fixture
def screener(tmp_path: Path) -> Screener:
    """A tiny Qwen3-VL screener."""
    return make_screener(tmp_path / "model")


def teach_the_form(screener: Screener, export: Path, dimensions: tuple[Dimension, ...]) -> None:
    """Let it write readable answers, any of the sixteen alike: it then knows the form and nothing else."""
    records = read_split(export, Split.TRAIN, dimensions, Polarity.ACCEPTABLE)[:4]
    images = ImageStore(screener, export)
    batch = encode_prompts(
        screener,
        [make_example(record, PromptKind.ASK).prompt for record in records],
        [images.of(record) for record in records],
    )
    said = [Branch([], completion_ids(screener, format_completion("", answer))) for answer in all_answers(4)]
    optimizer = torch.optim.AdamW(screener.model.parameters(), lr=4e-3)
    for _ in range(60):
        scored = completion_logprobs(screener, PrefixGroups(batch, [said] * len(records)))
        (-scored.logprobs.sum() / scored.mask.sum()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(screener.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


class KeptForBackward:
    """Inside, `most` is how many bytes autograd ever held at one time, weights left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.most = self._now = 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self._held: Counter[int] = Counter()

    def __enter__(self) -> KeptForBackward:
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(
            lambda kept: _Kept(self, kept), lambda it: it.tensor
        )
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.__exit__(kind, error, at)

    def count(self, tensor: torch.Tensor, change: int) -> None:
        """One more or one less that holds this tensor's memory."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._weights:
            return
        before = self._held[storage.data_ptr()]
        self._held[storage.data_ptr()] = before + change
        if not before or not before + change:
            self._now += change * storage.nbytes()
        self.most = max(self.most, self._now)


class _Kept:
    """A tensor that autograd holds; gone when autograd lets it go."""

    def __init__(self, counts: KeptForBackward, tensor: torch.Tensor) -> None:
        self.counts, self.tensor = counts, tensor.detach()
        counts.count(self.tensor, 1)

    def __del__(self) -> None:
        self.counts.count(self.tensor, -1)


def random_images(count: int, seed: int = 0, height: int = SIDE, width: int = SIDE) -> list[torch.Tensor]:
    """Prepared images of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (height, width, 3)
    return [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(count)]


def write_image(directory: Path, colour: tuple[int, int, int], noise: int = 0) -> ImageFile:
    """One plain picture, a little different by `noise`, where an export keeps it."""
    pixels = np.full((SIDE, SIDE, 3), colour, dtype=np.uint8)
    pixels[0, 0] = [noise % 256, noise // 256 % 256, 0]
    path = directory / f"{noise}.png"
    Image.fromarray(pixels).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(directory / f"{digest}.png")
    return ImageFile(path=f"images/{digest[:2]}/{digest}.png", sha256=digest, width=SIDE, height=SIDE)


GREEN, RED = (30, 200, 60), (200, 40, 40)


@pytest.fixture
def make_export(tmp_path: Path) -> MakeExport:
    """An export whose answers can be seen: green candidates are acceptable, red ones are not."""

    def make(
        samples: int = 8,
        rationales: bool = True,
        dimensions: tuple[Dimension, ...] = tuple(Dimension),
        untold: tuple[Split, ...] = (),
        directory: str = "export",
    ) -> Path:
        stored = tmp_path / "stored"
        stored.mkdir(exist_ok=True)
        records: list[Record] = []
        rng, noise = np.random.default_rng(0), 0
        for number in range(samples):
            good = rng.random(4) < 0.5
            pictures = []
            for colour in [(128, 128, 128), *(GREEN if is_good else RED for is_good in good)]:
                noise += 1
                pictures.append(write_image(stored, colour, noise))
            answer: Answer = frozenset(name for name, is_good in zip(letters(4), good, strict=True) if is_good)
            seen = " ".join(f"{name}: {'green' if name in answer else 'red'}." for name in letters(4))
            split = Split.VALIDATION if number % 4 == 3 else Split.TRAIN
            told = rationales and split not in untold
            records.extend(
                Record(
                    id=f"s{number:04d}:{dimension}",
                    sample_id=f"s{number:04d}",
                    split=split,
                    dimension=dimension,
                    polarity=Polarity.ACCEPTABLE,
                    original=pictures[0],
                    candidates=tuple(pictures[1:]),
                    answer=answer,
                    answer_source=AnswerSource.GOLD,
                    rationale=seen if told else "",
                    approach=Approach.MANUAL if told else None,
                    annotators=1,
                    agreement=None,
                    prompt_version="ask-1",
                    meta={},
                )
                for dimension in dimensions
            )
        written = tmp_path / directory
        write_export(
            written,
            records=sorted(records, key=lambda record: record.id),
            polarity=Polarity.ACCEPTABLE,
            prompt_versions={kind.value: version for kind, version in PROMPT_VERSIONS.items()},
            image_source=lambda path: stored / Path(path).name,
            about={"name": "colours"},
        )
        return written

    return make


SHADOW = (Dimension.PHYSICAL_SHADOW,)


@pytest.fixture
def export(make_export: MakeExport) -> Path:
    """Sixteen samples in one dimension, without rationales."""
    return make_export(samples=16, rationales=False, dimensions=SHADOW)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Path:
    """A model that writes readable answers, any of the sixteen alike: it knows the form and nothing else. Made once."""
    directory = tmp_path_factory.getbasetemp() / "grpo-start"
    if directory.exists():
        return directory
    screener = make_screener(tmp_path_factory.mktemp("new"))
    teach_the_form(screener, export, SHADOW)
    save_screener(screener, directory)
    return directory
