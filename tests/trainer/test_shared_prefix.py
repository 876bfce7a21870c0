"""Packing branches behind one prompt gives what running each branch alone gives: log-probabilities and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.conftest import random_images
from trainer import prefix_attention, shared_prefix
from trainer.config import LoraConfig
from trainer.contract import prompts
from trainer.contract.dimensions import DIMENSIONS, Polarity
from trainer.data import completion_ids, encode_prompts, question_ids
from trainer.images import pixel_inputs
from trainer.lora import add_adapter
from trainer.model import PrefixAttention, Screener, checkpoint_layers
from trainer.prompt_reading import read_prompts
from trainer.shared_prefix import (
    Branch,
    CompletionLogprobs,
    PrefixGroups,
    SelfCheckFailed,
    completion_logprobs,
    repeated_prompt_logprobs,
    self_check,
)

SAID = ["<think>A: green.</think><answer>A</answer>", "<answer>none</answer>", "<think>so</think><answer>A,B</answer>"]


def sft_groups(screener: Screener) -> tuple[PrefixGroups, list[dict[str, torch.Tensor]]]:
    """Two samples of different candidate counts; the branches are questions of several dimensions."""
    branches, asked, images = [], [], []
    for count, dimensions in ((4, DIMENSIONS[:3]), (2, DIMENSIONS[2:])):
        asked.append(prompts.ask(DIMENSIONS[0], Polarity.ACCEPTABLE, count))
        images.append(random_images(count + 1, seed=count))
        questions = [prompts.ask(dimension, Polarity.ACCEPTABLE, count) for dimension in dimensions]
        branches.append(
            [
                Branch(question_ids(screener, question), completion_ids(screener, said))
                for question, said in zip(questions, SAID, strict=False)
            ]
        )
    batch = encode_prompts(screener, asked, images, head_only=True)
    return PrefixGroups(batch, branches), [pixel_inputs(screener, one) for one in images]


def grpo_groups(screener: Screener) -> tuple[PrefixGroups, list[dict[str, torch.Tensor]]]:
    """Two questions with their prompts whole; the branches are completions of different lengths."""
    asked = [prompts.ask(dimension, Polarity.FLAWED, 3) for dimension in DIMENSIONS[:2]]
    images = [random_images(4, seed=7), random_images(4, seed=8)]
    branches = [[Branch([], completion_ids(screener, said)) for said in SAID], [Branch([], [25]), Branch([], [29, 31])]]
    return PrefixGroups(encode_prompts(screener, asked, images), branches), [pixel_inputs(screener, i) for i in images]


MakeGroups = Callable[[Screener], tuple[PrefixGroups, list[dict[str, torch.Tensor]]]]


def run(
    screener: Screener, function: Callable[..., CompletionLogprobs], *given: object
) -> tuple[CompletionLogprobs, dict[str, torch.Tensor]]:
    """What a function finds, and every gradient of a fixed weighting of its log-probabilities."""
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    screener.model.zero_grad(set_to_none=True)
    out = function(screener, *given)
    rows, columns = out.logprobs.shape
    (out.logprobs * weights[:rows].repeat(1, 9)[:, :columns]).sum().backward()  # type: ignore[no-untyped-call]
    named = screener.model.named_parameters()
    return out, {name: p.grad.clone() for name, p in named if p.grad is not None}


def read_before(screener: Screener, groups: PrefixGroups) -> CompletionLogprobs:
    """Each prompt read by itself, and then the branches alone."""
    read = [read_prompts(screener, groups.prompts.select([number])) for number in range(len(groups.branches))]
    return completion_logprobs(screener, groups, read=read)


def assert_equal_to_repeated_prompts(
    screener: Screener,
    make_groups: MakeGroups,
    function: Callable[..., CompletionLogprobs] = completion_logprobs,
    atol: float = 1e-5,
) -> None:
    groups, images = make_groups(screener)
    packed, packed_gradients = run(screener, function, groups)
    naive, naive_gradients = run(screener, repeated_prompt_logprobs, groups, images)
    assert torch.equal(packed.mask, naive.mask)
    assert torch.equal(packed.greedy, naive.greedy)
    torch.testing.assert_close(packed.logprobs, naive.logprobs, atol=1e-5, rtol=0)
    assert packed_gradients.keys() == naive_gradients.keys()
    trainable = {name for name, parameter in screener.model.named_parameters() if parameter.requires_grad}
    assert len(packed_gradients) >= 0.9 * len(trainable)  # all but what no image of one size uses
    for name, gradient in naive_gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(packed_gradients[name], gradient, atol=atol * scale, rtol=0, msg=name)


@pytest.mark.parametrize("make_groups", [sft_groups, grpo_groups])
@pytest.mark.parametrize("method", ["merged", "joined", "mask"])
def test_it_equals_repeated_prompts(any_screener: Screener, method: PrefixAttention, make_groups: MakeGroups) -> None:
    assert_equal_to_repeated_prompts(replace(any_screener, prefix_attention=method), make_groups)


@pytest.mark.parametrize("make_groups", [sft_groups, grpo_groups])
@pytest.mark.parametrize("method", ["merged", "joined"])
def test_prompts_read_before_give_the_same(
    any_screener: Screener, method: PrefixAttention, make_groups: MakeGroups
) -> None:
    assert_equal_to_repeated_prompts(replace(any_screener, prefix_attention=method), make_groups, read_before)


def test_prompts_read_before_give_the_same_with_adapters(any_screener: Screener) -> None:
    with_adapter(any_screener)
    assert_equal_to_repeated_prompts(any_screener, grpo_groups, read_before)


@pytest.mark.parametrize("method", ["merged", "joined"])
def test_it_equals_repeated_prompts_with_checkpointed_layers(any_screener: Screener, method: PrefixAttention) -> None:
    checkpoint_layers(any_screener.model)
    any_screener.model.train()
    assert_equal_to_repeated_prompts(replace(any_screener, prefix_attention=method), sft_groups)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_it_equals_repeated_prompts_with_adapters(any_screener: Screener, checkpointed: bool) -> None:
    with_adapter(any_screener)
    if checkpointed:
        checkpoint_layers(any_screener.model)
        any_screener.model.train()
    assert_equal_to_repeated_prompts(any_screener, sft_groups)


def with_adapter(screener: Screener) -> None:
    add_adapter(screener.model, LoraConfig(r=4, alpha=8.0))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in screener.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_only_the_text_stack_shares_a_prefix(any_screener: Screener) -> None:
    config = any_screener.model.config
    assert any_screener.model.model.language_model.config._attn_implementation == "shared_prefix"
    assert config.vision_config._attn_implementation == "sdpa"


def test_nothing_of_the_row_squared_is_kept(screener: Screener) -> None:
    """Bytes kept for going backward, beside the repeated prompt's: prompt 100, eight completions of 10."""
    asked = prompts.ask(DIMENSIONS[0], Polarity.FLAWED, 4)
    images = random_images(5, height=32, width=32)
    batch = encode_prompts(screener, [asked], [images])
    groups = PrefixGroups(batch, [[Branch([], [25 + n] * 10) for n in range(8)]])
    counted: dict[tuple[int, int], int] = {}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        counted[(storage.data_ptr(), storage.nbytes())] = storage.nbytes()
        return tensor

    found = []
    for function, given in ((completion_logprobs, ()), (repeated_prompt_logprobs, ([pixel_inputs(screener, images)],))):
        counted.clear()
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            out = function(screener, groups, *given)
            found.append(sum(counted.values()))
            del out
    assert found[0] < found[1] / 3


