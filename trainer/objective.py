"""What GRPO optimizes, as functions on tensors: advantages, the clipped loss, the KL estimate, entropy.

Sources: GRPO (arXiv 2402.03300, eq. 3 and 4), DAPO's token mean and upper clip (arXiv 2503.14476), Dr. GRPO's constant
normalisation (arXiv 2503.20783); names as in TRL. Each is tested against its naive formula.
Not here: models, rewards, batches (grpo.py).

Shapes: N groups (prompts), G completions per group, R = N·G rows in group order, C completion tokens.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a group's standard deviation, as in TRL."""
ZERO_STD = 1e-6
"""Rewards of a group that spread less than this carry no preference: every advantage is 0."""


class LossType(StrEnum):
    """How per-token losses become one number."""

    GRPO = "grpo"
    """Mean over a completion's tokens, then over completions (arXiv 2402.03300). Favours short completions."""
    DAPO = "dapo"
    """Mean over all tokens of the batch (arXiv 2503.14476)."""
    DR_GRPO = "dr_grpo"
    """Sum divided by rows × max_completion_length (arXiv 2503.20783): no length bias."""


class ScaleRewards(StrEnum):
    """What centred rewards are divided by."""

    GROUP = "group"
    """The group's own standard deviation (GRPO)."""
    NONE = "none"
    """Nothing (Dr. GRPO)."""


def group_advantages(rewards_NG: Tensor, scale: ScaleRewards = ScaleRewards.GROUP) -> Tensor:
    """Rewards (N, G) centred on their group's mean, divided by its unbiased standard deviation + STD_FLOOR."""
    centred_NG = rewards_NG - rewards_NG.mean(1, keepdim=True)
    if scale is ScaleRewards.NONE:
        return centred_NG
    return centred_NG / (rewards_NG.std(1, keepdim=True) + STD_FLOOR)


def groups_with_signal(rewards_NG: Tensor) -> Tensor:
    """Which groups (N, bool) can move the model: judged by the rewards' spread, since rewards are not binary."""
    return rewards_NG.std(1) > ZERO_STD


def kl_estimate(logp_RC: Tensor, reference_logp_RC: Tensor) -> Tensor:
    """Per-token estimate (R, C) of KL(policy ‖ reference), never negative ("k3": exp(d) − d − 1, d = ref − logp)."""
    d_RC = reference_logp_RC - logp_RC
    return d_RC.exp() - d_RC - 1


def clipped_objective(
    logp_RC: Tensor, old_logp_RC: Tensor, advantages_R: Tensor, *, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Per-token loss (R, C) of the clipped surrogate, and which tokens (R, C, bool) the clip decided."""
    ratio_RC = (logp_RC - old_logp_RC).exp()
    advantages_R1 = advantages_R[:, None]
    free_RC = ratio_RC * advantages_R1
    bound_RC = ratio_RC.clamp(1 - epsilon, 1 + epsilon_high) * advantages_R1
    return -torch.min(free_RC, bound_RC), bound_RC < free_RC


def aggregate(
    per_token_RC: Tensor,
    mask_RC: Tensor,
    loss_type: LossType,
    *,
    max_completion_length: int,
    rows: int | None = None,
    tokens: int | None = None,
) -> Tensor:
    """One number from per-token losses (R, C); `mask_RC` is 1 on completion tokens.

    `rows`, `tokens`: what the whole batch has, when these rows are a part of it (default: what is given). The parts'
    numbers then add up to the batch's: rows left out because they would add 0 still count in a mean over rows.
    """
    rows = rows or per_token_RC.shape[0]
    masked_RC = per_token_RC * mask_RC
    match loss_type:
        case LossType.GRPO:
            return (masked_RC.sum(1) / mask_RC.sum(1).clamp(min=1)).sum() / rows
        case LossType.DAPO:
            return masked_RC.sum() / (tokens or mask_RC.sum().clamp(min=1))
        case LossType.DR_GRPO:
            return masked_RC.sum() / (rows * max_completion_length)
