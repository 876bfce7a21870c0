"""A checkpoint stands whole or not at all, old ones go, and a run goes on only with what it began with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import make_screener
from trainer.checkpoint import RunDirectory, TrainerState, restore
from trainer.config import ConfigRefused, Tracker, TrainingConfig
from trainer.contract.dimensions import Dimension
from trainer.model import Screener
from trainer.optimization import Diverged, clip_and_step, learning_rate_at, make_optimizer, refuse_divergence
from trainer.tracking import TrackingRefused

SEPARATED = "one\u2028two\u2029three\u0085four"
"""What a model may write: separators of Unicode, which are no ends of rows."""


def settings(tmp_path: Path, **fields: object) -> TrainingConfig:
    given = {"export_dir": tmp_path / "export", "model_dir": tmp_path / "model", "run_dir": tmp_path / "run"}
    return TrainingConfig(**{"steps": 10, **given, **fields})  # type: ignore[arg-type]


def step(screener: Screener, optimizer: torch.optim.Optimizer) -> None:
    loss = sum(parameter.square().sum() for parameter in screener.model.parameters())
    loss.backward()
    clip_and_step(optimizer, 1.0)


def test_state_comes_back_with_its_random_numbers(tmp_path: Path) -> None:
    config = settings(tmp_path)
    screener = make_screener(tmp_path / "model")
    optimizer = make_optimizer(screener, config)
    step(screener, optimizer)
    directory = RunDirectory(config)
    where = directory.save_checkpoint(
        screener, optimizer, TrainerState(step=7, seconds=1.5, extra={"pool": {"a": 0.5}})
    )
    drawn = torch.rand(3)

    fresh = make_optimizer(screener, config)
    state = restore(where, fresh, torch.device("cpu"))
    assert (state.step, state.seconds, state.extra) == (7, 1.5, {"pool": {"a": 0.5}})
    assert torch.equal(torch.rand(3), drawn)
    ours, theirs = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert all(torch.equal(ours[key]["exp_avg"], theirs[key]["exp_avg"]) for key in ours)


def test_old_and_unfinished_checkpoints_do_not_count(tmp_path: Path) -> None:
    config = settings(tmp_path, keep_checkpoints=2)
    screener = make_screener(tmp_path / "model")
    optimizer = make_optimizer(screener, config)
    directory = RunDirectory(config)
    for number in (1, 2, 10):
        directory.save_checkpoint(screener, optimizer, TrainerState(step=number))
    (config.run_dir / "checkpoints" / "step-00000011.partial").mkdir()
    names = sorted(path.name for path in (config.run_dir / "checkpoints").glob("step-*[0-9]"))
    assert names == ["step-00000002", "step-00000010"]
    latest = directory.latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-00000010"


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    screener = make_screener(tmp_path / "model")
    optimizer = make_optimizer(screener, config)
    where = RunDirectory(config).save_checkpoint(screener, optimizer, TrainerState(step=1))
    (where / "optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigRefused, match="cannot be resumed from"):
        restore(where, optimizer, torch.device("cpu"))


def test_a_run_does_not_go_on_with_another_version(tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    RunDirectory(config).begin(config, "sft", "one", TrainerState())
    with pytest.raises(ConfigRefused, match="began with version one"):
        RunDirectory(config).begin(config, "sft", "two", TrainerState())


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_saving_the_same_step_again_is_never_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    config = settings(tmp_path)
    screener = make_screener(tmp_path / "model")
    optimizer = make_optimizer(screener, config)
    directory = RunDirectory(config)
    directory.save_checkpoint(screener, optimizer, TrainerState(step=7, seconds=1.0))
    rename, left = Path.rename, iter([True] * renames)

    def killed(self: Path, target: Path) -> Path:
        if "step" in self.name and not next(left, False):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        directory.save_checkpoint(screener, optimizer, TrainerState(step=7, seconds=2.0))
    monkeypatch.undo()
    latest = directory.latest_checkpoint()
    assert latest is not None
    assert restore(latest, optimizer, torch.device("cpu")).seconds == (2.0 if renames else 1.0)
    # The next time settles it.
    where = directory.save_checkpoint(screener, optimizer, TrainerState(step=7, seconds=3.0))
    assert restore(where, optimizer, torch.device("cpu")).seconds == 3.0
    assert [path.name for path in where.parent.iterdir() if not path.name.endswith(".partial")] == ["step-00000007"]


def test_a_run_goes_on_as_what_it_began(tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    RunDirectory(config).begin(config, "sft", "one", TrainerState())
    with pytest.raises(ConfigRefused, match="holds a run of sft; choose another for grpo"):
        RunDirectory(config).refuse_another_run("grpo", "one")
    other = settings(tmp_path, resume=True, dimensions=(Dimension.PHYSICAL_SHADOW,))
    with pytest.raises(ConfigRefused, match=r"dimensions: .* began with .*,physical_shadow"):
        RunDirectory(other).refuse_another_run("sft", "one")
    again = settings(tmp_path, resume=True, dimensions=tuple(reversed(list(Dimension))))
    RunDirectory(again).refuse_another_run("sft", "one")
    (config.run_dir / "config.json").write_text("{")
    with pytest.raises(ConfigRefused, match=r"config.json: cannot be read"):
        RunDirectory(config).refuse_another_run("sft", "one")


def test_a_start_that_is_refused_leaves_the_directory_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = settings(tmp_path, tracking=(Tracker.TENSORBOARD, Tracker.WANDB))
    with pytest.raises(TrackingRefused):
        RunDirectory(config).begin(config, "sft", "one", TrainerState())
    RunDirectory(settings(tmp_path)).begin(settings(tmp_path), "sft", "one", TrainerState())


def test_the_rate_rises_falls_and_waits_for_the_tower(tmp_path: Path) -> None:
    config = settings(
        tmp_path, learning_rate=1.0, warmup=0.1, final_lr=0.5, vision_lr=0.4, vision_lr_early=0.0, vision_early=0.2
    )
    assert learning_rate_at(0.0, config) < 0.02
    assert learning_rate_at(0.1, config) == pytest.approx(0.95)
    assert learning_rate_at(1.0, config) == pytest.approx(0.5)
    assert learning_rate_at(0.15, config, vision=True) == 0
    assert learning_rate_at(1.0, config, vision=True) == pytest.approx(0.2)


def test_a_tower_with_rate_0_is_frozen(tmp_path: Path) -> None:
    screener = make_screener(tmp_path / "model")
    make_optimizer(screener, settings(tmp_path, vision_lr=0.0))
    assert not any(parameter.requires_grad for parameter in screener.vision_tower.parameters())


def test_a_gradient_that_is_no_number_updates_nothing(tmp_path: Path) -> None:
    screener = make_screener(tmp_path / "model")
    optimizer = make_optimizer(screener, settings(tmp_path))
    before = [parameter.detach().clone() for parameter in screener.model.parameters()]
    for parameter in screener.model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    norm = clip_and_step(optimizer, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, screener.model.parameters(), strict=True))
    with pytest.raises(Diverged, match="the gradient is nan at step 3: lower learning_rate and go on from x with"):
        refuse_divergence("gradient", norm, 3, Path("x"))
    refuse_divergence("gradient", 1.0, 3, None)


def test_a_row_that_a_kill_cut_short_goes_with_the_rows_after_the_checkpoint(tmp_path: Path) -> None:
    config = settings(tmp_path, resume=True)
    screener = make_screener(tmp_path / "model")
    directory = RunDirectory(config)
    directory.begin(config, "sft", "one", TrainerState())
    for step_done in (1, 2, 3):
        directory.log(step_done, {"loss": 1.0})
        directory.log_rows("samples.jsonl", step_done, [{"text": SEPARATED}])
        if step_done == 2:
            directory.save_checkpoint(screener, make_optimizer(screener, config), TrainerState(step=2))
    directory.log(2, {"validation": 1.0})  # of the checkpoint's own step, and after it
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    again = RunDirectory(config)
    again.begin(config, "sft", "one", TrainerState(step=2))
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    rows = [json.loads(line) for line in (config.run_dir / "samples.jsonl").read_text().strip().split("\n")]
    assert rows == [{"step": number, "text": SEPARATED} for number in (1, 2)]
    told = json.loads((config.run_dir / "environment.json").read_text())
    assert [sitting["from_step"] for sitting in told["sittings"]] == [0, 2]
    assert set(told["git"]) == {"commit", "changed"} if told["git"] else True
