"""A GRPO run on an export of plain colours: reward rises, a resumed run equals one in a single sitting, gates hold."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import SHADOW, make_screener
from trainer import grpo
from trainer.checkpoint import RunDirectory
from trainer.config import ConfigRefused, LoraConfig, load_config
from trainer.contract.scores import RewardWeights
from trainer.distributed import Ranks
from trainer.grpo import GRPOConfig, Run, StartRefused
from trainer.hard_cases import HardCaseConfig, HardCaseMode
from trainer.model import load_screener, save_screener
from trainer.objective import LossType
from trainer.optimization import set_learning_rate
from trainer.rewards import grade_completions
from trainer.rollout import Written


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl", "internvl"])
def any_start(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of each architecture in turn, with random weights."""
    save_screener(make_screener(tmp_path / "made", request.param), tmp_path / "any-start")
    return tmp_path / "any-start"


def config(export: Path, model: Path, run_dir: Path, **fields: Any) -> GRPOConfig:
    settings: dict[str, Any] = {
        "export_dir": export,
        "model_dir": model,
        "run_dir": run_dir,
        "steps": 30,
        "learning_rate": 2e-3,
        "prompts_per_step": 6,
        "max_completion_length": 24,
        "dimensions": SHADOW,
        "device": "cpu",
        "report": False,
    }
    return GRPOConfig(**settings | fields)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize("hard_cases", [True, False])
def test_reward_rises(export: Path, start: Path, tmp_path: Path, hard_cases: bool) -> None:
    grpo.main(config(export, start, tmp_path / "run", hard_cases=hard_cases))
    rows = metrics(tmp_path / "run")
    steps = rows[:30]
    first, last = (sum(row["reward"] for row in part) / 5 for part in (steps[:5], steps[-5:]))
    assert last > first + 0.08
    assert max(row["logprob_gap"] for row in steps if "logprob_gap" in row) < 1e-4
    assert sum(steps[-1]["records"].values()) == 12
    assert (sum(row["replays"] for row in steps) > 0) == hard_cases
    assert 0 <= rows[30]["validation"]["exact"] <= 1
    assert load_screener(tmp_path / "run" / "model").architecture == "qwen3_vl"
    assert (tmp_path / "run" / "review.jsonl").exists()


def test_a_resumed_run_equals_one_in_a_single_sitting(
    export: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"steps": 8, "checkpoint_every": 4, "beta": 0.02}
    grpo.main(config(export, start, tmp_path / "whole", **fields))
    taken = 0

    def stopped_step(run: Run) -> dict[str, Any]:
        nonlocal taken
        if taken == 5:
            raise KeyboardInterrupt
        taken += 1
        return original(run)

    original = grpo.train_step
    monkeypatch.setattr(grpo, "train_step", stopped_step)
    with pytest.raises(KeyboardInterrupt):
        grpo.main(config(export, start, tmp_path / "parts", **fields))
    monkeypatch.setattr(grpo, "train_step", original)
    grpo.main(config(export, start, tmp_path / "parts", resume=True, **fields))
    assert without_clock(metrics(tmp_path / "parts")) == without_clock(metrics(tmp_path / "whole"))
    assert [row["kl"] > 0 for row in metrics(tmp_path / "whole")[2:8] if "kl" in row].count(True) >= 3


def test_a_stop_saves_and_the_run_goes_on_from_there(export: Path, start: Path, tmp_path: Path) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", steps=2))
    figures = grpo.train_step(run)
    run.state.step = 1
    run.directory.log(1, figures)
    grpo.save_checkpoint(run)
    resumed = grpo.build(config(export, start, tmp_path / "run", steps=2, resume=True))
    assert resumed.state.step == 1
    assert resumed.hard_cases.state_dict() == run.hard_cases.state_dict()


def test_a_start_that_writes_no_answers_is_refused(export: Path, tmp_path: Path) -> None:
    save_screener(make_screener(tmp_path / "new"), tmp_path / "untrained")
    with pytest.raises(StartRefused, match="0% readable answers"):
        grpo.build(config(export, tmp_path / "untrained", tmp_path / "run"))
    grpo.build(config(export, tmp_path / "untrained", tmp_path / "warned", start_gate="warn"))


