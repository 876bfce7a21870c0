"""Two processes on one run end with the weights of one process: data parallel and split, SFT and GRPO.

The processes are real: torchrun starts `python -m trainer` twice, joined over gloo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conftest import MakeExport, make_screener, teach_the_form
from trainer import grpo, sft
from trainer.config import ConfigRefused, load_config
from trainer.contract.dimensions import Dimension
from trainer.distributed import Ranks, joined_ranks
from trainer.grpo import GRPOConfig
from trainer.model import load_screener, save_screener
from trainer.sft import SFTConfig

SETTINGS = {
    "sft": ["batch_samples=5", "evaluate_samples=3", "learning_rate=2e-3"],
    "grpo": [
        *("dimensions=physical_shadow", "prompts_per_step=5", "num_generations=4", "max_completion_length=16"),
        *("evaluate_records=3", "start_records=8", "learning_rate=5e-4", "groups_per_forward=1"),
    ],
}
SHARED = ["device=cpu", "threads=1", "steps=3", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def given(make_export: MakeExport, home: Path) -> list[str]:
    """Settings of an export and of a model that writes readable answers, which is made once."""
    export = make_export(samples=16)
    if not (home / "start").exists():
        screener = make_screener(home / "new")
        teach_the_form(screener, export, (Dimension.PHYSICAL_SHADOW,))
        save_screener(screener, home / "start")
    return [f"export_dir={export}", f"model_dir={home / 'start'}", *SHARED]


def two_processes(command: str, settings: list[str]) -> str:
    """What torchrun and its two processes print; they must end well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "trainer", command, "--set", *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def one_process(command: str, settings: list[str], run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights after a run in this process, which is made once per command."""
    if not run_dir.exists():
        if command == "sft":
            sft.main(load_config(SFTConfig, None, [*settings, f"run_dir={run_dir}"]))
        else:
            grpo.main(load_config(GRPOConfig, None, [*settings, f"run_dir={run_dir}"]))
    return weights(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_two_processes_end_where_one_does(
    command: str, fsdp: bool, given: list[str], home: Path, tmp_path: Path
) -> None:
    settings = [*given, *SETTINGS[command]]
    alone = one_process(command, settings, home / f"{command}-alone")
    start = load_file(home / "start" / "model.safetensors")
    assert max(float((alone[name] - start[name]).abs().max()) for name in alone) > 5e-4  # something was learnt
    said = two_processes(command, [*settings, f"run_dir={tmp_path / 'two'}", f"fsdp={str(fsdp).lower()}"])
    assert said.count("the model is in") + said.count("saved ") == 1  # one of the two talks
    together = weights(tmp_path / "two")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=2e-6, rtol=0, msg=name)
    # The checkpoint of two processes is that of one: one process goes on from it to the same end.
    resumed = [*settings, f"run_dir={tmp_path / 'two'}", "resume=true"]
    if command == "sft":
        sft.main(load_config(SFTConfig, None, resumed))
    else:
        grpo.main(load_config(GRPOConfig, None, resumed))
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, alone[name], atol=2e-6, rtol=0, msg=name)
    assert load_screener(tmp_path / "two" / "model", "cpu").architecture == "qwen3_vl"


def test_split_weights_want_several_processes(tmp_path: Path) -> None:
    config = load_config(
        SFTConfig, None, ["export_dir=e", "model_dir=m", f"run_dir={tmp_path}", "steps=1", "fsdp=true"]
    )
    with pytest.raises(ConfigRefused, match="torchrun"), joined_ranks(config):
        pass


def test_shares_come_together_again_in_order() -> None:
    class Three(Ranks):
        def gather(self, value: object) -> list[object]:  # type: ignore[override]
            return [items[rank::3] for rank in range(3)]

    items = list(range(8))
    assert [list(Ranks(rank, 3).share(items)) for rank in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert Three(0, 3).interleave(items[0::3]) == items
