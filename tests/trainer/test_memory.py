"""The estimate is near what is kept, and running out of memory names the setting to lower."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.trainer.conftest import KeptForBackward, MakeExport, model_directory, random_images
from trainer import grpo, sft
from trainer.config import LoraConfig, TrainingConfig, load_config
from trainer.contract import prompts
from trainer.contract.dimensions import DIMENSIONS, Polarity
from trainer.data import encode_prompts
from trainer.grpo import GRPOConfig
from trainer.lora import add_adapter
from trainer.memory import OutOfMemory, activations, announce, estimate, load_of, naming_what_to_lower
from trainer.model import Architecture, Screener, checkpoint_layers, save_screener
from trainer.optimization import Budget
from trainer.pace import learning_seconds, told_estimate
from trainer.preparation import check_first_batch
from trainer.progress import told_pace
from trainer.rollout import Written
from trainer.seen_prompts import Once
from trainer.sft import SFTConfig
from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs


def settings(**fields: object) -> TrainingConfig:
    given = {"export_dir": Path("e"), "model_dir": Path("m"), "run_dir": Path("r"), "steps": 1}
    return TrainingConfig(**{**given, **fields})  # type: ignore[arg-type]


def packed(screener: Screener, length: int) -> PrefixGroups:
    side = 16 if screener.architecture is Architecture.INTERNVL else 48
    images = random_images(5, height=side, width=side)
    ask = prompts.ask(DIMENSIONS[0], Polarity.FLAWED, 4)
    batch = encode_prompts(screener, [ask] * 2, [images] * 2)
    return PrefixGroups(batch, [[Branch([], [25 + n] * length) for n in range(8)]] * 2)


@pytest.mark.parametrize("frozen", [False, True])
def test_activations_are_what_is_kept_for_going_backward(any_screener: Screener, frozen: bool) -> None:
    any_screener.vision_tower.requires_grad_(not frozen)
    groups = packed(any_screener, 12)
    weights = {weight.data_ptr() for weight in any_screener.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scored = completion_logprobs(any_screener, groups)
        measured = sum(kept.values())
    assert scored.logprobs.requires_grad
    load = load_of(any_screener, groups.prompts, 2 * 8 * 12, 2 * 8 * 12)
    assert 0.8 < estimate(any_screener, settings(), load).learning / measured < 1.4


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_check_of_the_first_batch_needs_no_more_than_a_step(screener: Screener, checkpointed: bool) -> None:
    groups = packed(screener, 12)
    if checkpointed:
        checkpoint_layers(screener.model)
        screener.model.train()
    with KeptForBackward(screener.model) as step:
        completion_logprobs(screener, groups)
    with KeptForBackward(screener.model) as check:
        check_first_batch(screener, settings(gradient_checkpointing=checkpointed), groups)
    assert screener.model.training == checkpointed
    assert 0 < check.most <= 1.05 * step.most


def test_the_check_leaves_dropout_out(screener: Screener) -> None:
    add_adapter(screener.model, LoraConfig(r=4, dropout=0.5))
    for name, weight in screener.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    checkpoint_layers(screener.model)
    screener.model.train()
    check_first_batch(screener, settings(gradient_checkpointing=True), packed(screener, 12))
    assert all(module.training for module in screener.model.modules())


@pytest.mark.parametrize(
    ("once", "frozen"), [("prompts", False), ("images", False), ("images", True), ("nothing", False)]
)
def test_what_is_computed_once_is_in_the_estimate(
    any_screener: Screener, make_export: MakeExport, tmp_path: Path, once: Once, frozen: bool
) -> None:
    """Six prompts of a step, learnt from one at a time: what is held of all of them counts."""
    save_screener(any_screener, tmp_path / "start")
    config = GRPOConfig(
        export_dir=make_export(samples=8, rationales=False, dimensions=(DIMENSIONS[0],)),
        model_dir=tmp_path / "start",
        run_dir=tmp_path / "run",
        steps=1,
        prompts_per_step=6,
        num_generations=4,
        groups_per_forward=1,
        max_completion_length=12,
        compute_once=once,
        vision_lr=0.0 if frozen else 1.0,
        start_gate="off",
        self_check=False,
        device="cpu",
    )
    run = grpo.build(config)
    group = [Written((25,) * 12, (0.0,) * 12, "", True)] * 4
    with KeptForBackward(run.screener.model) as kept:
        seen = grpo.see_records(run, list(run.train_records.values()))
        held = kept.most
        grpo.learn(run, seen, list(range(6)), [group] * 6, torch.linspace(-1, 1, 24).reshape(6, 4))
    found = estimate(run.screener, config, grpo.step_load(run))
    assert 0.7 < found.learning / kept.most < 1.5
    if once != "nothing" and not frozen:
        keys = replace(grpo.step_load(run), held_patches=0)
        assert 0.6 < (found.writing - estimate(run.screener, config, keys).writing) / held < 1.5


def test_settings_that_save_memory_save_it(screener: Screener) -> None:
    load = load_of(screener, packed(screener, 12).prompts, 200, 200, cached_tokens=1000)
    plain = estimate(screener, settings(), load, copies=1)
    size = sum(weight.numel() for weight in screener.model.parameters()) * 4
    assert (plain.weights, plain.gradients, plain.optimizer) == (2 * size, size, 2 * size)
    assert plain.writing == 1000 * 2 * 2 * 8 * 2 * 4
    assert plain.total == 5 * size + max(plain.learning, plain.writing)
    split = estimate(screener, settings(fsdp=True), load, processes=2)
    assert (split.weights, split.optimizer) == (size // 2, size)
    whole, checkpointed = (sum(activations(screener, load, checkpointed=flag)) for flag in (False, True))
    assert checkpointed < 0.7 * whole
    add_adapter(screener.model, LoraConfig(r=2))
    assert estimate(screener, settings(), load).optimizer < 0.3 * plain.optimizer
    assert announce(screener, plain, "lower this")[0].startswith("memory: about ")


def test_less_than_it_takes_is_warned_of(screener: Screener, monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate(screener, settings(), load_of(screener, packed(screener, 12).prompts, 200, 200))
    monkeypatch.setattr("trainer.memory.free_memory", lambda device: 1000)
    lines = announce(screener, found, "lower groups_per_forward (now 8)")
    assert "warning" in lines[1]
    assert lines[1].endswith("lower groups_per_forward (now 8)")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_running_out_of_memory_is_one_line(error: Exception, tmp_path: Path) -> None:
    directory = SimpleNamespace(latest_checkpoint=lambda: tmp_path / "step-00000007")
    with pytest.raises(OutOfMemory) as told, naming_what_to_lower("learning in step 9", "lower this", directory):
        raise error
    assert str(told.value) == (
        f"out of memory while learning in step 9: lower this; go on from {tmp_path / 'step-00000007'} with resume=true"
    )
    with pytest.raises(RuntimeError, match="shapes"), naming_what_to_lower("learning", "lower this", directory):
        raise RuntimeError("shapes differ")


def test_a_real_allocation_that_fails_is_understood(tmp_path: Path) -> None:
    directory = SimpleNamespace(latest_checkpoint=lambda: None)
    with pytest.raises(OutOfMemory, match=r"lower this$"), naming_what_to_lower("learning", "lower this", directory):
        torch.empty(1 << 60)


def test_a_step_that_does_not_fit_leaves_the_last_checkpoint(
    make_export: MakeExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = make_export(samples=8, dimensions=(DIMENSIONS[0],))
    model_directory(tmp_path / "new", "qwen3_vl")
    given = [f"export_dir={export}", f"model_dir={tmp_path / 'new'}", f"run_dir={tmp_path / 'run'}", "device=cpu"]
    given += ["steps=3", "checkpoint_every=1", "batch_samples=2", "accumulate=2", "evaluate_samples=0"]
    backward = torch.Tensor.backward

    def run_out(self: torch.Tensor) -> None:
        if next(steps, False) and (tmp_path / "run" / "checkpoints").exists():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        backward(self)  # type: ignore[no-untyped-call]

    steps = iter([False, False, True])
    monkeypatch.setattr(torch.Tensor, "backward", run_out)
    with pytest.raises(OutOfMemory, match=r"step 2: set gradient_checkpointing=true; go on from .*00000001"):
        sft.main(load_config(SFTConfig, None, given))
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert "memory: about" in said
    assert "a step takes" in said
    sft.main(load_config(SFTConfig, None, [*given, "resume=true"]))
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_what_to_lower_goes_on_until_nothing_is_left() -> None:
    given = ["export_dir=e", "model_dir=m", "run_dir=r", "steps=1"]
    assert "groups_per_forward (now 8)" in grpo._lower(load_config(GRPOConfig, None, given))
    one = [*given, "groups_per_forward=1"]
    assert "compute_once=images" in grpo._lower(load_config(GRPOConfig, None, one))
    assert "compute_once=nothing" in grpo._lower(load_config(GRPOConfig, None, [*one, "compute_once=images"]))
    twice = [*one, "compute_once=nothing"]
    assert "gradient_checkpointing" in grpo._lower(load_config(GRPOConfig, None, twice))
    assert "compute_once=nothing" in grpo._lower(load_config(GRPOConfig, None, [*one, "gradient_checkpointing=true"]))
    assert "lora.r" in grpo._lower(load_config(GRPOConfig, None, [*twice, "gradient_checkpointing=true"]))


def test_the_pace_of_a_run_is_told() -> None:
    assert told_pace(2.0, Budget(30, 0)) == "a step takes 2 s: about 1:00 for the run"
    assert told_pace(2.0, Budget(0, 1.0)).endswith("about 30 steps")


def test_the_time_of_a_run_is_told_before_it_starts() -> None:
    begun = Budget(30, 0, done_steps=10)
    assert told_estimate(0.5, 1.5, begun) == (
        "time: a step will take about 2 s (1.5 s of writing, 0.5 s of learning): about 0:40 for the run"
    )
    assert told_estimate(0.5, 0.0, begun) == "time: a step will take about 0.5 s: about 0:10 for the run"
    assert told_estimate(0.5, None, begun) == (
        "time: learning will take about 0.5 s of a step, writing comes on top: more than 0:10 for the run"
    )
    assert told_estimate(0.5, None, Budget(0, 1.0)).endswith("fewer than 120 steps")
    assert learning_seconds(1.0, settings()) < learning_seconds(1.0, settings(gradient_checkpointing=True))


def test_a_run_says_before_its_first_step_what_it_will_take(
    export: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"export_dir={export}", f"model_dir={start}", "device=cpu", "dimensions=physical_shadow", "steps=1"]
    small = ["prompts_per_step=2", "start_records=4", "max_completion_length=24"]
    grpo.build(load_config(GRPOConfig, None, [*given, *small, f"run_dir={tmp_path / 'gated'}"]))
    assert re.search(r"time: a step will take about .* of writing, .* of learning", capsys.readouterr().err)
    grpo.build(load_config(GRPOConfig, None, [*given, *small, f"run_dir={tmp_path / 'open'}", "start_gate=off"]))
    assert "writing comes on top: more than" in capsys.readouterr().err
    sft.main(load_config(SFTConfig, None, [*given, f"run_dir={tmp_path / 'sft'}", "answer_only=true"]))
    said = capsys.readouterr().err
    assert said.index("sft: memory: about") < said.index("sft: time: a step will take") < said.index("a step takes")
