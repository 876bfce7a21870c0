"""Packing branches behind one prompt gives what running each branch alone gives: log-probabilities and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.trainer.conftest import random_images
from trainer import shared_prefix
from trainer.contract import prompts
from trainer.contract.dimensions import DIMENSIONS, Polarity
from trainer.data import completion_ids, encode_prompts, question_ids
from trainer.images import pixel_inputs
from trainer.model import Screener
from trainer.shared_prefix import (
    Branch,
    CompletionLogprobs,
    PrefixGroups,
    completion_logprobs,
    repeated_prompt_logprobs,
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


@pytest.mark.parametrize("make_groups", [sft_groups, grpo_groups])
def test_it_equals_repeated_prompts(
    any_screener: Screener, make_groups: Callable[[Screener], tuple[PrefixGroups, list[dict[str, torch.Tensor]]]]
) -> None:
    groups, images = make_groups(any_screener)
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))

    def run(
        function: Callable[..., CompletionLogprobs], *extra: object
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        any_screener.model.zero_grad()
        out = function(any_screener, groups, *extra)
        rows, columns = out.logprobs.shape
        (out.logprobs * weights[:rows].repeat(1, 9)[:, :columns]).sum().backward()  # type: ignore[no-untyped-call]
        named = any_screener.model.named_parameters()
        return out.logprobs.detach(), out.mask, {name: p.grad.clone() for name, p in named if p.grad is not None}

    packed, packed_mask, packed_gradients = run(completion_logprobs)
    naive, naive_mask, naive_gradients = run(repeated_prompt_logprobs, images)
    assert torch.equal(packed_mask, naive_mask)
    torch.testing.assert_close(packed, naive, atol=1e-5, rtol=0)
    assert packed_gradients.keys() == naive_gradients.keys()
    for name, gradient in naive_gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-4 * scale, rtol=0, msg=name)


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
