"""One GRPO step of a model of real size on one device: speed, use of the device, memory, beside the repeated prompt.

    python -m benchmarks.gpu_step                          # 2 B parameters in bfloat16, five images of 512 pixels
    python -m benchmarks.gpu_step --size 4b --group 16 --checkpointing
    python -m benchmarks.gpu_step --size tiny --pixels 64 --completion 8 --group 2 --rounds 1   # a CPU, in seconds

Random weights; needs torch, transformers and this repository, nothing that is downloaded. One JSON object per line.
Our step is that of grpo.py: prompts are read once for writing and learning. That reading counts as training, as its
backward pass does; what the peer reads of the prompt stands where it reads it, when writing and when learning.
Not here: the comparison with TRL (grpo_step.py).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.grpo_step import MODEL, endless
from benchmarks.measurement import Measurement
from trainer.contract import prompts
from trainer.contract.dimensions import Dimension, Polarity
from trainer.contract.prompts import Text
from trainer.grpo import GRPOConfig
from trainer.last_layer import is_short
from trainer.model import Architecture, Screener, assemble_screener, checkpoint_layers, follow_tokenizer
from trainer.rollout import Sampling, write_seen_groups
from trainer.seen_prompts import Once, SeenPrompts, see
from trainer.shared_prefix import Branch, PrefixGroups, SelfCheck, completion_logprobs, self_check, token_logprobs
from trainer.tokenizer import train_tokenizer

IMAGES = 5
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.0, "A10": 125.0}
"""Dense bfloat16, by a part of the device's name; the makers' figures."""


def main(arguments: list[str] | None = None) -> int:
    """Print the measurements."""
    given = parser().parse_args(arguments)
    for measurement in measure(given):
        print(json.dumps(measurement), flush=True)
    return 0


def measure(given: argparse.Namespace) -> Iterator[Measurement]:
    """Rollout, training pass, memory, whole step; each beside the repeated prompt where that fits into memory.

    SelfCheckFailed where both sides do not compute the same.
    """
    bench = Bench(given)
    checked = bench.check()
    setting: dict[str, Any] = {
        "prompt_tokens": int(bench.heads.lengths[0]),
        "completion_tokens": given.completion,
        "group": given.group,
        "prompts_per_step": given.prompts,
        "params": sum(weight.numel() for weight in bench.model.parameters()),
        "device": bench.device_name,
        "dtype": str(bench.model.dtype).removeprefix("torch."),
        "checkpointing": given.checkpointing,
        "compute_once": bench.once,
        "self_check": {"logprobs": checked.logprobs, "gradients": checked.gradients},
    }
    ours = bench.shared()
    memory = bench.extra_memory(lambda: bench.learn_shared(bench.see()))
    theirs: dict[str, float | None] = dict.fromkeys(ours)
    their_memory: float | None = None
    if not given.shared_only:
        theirs = {name: bench.timed_or_none(call) for name, call in bench.repeated().items()}
        their_memory = bench.extra_memory(bench.learn_repeated) if theirs["train"] else None
    written = given.prompts * given.group * given.completion

    def line(name: str, value: float, unit: str, peer: float | None, ratio: float | None) -> Measurement:
        return {
            "name": f"gpu_step.{name}",
            "value": float(f"{value:.4g}"),
            "unit": unit,
            "peer": None if peer is None else float(f"{peer:.4g}"),
            "ratio": None if ratio is None else round(ratio, 2),
            "setting": setting,
        }

    def gain(name: str) -> float | None:
        peer = theirs[name]
        return None if peer is None else peer / ours[name]

    peer_rollout = theirs["rollout"]
    yield line(
        "rollout", written / ours["rollout"], "tokens/s", peer_rollout and written / peer_rollout, gain("rollout")
    )
    yield line("train_seconds", ours["train"], "s", theirs["train"], gain("train"))
    if bench.peak:
        yield line("train_mfu", bench.flops() / ours["train"] / bench.peak, "of peak", None, None)
    else:
        yield line("train_tflops", bench.flops() / ours["train"] / 1e12, "TFLOP/s", None, None)
    if memory is not None:
        yield line(
            "memory", memory, "GiB above weights and optimizer", their_memory, their_memory and their_memory / memory
        )
    step = sum(ours.values())
    peers = [theirs[name] for name in ours]
    peer_step = sum(peer or 0.0 for peer in peers) if all(peers) else None
    yield line("step_seconds", step, "s", peer_step, peer_step and peer_step / step)


class Bench:
    """A model, its optimizer and a step's prompts."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given = given
        self.device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.cuda = self.device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(self.device) if self.cuda else "cpu"
        known = next((value for part, value in PEAK_TFLOPS.items() if part in self.device_name), 0.0)
        self.peak = 1e12 * (given.peak_tflops or known)
        prompt = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, IMAGES - 1)
        self.prompts = [prompt] * given.prompts
        self.once: Once = "images" if given.checkpointing else "prompts"  # as grpo can
        self.screener = _screener(given, self.device, [part.text for part in prompt.parts if isinstance(part, Text)])
        self.model = self.screener.model
        if given.checkpointing:
            checkpoint_layers(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        shape = (given.pixels, given.pixels, 3)
        self.images = [
            [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(IMAGES)] for _ in range(given.prompts)
        ]
        self.heads = see(self.screener, self.prompts, self.images, range(given.prompts), once="nothing").batch
        self.pixels = self.heads.pixel_values.chunk(given.prompts)
        said = torch.randint(300, 380, (given.prompts, given.group, given.completion))
        self.said = said.to(self.device)
        self.branches = [[Branch([], row) for row in rows] for rows in said.tolist()]

    def check(self) -> SelfCheck:
        """What is measured computes what repeated prompts do; SelfCheckFailed where it does not."""
        self.model.eval()
        groups, bits = PrefixGroups(self.heads, self.branches), 8 * self.model.dtype.itemsize
        return self_check(self.screener, groups, read_before=self.once == "prompts", bits=bits)

    def shared(self) -> dict[str, float]:
        """Median seconds of the parts of our step, after an uncounted one."""
        steps: list[dict[str, float]] = []
        for _ in range(self.given.rounds + 1):
            seconds: dict[str, float] = {}
            with self._clocked(seconds, "read"):
                seen = self.see()
            with self._clocked(seconds, "rollout"):
                self.write_shared(seen)
            with self._clocked(seconds, "learn"):
                self.learn_shared(seen)
            with self._clocked(seconds, "update"):
                self.update()
            self.optimizer.zero_grad(set_to_none=True)
            steps.append(seconds)
        median = {part: statistics.median(step[part] for step in steps[1:]) for part in steps[0]}
        return {"rollout": median["rollout"], "train": median["read"] + median["learn"], "update": median["update"]}

    def repeated(self) -> dict[str, Callable[[], object]]:
        """The same parts with the prompt and its images once per completion."""
        return {"rollout": self.write_repeated, "train": self.learn_repeated, "update": self.update}

    def see(self) -> SeenPrompts:
        """Encode the prompts, and compute what writing and learning have in common."""
        self.model.train(self.given.checkpointing)
        return see(self.screener, self.prompts, self.images, range(self.given.prompts), once=self.once)

    def write_shared(self, seen: SeenPrompts) -> None:
        self.model.eval()
        sampling = Sampling(max_new_tokens=self.given.completion, temperature=1.0)
        write_seen_groups(seen, seen.places, sampling, self.given.group)

    @torch.no_grad()
    def write_repeated(self) -> None:
        self.model.eval()
        group = self.given.group
        self.model.generate(
            input_ids=self.heads.input_ids.repeat_interleave(group, 0),
            attention_mask=self.heads.attention_mask.repeat_interleave(group, 0),
            mm_token_type_ids=self.heads.mm_token_type_ids.repeat_interleave(group, 0),
            **self._repeated_images(range(self.given.prompts)),
            max_new_tokens=self.given.completion,
            min_new_tokens=self.given.completion,
            do_sample=True,
            top_k=0,
            suppress_tokens=self.screener.banned_token_ids,
            pad_token_id=self.screener.pad_token_id,
        )

    def learn_shared(self, seen: SeenPrompts) -> None:
        """As many groups in one forward as grpo takes by default."""
        self.model.train(self.given.checkpointing)
        at_once = GRPOConfig.groups_per_forward
        for at in range(0, self.given.prompts, at_once):
            places = range(self.given.prompts)[at : at + at_once]
            groups = PrefixGroups(seen.select(places), [self.branches[place] for place in places])
            with seen.shown(places, graph=True):
                scored = completion_logprobs(self.screener, groups, read=seen.beginnings(places))
            (scored.logprobs.sum() / self.said.numel()).backward()  # type: ignore[no-untyped-call]

    def learn_repeated(self) -> None:
        """One group at a time: what a step of a single prompt would hold."""
        self.model.train(self.given.checkpointing)
        group, length = self.given.group, int(self.heads.lengths[0])
        for place in range(self.given.prompts):
            ids = torch.cat([self.heads.input_ids[place, None].expand(group, -1), self.said[place]], 1)
            hidden = self.model.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == self.screener.image_token_id).int(),
                use_cache=False,
                **self._repeated_images([place]),
            ).last_hidden_state[:, length - 1 : -1]
            logprobs, _ = token_logprobs(self.screener, hidden.flatten(0, 1), self.said[place].flatten())
            (logprobs.mean() / self.given.prompts).backward()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _repeated_images(self, places: Any) -> dict[str, torch.Tensor]:
        group = self.given.group
        grids = self.heads.image_grid_thw
        assert grids is not None
        each = grids[:IMAGES].repeat(len(places) * group, 1)
        return {
            "pixel_values": torch.cat([self.pixels[place].repeat(group, 1) for place in places]),
            "image_grid_thw": each,
        }

    @contextlib.contextmanager
    def _clocked(self, seconds: dict[str, float], part: str) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        seconds[part] = time.perf_counter() - began

    def timed(self, call: Callable[[], object]) -> float:
        """Median seconds after an uncounted round; gradients are dropped after each."""
        seconds = []
        for _ in range(self.given.rounds + 1):
            if call == self.update:
                self._fill_gradients()
            self._wait()
            began = time.perf_counter()
            call()
            self._wait()
            seconds.append(time.perf_counter() - began)
            self.optimizer.zero_grad(set_to_none=True)
        return statistics.median(seconds[1:])

    def timed_or_none(self, call: Callable[[], object]) -> float | None:
        """The same; None where it does not fit into memory."""
        try:
            return self.timed(call)
        except torch.cuda.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None

    def extra_memory(self, learn: Callable[[], object]) -> float | None:
        """GiB at the peak of a training pass, less weights and optimizer state. None on a CPU, which does not count."""
        if not self.cuda:
            return None
        state = [value for kept in self.optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
        held = {value.data_ptr(): value.nbytes for value in [*self.model.parameters(), *state]}
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        learn()
        peak = torch.cuda.max_memory_allocated()
        self.optimizer.zero_grad(set_to_none=True)
        return float(peak - sum(held.values())) / 2**30

    def flops(self) -> float:
        """What the shared training pass has to compute, forward and twice that backward: products and attention.

        Nothing is counted twice for checkpointed layers, nothing for copies of the prompt, and nothing that the last
        layer leaves out.
        """
        given, config = self.given, self.model.config
        text, vision = config.text_config, config.vision_config
        prompt, said = int(self.heads.lengths[0]), given.group * given.completion
        tokens = given.prompts * (prompt + said)
        *layers, last = self.model.model.language_model.layers
        short = is_short(self.model)
        read = given.prompts * (said + 1) if short else tokens
        keys = _size(last.self_attn.k_proj) + _size(last.self_attn.v_proj)
        products = 2 * (sum(map(_size, layers)) + keys) * tokens + 2 * (_size(last) - keys) * read
        products += 2 * text.vocab_size * text.hidden_size * given.prompts * said
        # A causal token sees half of its row on average.
        of_said, of_prompt = said * (prompt + given.completion / 2), prompt * prompt / 2
        seen = text.num_hidden_layers * (of_said + of_prompt) - short * of_prompt
        attention = 4 * text.num_attention_heads * text.head_dim * given.prompts * seen
        patches = sum(len(pixels) for pixels in self.pixels)
        per_image = patches / (given.prompts * IMAGES)
        tower = self.screener.vision_tower
        # Positions are looked up; the mergers see merged patches.
        mergers = _size(tower.merger) + _size(tower.deepstack_merger_list)
        looked = (_size(tower) - _size(tower.pos_embed) - mergers) + mergers / self.screener.merge_size**2
        # Of a patch one frame is read (fast_vision.py).
        looked -= tower.patch_embed.proj.weight.numel() * (1 - 1 / vision.temporal_patch_size)
        looking = 4 * vision.depth * vision.hidden_size * per_image
        return 3 * float(products + attention + (2 * looked + looking) * patches)

    def _fill_gradients(self) -> None:
        for weight in self.model.parameters():
            weight.grad = torch.full_like(weight, 1e-6)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


def _size(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _screener(given: argparse.Namespace, device: torch.device, texts: list[str]) -> Screener:
    """Random weights of the size asked for, with a tokenizer trained on the prompt's words."""
    description = _sized(given.size)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(description))
        config = AutoConfig.from_pretrained(folder)
    vocabulary = config.text_config.vocab_size
    tokenizer = train_tokenizer(texts, 1024)
    follow_tokenizer(config, tokenizer)
    config.text_config.vocab_size = vocabulary
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa", dtype=dtype)
    # No word ends a completion: both sides write exactly as many.
    model.generation_config.eos_token_id = None
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": side * side, "longest_edge": 1280 * side * side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return endless(assemble_screener(model, tokenizer, processor, Architecture.QWEN3_VL))


def _sized(size: str) -> dict[str, Any]:
    """config.json of a Qwen3-VL of 2 or 4 billion parameters (the published shapes), or the tiny one."""
    told: dict[str, Any] = copy.deepcopy(MODEL)
    if size == "tiny":
        return told
    hidden, inner, layers, heads = {"2b": (2048, 6144, 28, 16), "4b": (2560, 9728, 36, 32)}[size]
    told["tie_word_embeddings"] = True
    told["text_config"] |= {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    told["vision_config"] |= {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return told


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m benchmarks.gpu_step", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--size", choices=("tiny", "2b", "4b"), default="2b", help="the model")
    options.add_argument("--device", help="cuda or cpu; a CUDA device where there is one")
    options.add_argument("--pixels", type=int, default=512, help="side of each of the five images")
    options.add_argument("--completion", type=int, default=256, help="tokens of a completion")
    options.add_argument("--group", type=int, default=8, help="completions of a prompt")
    options.add_argument("--prompts", type=int, default=1, help="prompts of a step")
    options.add_argument("--rounds", type=int, default=3, help="counted rounds; the median is told")
    options.add_argument("--checkpointing", action="store_true", help="compute activations again going backward")
    options.add_argument("--shared-only", action="store_true", help="leave the repeated prompt out")
    options.add_argument(
        "--peak-tflops", type=float, default=0.0, help="of the device in bfloat16, where it is not known"
    )
    return options


if __name__ == "__main__":
    sys.exit(main())
