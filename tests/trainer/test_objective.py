"""Each formula GRPO optimizes, against its three-line naive version."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.objective import (
    LossType,
    ScaleRewards,
    aggregate,
    clipped_objective,
    group_advantages,
    groups_with_signal,
    kl_estimate,
)

four_rewards = st.lists(st.sampled_from([0.0, 0.1, 0.55, 0.775, 1.0]), min_size=4, max_size=4)
rewards = st.lists(four_rewards, min_size=1, max_size=5)


@given(rewards)
def test_advantages_are_rewards_centred_and_scaled_within_their_group(groups: list[list[float]]) -> None:
    found = group_advantages(torch.tensor(groups, dtype=torch.float64))
    for row, group in zip(found.tolist(), groups, strict=True):
        mean = sum(group) / len(group)
        std = math.sqrt(sum((reward - mean) ** 2 for reward in group) / (len(group) - 1))
        assert row == pytest.approx([(reward - mean) / (std + 1e-4) for reward in group])


def test_dr_grpo_only_centres() -> None:
    found = group_advantages(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), ScaleRewards.NONE)
    assert found.tolist() == [[-0.5, 0.5, 0.5, -0.5]]


@given(rewards)
def test_a_group_has_signal_when_its_rewards_differ(groups: list[list[float]]) -> None:
    assert groups_with_signal(torch.tensor(groups)).tolist() == [len(set(group)) > 1 for group in groups]


def numbers(seed: int = 0, rows: int = 6, length: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logp_RC = -torch.rand(rows, length, generator=generator) * 3
    old_RC = logp_RC + 0.4 * torch.randn(rows, length, generator=generator)
    advantages_R = torch.randn(rows, generator=generator)
    lengths_R = torch.randint(1, length + 1, (rows,), generator=generator)
    mask_RC = (torch.arange(length)[None] < lengths_R[:, None]).float()
    return logp_RC, old_RC, advantages_R, mask_RC


def test_the_clipped_loss_is_the_paper_formula_token_by_token() -> None:
    logp_RC, old_RC, advantages_R, _ = numbers()
    loss_RC, clipped_RC = clipped_objective(logp_RC, old_RC, advantages_R, epsilon=0.2, epsilon_high=0.28)
    for row in range(6):
        for token in range(9):
            ratio = math.exp(logp_RC[row, token] - old_RC[row, token])
            bounded = min(max(ratio, 0.8), 1.28)
            advantage = float(advantages_R[row])
            assert float(loss_RC[row, token]) == pytest.approx(-min(ratio * advantage, bounded * advantage), rel=1e-5)
            assert bool(clipped_RC[row, token]) == (bounded * advantage < ratio * advantage)


def test_kl_is_exp_d_minus_d_minus_one() -> None:
    logp_RC, reference_RC, _, _ = numbers(1)
    found = kl_estimate(logp_RC, reference_RC)
    assert float(found.min()) >= 0
    d = float(reference_RC[2, 3] - logp_RC[2, 3])
    assert float(found[2, 3]) == pytest.approx(math.exp(d) - d - 1, rel=1e-4)


def test_aggregates_are_those_of_the_papers() -> None:
    per_token_RC, _, _, mask_RC = numbers(2)
    rows = [row[mask.bool()].tolist() for row, mask in zip(per_token_RC, mask_RC, strict=True)]
    naive = {
        LossType.GRPO: sum(sum(row) / len(row) for row in rows) / len(rows),
        LossType.DAPO: sum(map(sum, rows)) / sum(map(len, rows)),
        LossType.DR_GRPO: sum(map(sum, rows)) / (len(rows) * 20),
    }
    for loss_type, expected in naive.items():
        found = aggregate(per_token_RC, mask_RC, loss_type, max_completion_length=20)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_rows_left_out_for_having_no_advantage_still_count_in_the_mean() -> None:
    logp_RC, old_RC, advantages_R, mask_RC = numbers(3)
    advantages_R[:2] = 0.0
    loss_RC, _ = clipped_objective(logp_RC, old_RC, advantages_R, epsilon=0.2, epsilon_high=0.2)
    for loss_type in (LossType.GRPO, LossType.DR_GRPO):
        whole = aggregate(loss_RC, mask_RC, loss_type, max_completion_length=9)
        part = aggregate(loss_RC[2:], mask_RC[2:], loss_type, max_completion_length=9, rows=6)
        assert torch.allclose(whole, part)


@pytest.mark.parametrize("loss_type", list(LossType))
def test_the_losses_of_parts_add_up_to_that_of_the_batch(loss_type: LossType) -> None:
    per_token_RC, _, _, mask_RC = numbers(5)
    whole = aggregate(per_token_RC, mask_RC, loss_type, max_completion_length=9)
    parts = [
        aggregate(
            per_token_RC[part], mask_RC[part], loss_type, max_completion_length=9, rows=6, tokens=int(mask_RC.sum())
        )
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert torch.allclose(whole, parts[0] + parts[1])


def test_equals_the_loss_of_trl_on_the_same_numbers() -> None:
    """GRPOTrainer._compute_loss of TRL 1.16, its arithmetic for loss_type "grpo", "dapo"/"bnpo" and "dr_grpo".

    Reproduced rather than called: the method needs a whole trainer, and TRL is no dependency of ours.
    """
    logp_RC, old_RC, advantages_R, mask_RC = numbers(4)
    reference_RC, beta = old_RC + 0.1, 0.04
    per_token_kl = torch.exp(reference_RC - logp_RC) - (reference_RC - logp_RC) - 1
    coef_1 = torch.exp(logp_RC - old_RC)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.28)
    per_token_loss1 = coef_1 * advantages_R.unsqueeze(1)
    per_token_loss2 = coef_2 * advantages_R.unsqueeze(1)
    per_token_loss = -torch.min(per_token_loss1, per_token_loss2) + beta * per_token_kl
    trl = {
        LossType.GRPO: ((per_token_loss * mask_RC).sum(-1) / mask_RC.sum(-1).clamp(min=1.0)).mean(),
        LossType.DAPO: (per_token_loss * mask_RC).sum() / mask_RC.sum().clamp(min=1.0),
        LossType.DR_GRPO: (per_token_loss * mask_RC).sum() / (per_token_loss.size(0) * 32),
    }
    loss_RC, _ = clipped_objective(logp_RC, old_RC, advantages_R, epsilon=0.2, epsilon_high=0.28)
    loss_RC = loss_RC + beta * kl_estimate(logp_RC, reference_RC)
    for loss_type, expected in trl.items():
        found = aggregate(loss_RC, mask_RC, loss_type, max_completion_length=32)
        assert torch.allclose(found, expected, atol=1e-6), loss_type
