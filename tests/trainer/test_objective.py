"""Each formula GRPO optimizes, against its three-line naive version."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.objective import (
    ImportanceLevel,
    LossType,
    ScaleRewards,
    aggregate,
    clipped_objective,
    group_advantages,
    groups_with_signal,
    importance_ratio,
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
    logp_RC, old_RC, advantages_R, mask_RC = numbers()
    ratio_RC = importance_ratio(logp_RC, old_RC, mask_RC, ImportanceLevel.TOKEN)
    loss_RC, clipped_RC = clipped_objective(ratio_RC, advantages_R, epsilon=0.2, epsilon_high=0.28)
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
        LossType.BNPO: sum(map(sum, rows)) / sum(map(len, rows)),
        LossType.DR_GRPO: sum(map(sum, rows)) / (len(rows) * 20),
    }
    assert set(naive) == set(LossType)
    for loss_type, expected in naive.items():
        found = aggregate(per_token_RC, mask_RC, loss_type, max_completion_length=20)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_rows_left_out_for_having_no_advantage_still_count_in_the_mean() -> None:
    logp_RC, old_RC, advantages_R, mask_RC = numbers(3)
    advantages_R[:2] = 0.0
    ratio_RC = importance_ratio(logp_RC, old_RC, mask_RC, ImportanceLevel.TOKEN)
    loss_RC, _ = clipped_objective(ratio_RC, advantages_R, epsilon=0.2, epsilon_high=0.2)
    tokens = int(mask_RC.sum())
    for loss_type in LossType:
        whole = aggregate(loss_RC, mask_RC, loss_type, max_completion_length=9)
        part = aggregate(loss_RC[2:], mask_RC[2:], loss_type, max_completion_length=9, rows=6, tokens=tokens)
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


def test_a_completion_has_the_geometric_mean_of_its_tokens_ratios() -> None:
    logp_RC, old_RC, _, mask_RC = numbers(4)
    found = importance_ratio(logp_RC, old_RC, mask_RC, ImportanceLevel.SEQUENCE)
    for row, mask in enumerate(mask_RC.bool()):
        changes = (logp_RC - old_RC)[row][mask].tolist()
        assert float(found[row, 0]) == pytest.approx(math.exp(sum(changes) / len(changes)), rel=1e-5)


def test_a_bad_completion_that_became_likelier_is_bounded_by_delta_alone() -> None:
    ratio_RC, advantages_R = torch.tensor([[5.0], [5.0]]), torch.tensor([-1.0, 1.0])
    free, _ = clipped_objective(ratio_RC, advantages_R, epsilon=0.2, epsilon_high=0.2)
    bounded, _ = clipped_objective(ratio_RC, advantages_R, epsilon=0.2, epsilon_high=0.2, delta=2.0)
    assert free[:, 0].tolist() == pytest.approx([5.0, -1.2])
    assert bounded[:, 0].tolist() == pytest.approx([2.0, -1.2])


def test_rewards_may_be_scaled_by_the_whole_batch() -> None:
    rewards_NG = torch.tensor([[0.0, 1.0], [0.2, 0.4]])
    every = torch.tensor([0.0, 1.0, 0.2, 0.4])
    found = group_advantages(rewards_NG, ScaleRewards.BATCH)
    assert found.tolist()[0] == pytest.approx([-0.5 / (float(every.std()) + 1e-4), 0.5 / (float(every.std()) + 1e-4)])
    assert found[1, 1] == pytest.approx(0.1 / (float(every.std()) + 1e-4))