def gradient(run: Run, **fields: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The update's direction from one batch, under other settings."""
    run.config = replace(run.config, **fields)
    records = list(run.train_records.values())[:4]
    seen = grpo.see_records(run, records)
    groups = grpo.write_groups(run, seen, records, seed=1)
    advantages_NG = torch.linspace(-1, 1, 32).reshape(4, 8)
    set_learning_rate(run.optimizer, 0.5, run.config)
    before = [parameter.detach().clone() for parameter in run.screener.model.parameters()]
    figures = grpo.learn(run, seen, [0, 1, 2, 3], groups, advantages_NG)
    after = list(run.screener.model.parameters())
    moved = torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)])
    return moved.detach(), figures


@pytest.mark.parametrize("loss_type", list(LossType))
def test_smaller_forwards_give_the_same_update(export: Path, start: Path, tmp_path: Path, loss_type: LossType) -> None:
    found = []
    for number, size in enumerate((1, 8)):
        run = grpo.build(config(export, start, tmp_path / str(number), start_gate="off", loss_type=loss_type))
        _, figures = gradient(run, groups_per_forward=size)
        found.append(figures)
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("mode", [HardCaseMode.ONLINE, HardCaseMode.STAGED])
def test_a_mining_pass_knows_hard_records_before_the_first_step(
    export: Path, start: Path, tmp_path: Path, mode: HardCaseMode
) -> None:
    mining = HardCaseConfig(mode=mode, pass_generations=8, hard_at_most=0.5)
    fields: dict[str, Any] = {"steps": 1, "start_gate": "off", "mining": mining}
    run = grpo.build(config(export, start, tmp_path / "run", **fields))
    grpo.mining_pass(run)
    assert run.hard_cases.rollouts == 12 * 8
    hard = {row["record_id"] for row in run.hard_cases.difficulties() if row["class"] == "hard"}
    assert hard
    told = [json.loads(line) for line in (tmp_path / "run" / "hard_cases.jsonl").read_text().splitlines()]
    assert {row["record"] for row in told if row["decision"] == "moved" and row["to"] == "hard"} == hard
    if mode is HardCaseMode.STAGED:
        assert set([row for row in told if row["decision"] == "stage"][-1]["repeated"]) == hard
    grpo.train(run)
    assert metrics(tmp_path / "run")[1]["rollouts"] == 12 * 8 + 6 * 8

    # Whoever goes on from here does not pay for it again, and draws the same records.
    again = grpo.build(config(export, start, tmp_path / "run", resume=True, **fields))
    grpo.mining_pass(again)
    assert again.hard_cases.rollouts == 12 * 8
    grpo.train(again)
    assert again.hard_cases.state_dict() == run.hard_cases.state_dict()


def test_several_updates_per_batch_meet_the_clip(export: Path, start: Path, tmp_path: Path) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", learning_rate=5e-3))
    _, once = gradient(run)
    assert once["clipped"] == 0
    run = grpo.build(config(export, start, tmp_path / "again", start_gate="off", learning_rate=5e-3))
    _, thrice = gradient(run, num_iterations=3)
    assert thrice["clipped"] > 0


def test_parked_records_are_written_for_the_platform(export: Path, start: Path, tmp_path: Path) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", mining=HardCaseConfig(parked_visits=1)))
    first, second, *_ = [record for record in run.train_records.values() if record.answer]
    said = ["<answer>none</answer>"] * 8
    run.hard_cases.observe(first.id, grade_completions(first, said, run.config.reward))
    run.hard_cases.observe(second.id, grade_completions(second, ["no answer"] * 8, run.config.reward))
    assert grpo.write_findings(run) == (2, 1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "review.jsonl").read_text().splitlines()]
    found = {row["record_id"]: (row["reason"], row["model_answer"], row["share"]) for row in rows}
    assert found == {first.id: ("suspect_label", "none", 1.0), second.id: ("parked", None, 0.0)}
    told = [json.loads(line) for line in (tmp_path / "run" / "difficulty.jsonl").read_text().splitlines()]
    assert {row["record_id"]: row["difficulty"] for row in told} == {first.id: 1.0, second.id: 1.0}


@pytest.mark.parametrize("override", ["mining.ema=2", "reward.dpa=-1", "beta=-1", "num_generations=1", "top_p=0"])
def test_wrong_settings_are_refused_by_name(override: str) -> None:
    given = ["export_dir=e", "model_dir=m", "run_dir=r", "steps=1", override]
    with pytest.raises(ConfigRefused, match=override.split("=")[0].split(".")[0]):
        load_config(GRPOConfig, None, given)


