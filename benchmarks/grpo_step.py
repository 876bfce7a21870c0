"""A whole GRPO step, ours beside TRL's GRPOTrainer: one process, one model, one data set, in turns.

A step is rollout, reward, log-probabilities, backward and optimizer. Both sides write completions of exactly the same
length (no word may end them) and earn random rewards, so that no group is skipped. Ours is `trainer.grpo.train_step`
itself on an export; TRL's is `GRPOTrainer.train`, timed between the ends of its steps. Both read a step's pictures from
their files, ours without its cache, TRL by the PIL image processor. Also: what either way of computing
log-probabilities keeps for its backward pass. Not here: equality of the two (tests/trainer).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from trainer import grpo
from trainer.contract import prompts
from trainer.contract.dimensions import AnswerSource, Dimension, Polarity, Split
from trainer.contract.exports import write_export
from trainer.contract.prompts import PROMPT_VERSIONS, Prompt, PromptKind, Text
from trainer.contract.records import ImageFile, Record
from trainer.contract.scores import Grade, RewardWeights
from trainer.data import Example, encode_prompts
from trainer.grpo import GRPOConfig
from trainer.images import pixel_inputs
from trainer.model import Screener, load_screener, new_screener, save_screener
from trainer.objective import LossType
from trainer.rewards import grade_completions
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs, repeated_prompt_logprobs

MODEL = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    },
}
"""A tiny Qwen3-VL with the family's own patches: 32 pixels a token. Random weights."""
IMAGES, RECORDS = 5, 16
RATE, CLIP = 1e-4, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One size of a step."""

    side: int
    """Tokens along one side of each of the five images."""
    prompt: int
    """Tokens of a prompt; the question is cut so that they are exactly this many."""
    completion: int
    prompts_per_step: int
    group: int = 8

    @property
    def bound(self) -> float:
        """What sharing the prompt saves if time is tokens: G(P + C) / (P + G·C)."""
        return self.group * (self.prompt + self.completion) / (self.prompt + self.group * self.completion)


class Bench:
    """A model and an export of noise in `directory`, for cases of one image size."""

    def __init__(self, directory: Path, side: int, prompt: int) -> None:
        torch.manual_seed(0)
        self.directory = directory
        start = directory / "start"
        start.mkdir(parents=True)
        (start / "config.json").write_text(json.dumps(MODEL))
        self.words, screener = _prompt_of(start, prompt, side)
        self.pixels = side * screener.image_processor.patch_size * screener.image_processor.merge_size
        self.parameters = sum(weight.numel() for weight in screener.model.parameters())
        self.model_dir, self.export_dir = directory / "model", directory / "export"
        save_screener(screener, self.model_dir)
        _write_noise(self.export_dir, directory / "stored", self.pixels)

    def our_step(self, case: Case, run_dir: Path) -> Callable[[], float]:
        """A call that takes one step and says its seconds."""
        config = GRPOConfig(
            export_dir=self.export_dir,
            model_dir=self.model_dir,
            run_dir=run_dir,
            steps=1_000_000,
            learning_rate=RATE,
            warmup=0.0,
            clip=CLIP,
            prompts_per_step=case.prompts_per_step,
            num_generations=case.group,
            max_completion_length=case.completion,
            loss_type=LossType.DAPO,
            start_gate="off",
            evaluate_records=0,
            image_cache_mb=0,
            device="cpu",
        )
        run = grpo.build(config)
        run.screener = run.writer = endless(run.screener)
        with patch.object(grpo, "make_example", self._asked):
            lengths = grpo.see_records(run, list(run.train_records.values())).batch.lengths.tolist()
        if set(lengths) != {case.prompt}:
            raise RuntimeError(f"prompts have {lengths} tokens, expected {case.prompt}")

        def step() -> float:
            began = time.perf_counter()
            with (
                patch.object(grpo, "grade_completions", _random_grades),
                patch.object(grpo, "make_example", self._asked),
            ):
                figures = grpo.train_step(run)
            took = time.perf_counter() - began
            if figures["completion_tokens"] != case.completion or figures["zero_advantage"]:
                raise RuntimeError(f"the step is not the one to measure: {figures}")
            run.state.step += 1
            return took

        return step

    def beside_trl(self, case: Case, ours: Callable[[], float], rounds: int) -> tuple[float, float]:
        """Median seconds of our step and of TRL's, A B A B …, after an uncounted round."""
        from datasets import Dataset
        from transformers import AutoModelForImageTextToText, TrainerCallback
        from transformers.utils.logging import set_verbosity_error
        from trl import GRPOConfig as TRLConfig
        from trl import GRPOTrainer

        set_verbosity_error()
        screener = load_screener(self.model_dir, "cpu")
        model = AutoModelForImageTextToText.from_pretrained(self.model_dir, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        content = prompts.template_messages(Prompt(PromptKind.ASK, "", self.words))
        stored = sorted((self.export_dir / "images").rglob("*.png"))
        rows = [
            {"prompt": content, "images": [_opened(path) for path in stored[at : at + IMAGES]]}
            for at in range(0, len(stored), IMAGES)
        ]
        seconds: list[float] = []
        our_seconds: list[float] = []

        class Turns(TrainerCallback):  # type: ignore[misc]
            began = time.perf_counter()

            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                if not seconds:
                    Turns.began = min(Turns.began, time.perf_counter())

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                seconds.append(time.perf_counter() - Turns.began)
                our_seconds.append(ours())
                Turns.began = time.perf_counter()

        config = TRLConfig(
            output_dir=str(self.directory / "trl"),
            per_device_train_batch_size=case.group * case.prompts_per_step,
            num_generations=case.group,
            max_completion_length=case.completion,
            max_steps=rounds + 1,
            learning_rate=RATE,
            max_grad_norm=CLIP,
            loss_type="dapo",
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1_000_000,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            generation_kwargs={
                "min_new_tokens": case.completion,
                "suppress_tokens": [*screener.banned_token_ids, screener.end_token_id],
            },
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=_random_rewards,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=_processor(screener),
            callbacks=[Turns()],
        )
        with contextlib.redirect_stdout(io.StringIO()):
            Turns.began = time.perf_counter()
            trainer.train()
        return statistics.median(our_seconds[1:]), statistics.median(seconds[1:])

    def kept_bytes(self, case: Case) -> tuple[int, int]:
        """Bytes kept for backward by our log-probabilities of one group, and by those of the repeated prompt."""
        screener = load_screener(self.model_dir, "cpu")
        pictures = [torch.randint(0, 256, (self.pixels, self.pixels, 3), dtype=torch.uint8) for _ in range(IMAGES)]
        encoded = encode_prompts(screener, [Prompt(PromptKind.ASK, "", self.words)], [pictures])
        said = [Branch([], torch.randint(300, 340, (case.completion,)).tolist()) for _ in range(case.group)]
        groups = PrefixGroups(encoded, [said])
        pixels = [pixel_inputs(screener, pictures)]
        return (
            _saved(screener, lambda: completion_logprobs(screener, groups).logprobs),
            _saved(screener, lambda: repeated_prompt_logprobs(screener, groups, pixels).logprobs),
        )

    def _asked(self, record: Record, kind: PromptKind) -> Example:
        return Example(record=record, prompt=Prompt(kind, "", self.words), target="")


def _prompt_of(start: Path, tokens: int, side: int) -> tuple[tuple[Any, ...], Screener]:
    """Prompt parts that make exactly this many tokens with five images, and a new screener that reads them so."""
    ask = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, IMAGES - 1)
    texts = [part.text for part in ask.parts if isinstance(part, Text)]
    screener = new_screener(start, texts, seed=0, device="cpu")
    pixels = side * screener.image_processor.patch_size * screener.image_processor.merge_size
    blank = [torch.zeros(pixels, pixels, 3, dtype=torch.uint8) for _ in range(IMAGES)]
    for length in range(len(ask.question) + 1):
        words = (*ask.parts[:-1], Text(ask.question[:length] or " "))
        found = int(encode_prompts(screener, [Prompt(PromptKind.ASK, "", words)], [blank]).lengths[0])
        if found == tokens:
            return words, screener
    raise ValueError(f"no question makes a prompt of {tokens} tokens with images of {side} tokens a side")