@pytest.mark.parametrize("method", ["merged", "joined"])
def test_sixteen_bits_pass_the_check(any_screener: Screener, method: PrefixAttention) -> None:
    groups, _ = sft_groups(any_screener)
    with torch.autocast("cpu", torch.bfloat16):
        found = self_check(replace(any_screener, prefix_attention=method), groups, bits=16)
    assert found.worst > 1e-5  # it was computed in 16 bits


def test_the_first_batch_is_checked(screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, _ = sft_groups(screener)
    assert self_check(screener, groups).worst < 1e-5
    assert self_check(screener, groups, read_before=True).worst < 1e-5
    backward = prefix_attention._flash_backward
    monkeypatch.setattr(prefix_attention, "_flash_backward", lambda *a, **k: [2 * g for g in backward(*a, **k)])
    with pytest.raises(SelfCheckFailed, match=r"gradients.*prefix_attention=mask") as refused:
        self_check(screener, groups)
    assert "\n" not in str(refused.value)
    with pytest.raises(SelfCheckFailed, match=r"gradients.*prefix_attention=mask"):
        self_check(screener, groups, read_before=True)
    monkeypatch.undo()
    shapes = prefix_attention.lay_out

    def a_token_early(given: list[tuple[int, list[int]]], *rest: Any, **named: Any) -> object:
        return shapes([(prompt - 1, [first + 1, *others]) for prompt, (first, *others) in given], *rest, **named)

    monkeypatch.setattr(shared_prefix, "lay_out", a_token_early)
    with pytest.raises(SelfCheckFailed, match=r"log-probabilities.*prefix_attention=mask"):
        self_check(screener, groups)
    assert self_check(replace(screener, prefix_attention="mask"), groups).worst < 1e-5


def test_a_large_vocabulary_in_pieces_gives_the_same(screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, _ = sft_groups(screener)
    whole = completion_logprobs(screener, groups)
    whole.logprobs.sum().backward()  # type: ignore[no-untyped-call]
    expected = screener.model.lm_head.weight.grad.clone()
    screener.model.zero_grad()
    monkeypatch.setattr(shared_prefix, "LOGITS_AT_ONCE", 3000)
    pieces = completion_logprobs(screener, groups)
    pieces.logprobs.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(pieces.logprobs, whole.logprobs)
    assert torch.equal(pieces.greedy, whole.greedy)
    torch.testing.assert_close(screener.model.lm_head.weight.grad, expected)


def test_a_branch_does_not_see_another(screener: Screener) -> None:
    groups, _ = grpo_groups(screener)
    before = completion_logprobs(screener, groups).logprobs
    changed = [[*groups.branches[0][:2], Branch([], [27, 28, 29])], groups.branches[1]]
    after = completion_logprobs(screener, PrefixGroups(groups.prompts, changed)).logprobs
    width = min(before.shape[1], after.shape[1])
    torch.testing.assert_close(before[:2, :width], after[:2, :width])
    torch.testing.assert_close(before[3:, :width], after[3:, :width])


def test_a_branch_without_completion_is_refused(screener: Screener) -> None:
    groups, _ = grpo_groups(screener)
    with pytest.raises(ValueError, match="needs a completion"):
        completion_logprobs(screener, PrefixGroups(groups.prompts, [[Branch([3], [])], groups.branches[1]]))


def test_an_image_placeholder_in_a_completion_is_refused(screener: Screener) -> None:
    groups, _ = grpo_groups(screener)
    said = [Branch([], [30, screener.image_token_id])]
    with pytest.raises(ValueError, match="image placeholder"):
        completion_logprobs(screener, PrefixGroups(groups.prompts, [said, groups.branches[1]]))
