"""What GRPO optimizes, as functions on tensors: advantages, the clipped loss, the KL estimate, how tokens are averaged.

Sources: GRPO (arXiv 2402.03300, eq. 3 and 4), DAPO's token mean and upper clip (arXiv 2503.14476), Dr. GRPO's constant
normalisation (arXiv 2503.20783), GSPO's ratio of whole completions (arXiv 2507.18071), INTELLECT-2's second bound
(arXiv 2505.07291); names as in TRL. Each is tested against its naive formula, and the whole against TRL's own value.
Not here: models, rewards, batches (grpo.py).

Shapes: N groups (prompts), G completions per group, R = N·G rows in group order, C completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """Mean over all tokens of the batch, on whatever process they are (arXiv 2503.14476)."""
    BNPO = "bnpo"
    """Mean over the tokens of this process's part of the batch (TRL's name): with one process the same as dapo."""
    DR_GRPO = "dr_grpo"
    """Sum divided by rows × max_completion_length (arXiv 2503.20783): no length bias."""


class ScaleRewards(StrEnum):
    """What centred rewards are divided by."""

    GROUP = "group"
    """The group's own standard deviation (GRPO)."""
    BATCH = "batch"
    """The standard deviation of all the batch's rewards (arXiv 2508.08221)."""
    NONE = "none"
    """Nothing (Dr. GRPO)."""


class ImportanceLevel(StrEnum):
    """What one ratio of new to old probability belongs to."""

    TOKEN = "token"  # noqa: S105
    """A token (GRPO)."""
    SEQUENCE = "sequence"
    """A completion: the geometric mean over its tokens (GSPO)."""


class RolloutCorrection(StrEnum):
    """What is done about tokens that another engine drew, by the ratio of our probability to its own."""

    TOKEN_TRUNCATE = "token_truncate"  # noqa: S105
    """Each token's loss is multiplied by its ratio, cut to the bounds."""
    TOKEN_MASK = "token_mask"  # noqa: S105
    """The same, and a token whose ratio is outside of the bounds is left out."""
    SEQUENCE_TRUNCATE = "sequence_truncate"
    """The product over a completion's tokens, cut to the bounds, for all of them."""
    SEQUENCE_MASK = "sequence_mask"
    """The same product, and a completion outside of the bounds is left out (TRL's default)."""


def group_advantages(rewards_NG: Tensor, scale: ScaleRewards = ScaleRewards.GROUP) -> Tensor:
    """Rewards (N, G) centred on their group's mean, divided by an unbiased standard deviation + STD_FLOOR."""
    centred_NG = rewards_NG - rewards_NG.mean(1, keepdim=True)
    match scale:
        case ScaleRewards.NONE:
            return centred_NG
        case ScaleRewards.BATCH:
            return centred_NG / (rewards_NG.std() + STD_FLOOR)
        case ScaleRewards.GROUP:
            return centred_NG / (rewards_NG.std(1, keepdim=True) + STD_FLOOR)


def groups_with_signal(rewards_NG: Tensor) -> Tensor:
    """Which groups (N, bool) can move the model: judged by the rewards' spread, since rewards are not binary."""
    return rewards_NG.std(1) > ZERO_STD


def kl_estimate(logp_RC: Tensor, reference_logp_RC: Tensor) -> Tensor:
    """Per-token estimate (R, C) of KL(policy ‖ reference), never negative ("k3": exp(d) − d − 1, d = ref − logp)."""
    d_RC = reference_logp_RC - logp_RC
    return d_RC.exp() - d_RC - 1


def importance_ratio(logp_RC: Tensor, old_logp_RC: Tensor, mask_RC: Tensor, level: ImportanceLevel) -> Tensor:
    """How much likelier each token (R, C), or each completion (R, 1), has become since it was written."""
    change_RC = logp_RC - old_logp_RC
    if level is ImportanceLevel.TOKEN:
        return change_RC.exp()
    return ((change_RC * mask_RC).sum(1, keepdim=True) / mask_RC.sum(1, keepdim=True).clamp(min=1)).exp()


