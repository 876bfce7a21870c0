"""Killed at any moment with SIGKILL and gone on with, a run ends with the weights of an unbroken one, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer.conftest import MakeExport, model_directory
from trainer.__main__ import main

SETTINGS = ["device=cpu", "threads=1", "report=false"]


def begun(method: str, *settings: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, which can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", method, "--set", *SETTINGS, *settings],
        cwd=Path(__file__).resolve().parents[2],
        stderr=subprocess.DEVNULL,
    )


def done(method: str, *settings: str) -> None:
    """The command here, to its end: what it imports is there already."""
    assert main([method, "--set", *SETTINGS, *settings]) == 0


def killed_somewhere(process: subprocess.Popen[bytes], run_dir: Path, seconds: float) -> None:
    """SIGKILL some time after the first checkpoint of a step; `seconds` of the run are certainly left then."""
    until = time.monotonic() + 100
    while not [path for path in (run_dir / "checkpoints").glob("step-*[1-9]") if path.is_dir()]:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(random.uniform(0, seconds))
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"


def rows(run_dir: Path, name: str) -> list[dict[str, object]]:
    clocks = ("seconds", "tokens_per_second")
    found = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in clocks} for row in found]


def assert_same_end(whole: Path, broken: Path, *logs: str) -> None:
    first, second = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    for name in logs:
        assert rows(broken, name) == rows(whole, name)


@pytest.mark.timeout(300)  # a process of its own, on a machine that may have others
def test_grpo_with_hard_cases(export: Path, start: Path, tmp_path: Path) -> None:
    common = [
        f"export_dir={export}", f"model_dir={start}", "steps=24", "checkpoint_every=3", "prompts_per_step=4",
        "max_completion_length=24", "dimensions=physical_shadow", "learning_rate=2e-3", "beta=0.02",
        "mining.pass_generations=2", "mining.replay_share=0.5", "start_gate=off", "evaluate_every=5",
    ]  # fmt: skip
    done("grpo", *common, f"run_dir={tmp_path / 'whole'}")
    killed_somewhere(begun("grpo", *common, f"run_dir={tmp_path / 'broken'}"), tmp_path / "broken", 0.6)
    done("grpo", *common, f"run_dir={tmp_path / 'broken'}", "resume=true")
    logs = ("metrics.jsonl", "hard_cases.jsonl", "samples.jsonl", "difficulty.jsonl", "review.jsonl")
    assert_same_end(tmp_path / "whole", tmp_path / "broken", *logs)
    assert any(row["replay"] for row in rows(tmp_path / "whole", "hard_cases.jsonl") if row["decision"] == "batch")


@pytest.mark.timeout(300)
def test_sft(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=16)
    model_directory(tmp_path / "new", "qwen3_vl")
    common = [
        f"export_dir={export}", f"model_dir={tmp_path / 'new'}", "steps=36", "checkpoint_every=4", "batch_samples=4",
        "permute=true", "mirror=true", "prompt_mix.explain=1", "evaluate_every=10",
    ]  # fmt: skip
    done("sft", *common, f"run_dir={tmp_path / 'whole'}")
    killed_somewhere(begun("sft", *common, f"run_dir={tmp_path / 'broken'}"), tmp_path / "broken", 0.6)
    done("sft", *common, f"run_dir={tmp_path / 'broken'}", "resume=true")
    assert_same_end(tmp_path / "whole", tmp_path / "broken", "metrics.jsonl", "samples.jsonl")


def test_a_run_that_was_over_but_for_its_last_words_says_them_once(export: Path, start: Path, tmp_path: Path) -> None:
    given = [
        f"export_dir={export}", f"model_dir={start}", f"run_dir={tmp_path / 'run'}", "steps=2", "checkpoint_every=1",
        "prompts_per_step=2", "max_completion_length=8", "dimensions=physical_shadow", "start_gate=off", "resume=true",
    ]  # fmt: skip
    done("grpo", *given)
    logs = ("metrics.jsonl", "samples.jsonl", "hard_cases.jsonl")
    before = [rows(tmp_path / "run", name) for name in logs]
    done("grpo", *given)
    assert [rows(tmp_path / "run", name) for name in logs] == before


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_grpo_killed_again_and_again(export: Path, start: Path, tmp_path: Path) -> None:
    common = [
        f"export_dir={export}", f"model_dir={start}", "steps=60", "checkpoint_every=1", "prompts_per_step=4",
        "max_completion_length=24", "dimensions=physical_shadow", "start_gate=off", "resume=true",
    ]  # fmt: skip
    done("grpo", *common, f"run_dir={tmp_path / 'whole'}")
    for _ in range(8):
        process = begun("grpo", *common, f"run_dir={tmp_path / 'broken'}")
        time.sleep(random.uniform(4, 12))
        process.kill()
        process.wait()
    done("grpo", *common, f"run_dir={tmp_path / 'broken'}")
    assert_same_end(tmp_path / "whole", tmp_path / "broken", "metrics.jsonl", "hard_cases.jsonl")