def _write_noise(directory: Path, stored: Path, pixels: int) -> None:
    stored.mkdir(parents=True)
    records = []
    for number in range(RECORDS):
        files = []
        for place in range(IMAGES):
            name = f"{number:02d}-{place}.png"
            noise = torch.randint(0, 256, (pixels, pixels, 3), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(stored / name)
            files.append(_image_file(stored, name, pixels))
        records.append(
            Record(
                id=f"s{number:02d}:{Dimension.PHYSICAL_SHADOW}",
                sample_id=f"s{number:02d}",
                split=Split.TRAIN,
                dimension=Dimension.PHYSICAL_SHADOW,
                polarity=Polarity.ACCEPTABLE,
                original=files[0],
                candidates=tuple(files[1:]),
                answer=frozenset("A"),
                answer_source=AnswerSource.GOLD,
                rationale="",
                approach=None,
                annotators=1,
                agreement=None,
                prompt_version=PROMPT_VERSIONS[PromptKind.ASK],
                meta={},
            )
        )
    write_export(
        directory,
        records=records,
        polarity=Polarity.ACCEPTABLE,
        prompt_versions={kind.value: version for kind, version in PROMPT_VERSIONS.items()},
        image_source=lambda path: stored / Path(path).name,
        about={"name": "noise"},
    )


def _image_file(stored: Path, name: str, pixels: int) -> ImageFile:
    digest = hashlib.sha256((stored / name).read_bytes()).hexdigest()
    (stored / name).rename(stored / f"{digest}.png")
    return ImageFile(path=f"images/{digest[:2]}/{digest}.png", sha256=digest, width=pixels, height=pixels)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


class _Endless(Screener):
    @property
    def banned_token_ids(self) -> list[int]:
        return [*super().banned_token_ids, self.end_token_id]


def endless(screener: Screener) -> Screener:
    """The same screener, which may not end a completion."""
    return _Endless(
        model=screener.model,
        tokenizer=screener.tokenizer,
        image_processor=screener.image_processor,
        architecture=screener.architecture,
        prefix_attention=screener.prefix_attention,
    )


def _random_grades(record: Record, completions: Sequence[str], weights: RewardWeights) -> list[Grade]:
    return [replace(grade, reward=random.random()) for grade in grade_completions(record, completions, weights)]


def _random_rewards(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    return [random.random() for _ in completions]


def _processor(screener: Screener) -> Any:
    """What TRL needs: a processor of tokenizer and image processor that can be built without torchvision."""
    from transformers.processing_utils import ProcessorMixin

    class ImageProcessor(ProcessorMixin):  # type: ignore[misc]
        return_mm_token_type_ids = True

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token = screener.image_marks[1]
            self.image_token_id = screener.image_token_id
            self.video_token_id = screener.model.config.video_token_id
            self.video_token = tokenizer.convert_ids_to_tokens(self.video_token_id)
            super().__init__(image_processor, tokenizer, chat_template=chat_template)

        def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
            patches = int(image_inputs["image_grid_thw"][image_idx].prod())
            placeholder: str = self.image_token
            merge = int(self.image_processor.merge_size)
            return placeholder * (patches // merge**2)

    screener.tokenizer.padding_side = "left"
    return ImageProcessor(screener.image_processor, screener.tokenizer, screener.tokenizer.chat_template)


def _saved(screener: Screener, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of all tensors that one forward keeps for its backward pass; weights are not counted, each storage once."""
    weights = {weight.untyped_storage().data_ptr() for weight in screener.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            # Held, so that no other tensor gets its address.
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del out
    return total