def test_a_run_directory_in_use_is_refused(export: Path, start: Path, tmp_path: Path) -> None:
    grpo.build(config(export, start, tmp_path / "run", start_gate="off"))
    with pytest.raises(ValueError, match="already holds a run"):
        RunDirectory(config(export, start, tmp_path / "run"))


def test_what_is_computed_once_gives_the_same_update_as_what_is_computed_again(
    any_start: Path, export: Path, tmp_path: Path
) -> None:
    moved = []
    for once in ("prompts", "images", "nothing"):
        made = config(export, any_start, tmp_path / once, start_gate="off", compute_once=once, vision_lr=1.0)
        run = grpo.build(made)
        towers: list[int] = []
        run.screener.vision_tower.register_forward_hook(lambda *_, towers=towers: towers.append(1))
        step, _ = gradient(run, self_check=False)
        moved.append(step)
        # Prompt by prompt; else all together, for writing and for learning.
        assert len(towers) == (2 if once == "nothing" else 4)
    assert torch.allclose(moved[0], moved[2], atol=2e-5)
    assert torch.allclose(moved[1], moved[2], atol=2e-5)


@pytest.mark.parametrize("loss_type", list(LossType))
def test_groups_without_an_advantage_count_in_every_mean(
    export: Path, start: Path, tmp_path: Path, loss_type: LossType
) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", loss_type=loss_type))
    records = list(run.train_records.values())[:4]
    seen = grpo.see_records(run, records)
    groups = grpo.write_groups(run, seen, records, seed=1)
    advantages_NG = torch.linspace(-1, 1, 32).reshape(4, 8) ** 2
    advantages_NG[2:] = 0.0
    tokens = [sum(len(one.token_ids) for group in groups for one in group)]
    state = {name: value.clone() for name, value in run.screener.model.state_dict().items()}
    skipped = grpo.learn(run, seen, [0, 1], groups[:2], advantages_NG[:2], tokens)
    run.screener.model.load_state_dict(state)
    seen = grpo.see_records(run, records)
    whole = grpo.learn(run, seen, [0, 1, 2, 3], groups, advantages_NG)
    assert skipped["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert skipped["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("loss_type", list(LossType))
def test_a_step_learns_from_all_its_groups_what_it_learns_from_those_with_an_advantage(
    export: Path, start: Path, tmp_path: Path, loss_type: LossType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole step that leaves rows out, beside one that keeps them all."""
    losses = []
    for everything in (False, True):
        if everything:
            monkeypatch.setattr(grpo, "groups_with_signal", lambda rewards_NG: torch.ones(len(rewards_NG)).bool())
        fields: dict[str, Any] = {
            "start_gate": "off",
            "loss_type": loss_type,
            "reward": RewardWeights(dpa=0.0, parsable=0.0, exact=1.0),
        }
        run = grpo.build(config(export, start, tmp_path / str(everything), **fields))
        figures = grpo.train_step(run)
        losses.append((figures["loss"], figures["grad_norm"]))
        assert (figures["zero_advantage"] == 0) == everything

    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)


def test_each_process_takes_the_mean_over_its_own_tokens(export: Path, start: Path, tmp_path: Path) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off"))
    run.ranks = Ranks(1, 3)
    groups = [[Written((25,) * length, (0.0,) * length, "", True)] * 2 for length in (1, 10, 100, 1000, 10000)]
    assert grpo._taught_tokens(run, range(5), groups) == [2 + 2000, 20 + 20000, 200]


def test_a_projector_learns_beside_a_frozen_tower(export: Path, tmp_path: Path) -> None:
    """What stands between tower and text is trained though the tower is not, whatever is computed once."""
    save_screener(make_screener(tmp_path / "made", "internvl"), tmp_path / "start")
    moved = {}
    for once in ("prompts", "images", "nothing"):
        made = config(export, tmp_path / "start", tmp_path / once, start_gate="off", compute_once=once, vision_lr=0.0)
        run = grpo.build(made)
        projector = run.screener.model.model.multi_modal_projector
        before = torch.cat([weight.detach().flatten() for weight in projector.parameters()])
        gradient(run, self_check=False)
        moved[once] = torch.cat([weight.detach().flatten() for weight in projector.parameters()]) - before
    assert moved["nothing"].abs().max() > 1e-4
    assert torch.allclose(moved["prompts"], moved["nothing"], atol=2e-5)
    assert torch.allclose(moved["images"], moved["nothing"], atol=2e-5)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_reference_does_not_look_again_where_the_tower_is_frozen(
    export: Path, start: Path, tmp_path: Path, adapter: bool
) -> None:
    fields: dict[str, Any] = {"lora": LoraConfig(r=2)} if adapter else {"vision_lr": 0.0}
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", beta=0.1, **fields))
    towers: list[int] = []
    for screener in (run.screener, run.reference):
        if screener:
            screener.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    gradient(run, self_check=False)
    assert len(towers) == 4  # once for each prompt


def test_a_reference_attends_as_it_is_told_to(export: Path, start: Path, tmp_path: Path) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", beta=0.1, prefix_attention="mask"))
    assert run.reference is not None
    assert (run.screener.prefix_attention, run.reference.prefix_attention) == ("mask", "mask")


def test_no_two_calls_of_a_run_draw_alike(
    export: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a seed, torch's generator takes 32 bits."""
    seeds: list[int] = []
    original = grpo.write_groups

    def noted(run: Run, seen: Any, records: Any, seed: int, generations: int = 0) -> Any:
        seeds.append(seed % (1 << 32))
        return original(run, seen, records, seed, generations)

    monkeypatch.setattr(grpo, "write_groups", noted)
    mining = HardCaseConfig(pass_generations=2)
    run = grpo.build(config(export, start, tmp_path / "run", steps=2, prompts_per_step=4, mining=mining))
    grpo.mining_pass(run)
    grpo.train(run)
    assert len(seeds) == 3 + 3 + 2
    assert len(set(seeds)) == len(seeds)


def test_training_time_begins_with_training(export: Path, start: Path, tmp_path: Path) -> None:
    """A start gate and a mining pass that took longer than the run may take leave it its minutes."""
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", steps=0, minutes=0.005))
    run.budget._began -= 1000
    grpo.train(run)
    assert run.state.step > 0
    assert run.state.seconds < 60


def test_a_signal_stops_between_steps(
    export: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {"start_gate": "off", "steps": 3}
    grpo.main(config(export, start, tmp_path / "whole", **fields))
    run = grpo.build(config(export, start, tmp_path / "parts", **fields))
    take_step = grpo.train_step

    def interrupted(run: Run) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return take_step(run)

    monkeypatch.setattr(grpo, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grpo.train(run)
    monkeypatch.undo()
    kept = tmp_path / "parts" / "checkpoints" / "step-00000001"
    assert run.directory.latest_checkpoint() == kept
    assert f"stopped after step 1; go on from {kept} with --set resume=true" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "model").exists()
    grpo.main(config(export, start, tmp_path / "parts", resume=True, **fields))
    assert without_clock(metrics(tmp_path / "parts")) == without_clock(metrics(tmp_path / "whole"))


def test_a_signal_in_the_mining_pass_keeps_what_was_mined(
    export: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"start_gate": "off", "steps": 1, "mining": HardCaseConfig(pass_generations=2)}
    whole = grpo.build(config(export, start, tmp_path / "whole", **fields))
    grpo.mining_pass(whole)
    run = grpo.build(config(export, start, tmp_path / "parts", **fields))
    original = grpo.write_groups

    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return original(*given)

    monkeypatch.setattr(grpo, "write_groups", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grpo.mining_pass(run)
    monkeypatch.undo()
    assert run.hard_cases.rollouts == 6 * 2
    again = grpo.build(config(export, start, tmp_path / "parts", resume=True, **fields))
    grpo.mining_pass(again)
    assert again.hard_cases.state_dict() == whole.hard_cases.state_dict()
    logs = [(tmp_path / name / "hard_cases.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_cut_completions_can_be_left_out(export: Path, start: Path, tmp_path: Path) -> None:
    run = grpo.build(config(export, start, tmp_path / "run", start_gate="off", max_completion_length=1))
    _, everything = gradient(run)
    assert everything["grad_norm"] > 0
    _, nothing = gradient(run, mask_truncated_completions=True)
    assert nothing["loss"] == 0.0
    assert nothing["grad_norm"] == 0.0
