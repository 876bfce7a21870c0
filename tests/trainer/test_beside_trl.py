"""Our losses are TRL's own: `GRPOTrainer._compute_loss` on the same model, completions and advantages."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.conftest import make_screener, random_images
from trainer.contract import prompts
from trainer.contract.dimensions import Dimension, Polarity
from trainer.data import encode_prompts
from trainer.grpo import GRPOConfig
from trainer.images import pixel_inputs
from trainer.model import Screener
from trainer.objective import (
    ImportanceLevel,
    LossType,
    Objective,
    RolloutCorrection,
    aggregate,
    rollout_correction,
    token_losses,
)
from trainer.settings_help import field_docs
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs

pytestmark = pytest.mark.needs_trl

LENGTHS = (9, 4, 1, 7)
LONGEST, ROOM, TEMPERATURE = max(LENGTHS), 16, 0.9


class Case:
    """One prompt with four completions of different lengths, and numbers for everything a loss is made of."""

    def __init__(self, directory: Path) -> None:
        self.screener = make_screener(directory)
        generator = torch.Generator().manual_seed(5)
        self.images = random_images(5, seed=4)
        self.prompt = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4)
        self.batch = encode_prompts(self.screener, [self.prompt], [self.images])
        self.said = [torch.randint(300, 340, (length,), generator=generator).tolist() for length in LENGTHS]
        self.mask_RC = (torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]).float()
        self.advantages_R = torch.tensor([1.1, -0.4, 0.3, -1.2])
        with torch.no_grad():
            now_RC = self.logprobs(self.screener)
        self.old_RC = (now_RC + 0.3 * torch.randn(now_RC.shape, generator=generator)) * self.mask_RC
        self.reference_RC = (now_RC + 0.2 * torch.randn(now_RC.shape, generator=generator)) * self.mask_RC
        self.sampling_RC = (now_RC + 0.2 * torch.randn(now_RC.shape, generator=generator)) * self.mask_RC

    def logprobs(self, screener: Screener) -> Tensor:
        groups = PrefixGroups(self.batch, [[Branch([], one) for one in self.said]])
        return completion_logprobs(screener, groups, TEMPERATURE).logprobs


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("beside-trl"))


def ours(
    case: Case, objective: Objective, taught_R: Tensor, mode: RolloutCorrection | None
) -> tuple[float, dict[str, Tensor]]:
    screener = case.screener
    screener.model.zero_grad(set_to_none=True)
    logp_RC = case.logprobs(screener)
    mask_RC = case.mask_RC * taught_R[:, None]
    weight_RC = None
    if mode:
        weight_RC = rollout_correction(case.old_RC, case.sampling_RC, mask_RC, mode, clip_max=1.1, clip_min=0.8)
    losses = token_losses(
        objective,
        logp_RC,
        case.old_RC,
        case.advantages_R,
        mask_RC,
        reference_logp_RC=case.reference_RC if objective.beta else None,
        weight_RC=weight_RC,
    )
    loss = aggregate(losses.loss_RC, mask_RC, objective.loss_type, max_completion_length=ROOM)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), gradients(screener.model)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def theirs(
    case: Case, objective: Objective, taught_R: Tensor, mode: RolloutCorrection | None
) -> tuple[float, dict[str, Tensor]]:
    from accelerate import Accelerator
    from trl.trainer.grpo_trainer import GRPOTrainer, add_fused_lm_head

    model = copy.deepcopy(case.screener.model).train()
    model.zero_grad(set_to_none=True)
    add_fused_lm_head(model, temperature=TEMPERATURE, cast_lm_head_to_fp32=False, outputs=("log_probs", "entropy"))
    rows = len(LENGTHS)
    padded_RC = torch.tensor([[*one, *[0] * (LONGEST - len(one))] for one in case.said])
    prompt_RP = case.batch.input_ids.repeat(rows, 1)
    mask_RC = (case.mask_RC * taught_R[:, None]).int()
    pixels = pixel_inputs(case.screener, case.images)
    kinds_RP = (prompt_RP == case.screener.image_token_id).int()
    inputs: dict[str, Any] = {
        "prompt_ids": prompt_RP,
        "prompt_mask": torch.ones_like(prompt_RP),
        "completion_ids": padded_RC,
        "completion_mask": mask_RC,
        "advantages": case.advantages_R,
        "old_per_token_logps": case.old_RC,
        "ref_per_token_logps": case.reference_RC,
        "num_items_in_batch": mask_RC.sum(),
        "pixel_values": pixels["pixel_values"].repeat(rows, 1),
        "image_grid_thw": pixels["image_grid_thw"].repeat(rows, 1),
        "num_images": [len(case.images)] * rows,
        "mm_token_type_ids": torch.cat([kinds_RP, torch.zeros_like(padded_RC).int()], 1),
    }
    if mode:
        gap = (case.old_RC - case.sampling_RC) * mask_RC
        weight = (gap.sum(-1, keepdim=True) if mode.startswith("sequence") else gap).exp()
        inside = (weight >= 0.8) & (weight <= 1.1)
        kept = weight.clamp(0.8, 1.1) if mode.endswith("truncate") else weight.masked_fill(~inside, 0.0)
        inputs["importance_sampling_ratio"] = kept
    trainer = object.__new__(GRPOTrainer)
    vars(trainer).update(
        model=model,
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(
            use_bias_correction_kl=objective.use_bias_correction_kl, delta=objective.delta, steps_per_generation=1
        ),
        importance_sampling_level=objective.importance_sampling_level.value,
        loss_type=objective.loss_type.value,
        beta=objective.beta,
        epsilon_low=objective.epsilon,
        epsilon_high=objective.epsilon_high,
        max_completion_length=ROOM,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=mode is not None,
        vllm_importance_sampling_correction=mode is not None,
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    loss = trainer._compute_loss(model, inputs)
    loss.backward()
    return float(loss.detach()), gradients(model)


def require_equal(case: Case, objective: Objective, cut: int = 0, mode: RolloutCorrection | None = None) -> None:
    """The same value, and the same gradient of every weight; the first `cut` completions teach nothing."""
    taught_R = (torch.arange(len(LENGTHS)) >= cut).float()
    value, moved = ours(case, objective, taught_R, mode)
    expected, wanted = theirs(case, objective, taught_R, mode)
    assert value == pytest.approx(expected, abs=1e-6)
    assert moved.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(moved[name], gradient, atol=2e-6, rtol=1e-4), name


def objective(loss_type: LossType = LossType.GRPO, **fields: Any) -> Objective:
    given: dict[str, Any] = {"loss_type": loss_type, "max_completion_length": ROOM, "epsilon": 0.2}
    return Objective(**(given | {"epsilon_high": 0.28} | fields))


@pytest.mark.parametrize("level", list(ImportanceLevel))
@pytest.mark.parametrize("loss_type", list(LossType))
def test_each_loss_and_its_gradient_are_those_of_trl(case: Case, loss_type: LossType, level: ImportanceLevel) -> None:
    require_equal(case, objective(loss_type, importance_sampling_level=level, beta=0.04))


@pytest.mark.parametrize("fields", [{}, {"delta": 1.35}, {"beta": 0.1, "use_bias_correction_kl": False}])
def test_what_can_be_set_beside_it_means_the_same(case: Case, fields: dict[str, Any]) -> None:
    require_equal(case, objective(LossType.DAPO, **fields))


@pytest.mark.parametrize("loss_type", list(LossType))
def test_masked_completions_count_as_in_trl(case: Case, loss_type: LossType) -> None:
    require_equal(case, objective(loss_type), cut=1)


@pytest.mark.parametrize("mode", list(RolloutCorrection))
def test_completions_of_another_engine_weigh_as_in_trl(case: Case, mode: RolloutCorrection) -> None:
    require_equal(case, objective(LossType.DAPO, beta=0.04), mode=mode)


def test_what_is_called_their_default_is() -> None:
    """Of settings that --help calls TRL's default, or whose default there it names."""
    from trl import GRPOConfig as TheirConfig

    theirs = {field.name: field.default for field in fields(TheirConfig)}
    ours = {field.name: field.default for field in fields(GRPOConfig)}
    checked = set()
    for name, about in field_docs(GRPOConfig).items():
        if found := re.search(r"TRL's default(?:(?: is|:) ([\w.-]*\w))?", about):
            said = found[1]
            told = ours[name] if said is None else {"true": True, "false": False, "none": None}.get(said, said)
            assert str(told).removesuffix(".0") == str(theirs[name]).removesuffix(".0"), name
            checked.add(name)
    assert {
        "loss_type",
        "max_completion_length",
        "learning_rate",
        "epsilon",
        "vllm_importance_sampling_mode",
    } <= checked
