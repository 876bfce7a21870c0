"""The benchmark of real sizes runs anywhere at a tiny one: both sides compute the same, and every line is there."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from benchmarks import gpu_step
from trainer import prefix_attention
from trainer.images import pixel_inputs
from trainer.shared_prefix import PrefixGroups, completion_logprobs, repeated_prompt_logprobs

SIZES = {"pixels": 64, "completion": 6, "group": 3, "prompts": 2, "rounds": 1, "peak-tflops": 0.1}
TINY = [
    "--size",
    "tiny",
    "--device",
    "cpu",
    *(word for name, value in SIZES.items() for word in (f"--{name}", str(value))),
]


def given(*more: str) -> argparse.Namespace:
    return gpu_step.parser().parse_args([*TINY, *more])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--checkpointing",)])
def test_what_is_measured_computes_what_repeated_prompts_do(more: tuple[str, ...]) -> None:
    bench = gpu_step.Bench(given(*more))
    assert bench.model.config.text_config._attn_implementation == prefix_attention.NAME
    assert bench.check().worst < 1e-4
    seen = bench.see()
    groups = PrefixGroups(seen.select(seen.places), bench.branches)
    with seen.shown(seen.places, graph=True):
        packed = completion_logprobs(bench.screener, groups, read=seen.beginnings(seen.places)).logprobs
    pixels = [pixel_inputs(bench.screener, images) for images in bench.images]
    repeated = repeated_prompt_logprobs(bench.screener, groups, pixels).logprobs
    torch.testing.assert_close(packed, repeated, atol=1e-4, rtol=0)
    bench.learn_shared(bench.see())
    shared = [weight.grad for weight in bench.model.parameters()]
    bench.optimizer.zero_grad(set_to_none=True)
    bench.learn_repeated()
    torch.testing.assert_close(shared, [weight.grad for weight in bench.model.parameters()], atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_every_line_is_measured_at_a_tiny_size(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_step.main(TINY)
    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(lines) == {f"gpu_step.{name}" for name in ("rollout", "train_seconds", "train_mfu", "step_seconds")}
    setting = lines["gpu_step.step_seconds"]["setting"]
    assert (setting["group"], setting["completion_tokens"], setting["prompts_per_step"]) == (3, 6, 2)
    assert setting["self_check"]["logprobs"] < 1e-4
    assert all(line["value"] > 0 for line in lines.values())
    assert lines["gpu_step.train_seconds"]["peer"] > 0
    assert 0 < lines["gpu_step.train_mfu"]["value"] < 1