def clipped_objective(
    ratio_RC: Tensor, advantages_R: Tensor, *, epsilon: float, epsilon_high: float, delta: float | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of the clipped surrogate, and where (bool) the clip decided; both of the ratio's shape.

    `delta` bounds the ratio where a bad completion has become likelier, which the clip alone leaves unbounded.
    """
    advantages_R1 = advantages_R[:, None]
    free_RC = (ratio_RC if delta is None else ratio_RC.clamp(max=delta)) * advantages_R1
    bound_RC = ratio_RC.clamp(1 - epsilon, 1 + epsilon_high) * advantages_R1
    return -torch.min(free_RC, bound_RC), bound_RC < free_RC


def rollout_correction(
    logp_RC: Tensor,
    sampling_logp_RC: Tensor,
    mask_RC: Tensor,
    mode: RolloutCorrection,
    *,
    clip_max: float,
    clip_min: float | None = None,
) -> Tensor:
    """Weights, (R, C) or (R, 1), for tokens drawn under `sampling_logp_RC`; no gradient. NaN there weighs 1.

    Truncated importance sampling (TRL's vllm_importance_sampling_mode): an engine of other numerics draws from a policy
    that is not quite the one being trained.
    """
    gap_RC = ((logp_RC.detach() - sampling_logp_RC) * mask_RC).nan_to_num(nan=0.0)
    if mode in (RolloutCorrection.SEQUENCE_TRUNCATE, RolloutCorrection.SEQUENCE_MASK):
        gap_RC = gap_RC.sum(1, keepdim=True)
    weight_RC = gap_RC.exp()
    if mode in (RolloutCorrection.TOKEN_TRUNCATE, RolloutCorrection.SEQUENCE_TRUNCATE):
        return weight_RC.clamp(min=clip_min, max=clip_max)
    outside_RC = weight_RC > clip_max
    if clip_min is not None:
        outside_RC = outside_RC | (weight_RC < clip_min)
    return weight_RC.masked_fill(outside_RC, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Which loss, with its constants; what each means stands at the setting of this name (grpo.GRPOConfig)."""

    loss_type: LossType
    max_completion_length: int
    epsilon: float
    epsilon_high: float
    importance_sampling_level: ImportanceLevel = ImportanceLevel.TOKEN
    delta: float | None = None
    beta: float = 0.0
    use_bias_correction_kl: bool = True


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """What each completion token costs."""

    loss_RC: Tensor
    """Carries gradients."""
    clipped_RC: Tensor
    """Bool, where the clip decided."""
    kl_RC: Tensor | None
    """The KL estimate, where there is a reference; without gradient."""


def token_losses(
    objective: Objective,
    logp_RC: Tensor,
    old_logp_RC: Tensor,
    advantages_R: Tensor,
    mask_RC: Tensor,
    *,
    reference_logp_RC: Tensor | None = None,
    weight_RC: Tensor | None = None,
) -> TokenLosses:
    """The loss of each token before it is averaged (`aggregate`).

    `weight_RC` (R, C) or (R, 1) multiplies the policy's part and not the KL's (`rollout_correction`).
    """
    ratio = importance_ratio(logp_RC, old_logp_RC, mask_RC, objective.importance_sampling_level)
    loss, clipped = clipped_objective(
        ratio,
        advantages_R,
        epsilon=objective.epsilon,
        epsilon_high=objective.epsilon_high,
        delta=objective.delta,
    )
    loss_RC = (loss if weight_RC is None else loss * weight_RC).expand_as(logp_RC)
    kl_RC = None
    if reference_logp_RC is not None:
        kl_RC = kl_estimate(logp_RC, reference_logp_RC)
        if objective.use_bias_correction_kl:
            kl_RC = kl_RC * ratio
        loss_RC = loss_RC + objective.beta * kl_RC
    return TokenLosses(loss_RC, clipped.expand_as(logp_RC), None if kl_RC is None else kl_RC.detach())


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
    numbers then add up to the batch's: rows left out because they would add 0 still count in a mean.
    """
    rows = rows or per_token_RC.shape[0]
    masked_RC = per_token_RC * mask_RC
    match loss_type:
        case LossType.GRPO:
            return (masked_RC.sum(1) / mask_RC.sum(1).clamp(min=1)).sum() / rows
        case LossType.DAPO | LossType.BNPO:
            return masked_RC.sum() / (tokens or mask_RC.sum().clamp(min=1))
        case LossType.DR_GRPO:
            return masked_RC.sum() / (rows * max_completion_length)
