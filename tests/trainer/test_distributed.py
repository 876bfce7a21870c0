"""Two processes on one run end with the weights of one process: data parallel and split, SFT and GRPO.

The processes are real and joined over gloo.
"""

from __future__ import annotations

import json
import os
import socket
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
        # An odd number of prompts, one at a time, and a reference: processes make different numbers of passes.
        *("evaluate_records=3", "start_records=8", "learning_rate=5e-4", "groups_per_forward=1", "beta=0.02"),
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


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def in_one_process(command: str, settings: list[str], run_dir: Path) -> dict[str, torch.Tensor]:
    given = [*settings, f"run_dir={run_dir}"]
    if command == "sft":
        sft.main(load_config(SFTConfig, None, given))
    else:
        grpo.main(load_config(GRPOConfig, None, given))
    return weights(run_dir)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-6, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_ends_where_one_process_does(given: list[str], home: Path, tmp_path: Path) -> None:
    settings = [*given, *SETTINGS["grpo"]]
    alone = in_one_process("grpo", settings, tmp_path / "one")
    start = load_file(home / "start" / "model.safetensors")
    assert max(float((alone[name] - start[name]).abs().max()) for name in alone) > 5e-4  # something was learnt
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "trainer", "grpo", "--set", *settings, f"run_dir={tmp_path / 'two'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saved ") == 1  # one of the two talks
    assert_equal(weights(tmp_path / "two"), alone)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_split_weights_end_where_whole_ones_do(given: list[str], tmp_path: Path) -> None:
    """SFT data parallel, SFT and GRPO with split weights, one after the other in the same two processes."""
    runs = {"sft": ("sft", "fsdp=false"), "sft-split": ("sft", "fsdp=true"), "grpo-split": ("grpo", "fsdp=true")}
    lines = [
        [command, *given, *SETTINGS[command], *more, f"run_dir={tmp_path / name}"]
        for name, (command, *more) in runs.items()
    ]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.several_runs", json.dumps(lines)],
            env={**os.environ, **places, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    alone = {
        command: in_one_process(command, [*given, *SETTINGS[command]], tmp_path / "one" / command)
        for command in SETTINGS
    }
    said = [process.communicate(timeout=250)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "the model is in" in said[0]
    assert "the model is in" not in said[1]
    for name, (command, _) in runs.items():
        assert_equal(weights(tmp_path / name), alone[command])
        assert load_screener(tmp_path / name / "model", "cpu").architecture == "qwen3_vl"
    # A checkpoint of split weights is a whole one: one process goes on from it to the same end.
    for name in ("sft-split", "grpo-split"):
        command = runs[name][0]
        again = in_one_process(command, [*given, *SETTINGS[command], "resume=true"], tmp_path / name)
        assert_equal(again, alone[command])


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
