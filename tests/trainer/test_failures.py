"""What goes wrong in life is one clear line, and the last good checkpoint is as it was."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import SHADOW, MakeExport, model_directory
from trainer import grpo, sft
from trainer.__main__ import main
from trainer.config import load_config
from trainer.contract.dimensions import Dimension, Split
from trainer.data import read_split
from trainer.grpo import GRPOConfig
from trainer.hard_cases import HardCaseConfig
from trainer.memory import OutOfMemory
from trainer.model import load_screener
from trainer.objective import aggregate
from trainer.optimization import Diverged
from trainer.sft import SFTConfig


def files(directory: Path) -> dict[str, str]:
    """Every file below a directory with its hash."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a command ends with."""
    assert main(list(arguments)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trainer: ")]
    assert len(lines) == 1
    return lines[0]


def grpo_config(export: Path, start: Path, tmp_path: Path, **fields: Any) -> GRPOConfig:
    given: dict[str, Any] = {"export_dir": export, "model_dir": start, "run_dir": tmp_path / "run", "steps": 4}
    given |= {"prompts_per_step": 4, "max_completion_length": 24, "dimensions": SHADOW, "device": "cpu"}
    return GRPOConfig(**given | {"start_gate": "off", "checkpoint_every": 1, "report": False} | fields)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(
    export: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: float
) -> None:
    calls = 0

    def poisoned(*arguments: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return aggregate(*arguments, **named) * (poison if calls == 3 else 1.0)

    monkeypatch.setattr(grpo, "aggregate", poisoned)
    run = grpo.build(grpo_config(export, start, tmp_path, steps=12))
    with pytest.raises(Diverged, match=r"is (nan|inf|-inf) at step \d+: lower learning_rate and go on from .*step-0"):
        grpo.train(run)
    last = run.directory.latest_checkpoint()
    assert last is not None
    for name, value in load_screener(last / "model", "cpu").model.state_dict().items():
        assert value.isfinite().all(), name
        # Nothing was updated by the step that failed.
        assert torch.equal(value, run.screener.model.state_dict()[name]), name


def test_a_loss_of_sft_that_is_no_number(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=8, dimensions=SHADOW)
    model_directory(tmp_path / "new", "qwen3_vl")
    given: dict[str, Any] = {"export_dir": export, "model_dir": tmp_path / "new", "run_dir": tmp_path / "run"}
    run = sft.build(SFTConfig(**given, steps=3, batch_samples=2, device="cpu", checkpoint_every=1, report=False))
    sft.train_step(run, sft.next_batch(run))
    with torch.no_grad():
        run.screener.model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="there is no checkpoint to go back to"):
        sft.train_step(run, sft.next_batch(run))


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_missing_image(
    method: str, make_export: MakeExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = make_export(samples=8)
    gone = sorted((export / "images").rglob("*.png"))[3]
    gone.unlink()
    model_directory(tmp_path / "new", "qwen3_vl")
    given = [f"export_dir={export}", f"model_dir={tmp_path / 'new'}", f"run_dir={tmp_path / 'run'}", "steps=1"]
    assert said_by(capsys, method, "--set", *given) == f"trainer: {gone}: No such file or directory"


def test_a_changed_byte(make_export: MakeExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = make_export(samples=8)
    model_directory(tmp_path / "new", "qwen3_vl")
    given = ["sft", "--set", f"export_dir={export}", f"model_dir={tmp_path / 'new'}", "steps=1", "device=cpu"]
    given += [f"run_dir={tmp_path / 'run'}", "resume=true"]
    records = export / "records-00000.jsonl"
    kept = records.read_bytes()
    records.write_bytes(kept.replace(b'"annotators":1', b'"annotators":2', 1))
    assert "was changed: its bytes are not those of the manifest" in said_by(capsys, *given)
    records.write_bytes(kept)
    for image in (export / "images").rglob("*.png"):
        data = bytearray(image.read_bytes())
        data[-20] ^= 1
        image.write_bytes(data)
    assert "was changed: its bytes are not those of the record" in said_by(capsys, *given)


@pytest.mark.parametrize("method", ["sft", "grpo"])
@pytest.mark.parametrize("every", [0, 1])
def test_a_changed_validation_image_costs_no_training(
    method: str, every: int, export: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by the last evaluation, the model stands; by one between steps, a checkpoint does."""
    image = export / read_split(export, Split.VALIDATION, SHADOW, None)[0].original.path
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)
    given = [f"export_dir={export}", f"model_dir={start}", f"run_dir={tmp_path / 'run'}", "dimensions=physical_shadow"]
    given += ["device=cpu", "steps=2", f"evaluate_every={every}", "report=false"]
    given += ["answer_only=true"] if method == "sft" else ["start_gate=off", "prompts_per_step=2"]
    assert "was changed: its bytes are not those of the record" in said_by(capsys, method, "--set", *given)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists() == (not every)
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json").exists() == bool(every)


def out_of_memory(*given: Any, **named: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("fails", "settings", "said"),
    [
        ("write_groups", {"start_gate": "refuse"}, "answering at the start gate: lower prompts_per_step (now 4)"),
        ("write_groups", {"mining": HardCaseConfig(pass_generations=2)}, "mining: lower prompts_per_step (now 4)"),
        ("generate", {"steps": 1}, "answering validation records: lower evaluate_records (now 256)"),
        ("forward_seconds", {}, "timing a forward pass: lower groups_per_forward (now 8)"),
    ],
)
def test_memory_that_runs_out_beside_a_step(
    fails: str,
    settings: dict[str, Any],
    said: str,
    export: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpo, fails, out_of_memory)
    with pytest.raises(OutOfMemory) as told:
        grpo.main(grpo_config(export, start, tmp_path, **settings))
    assert f"out of memory while {said}" in str(told.value)


def test_memory_that_runs_out_when_sft_evaluates(
    export: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"export_dir={export}", f"model_dir={start}", f"run_dir={tmp_path / 'run'}", "dimensions=physical_shadow"]
    run = sft.build(load_config(SFTConfig, None, [*given, "answer_only=true", "steps=1", "device=cpu"]))
    monkeypatch.setattr(sft, "completion_logprobs", out_of_memory)
    with pytest.raises(OutOfMemory, match=r"while evaluating: lower evaluate_samples \(now 64\) or batch_samples"):
        sft.evaluate(run)


@pytest.mark.parametrize(
    ("began", "goes_on", "said"),
    [
        ("sft", ["grpo"], "holds a run of sft; choose another for grpo"),
        ("grpo", ["sft", "answer_only=true"], "holds a run of grpo; choose another for sft"),
        ("grpo", ["grpo", "dimensions=appearance_deformation"], "dimensions: "),
    ],
)
def test_a_run_directory_that_holds_something_else(
    began: str,
    goes_on: list[str],
    said: str,
    make_export: MakeExport,
    export: Path,
    start: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = (Dimension.PHYSICAL_SHADOW, Dimension.APPEARANCE_DEFORMATION)
    given = [f"export_dir={make_export(samples=4, dimensions=both, directory='both')}", f"model_dir={start}"]
    given += [f"run_dir={tmp_path / 'run'}", "device=cpu", "steps=1", "checkpoint_every=1", "report=false"]
    first = ["dimensions=physical_shadow", *(["prompts_per_step=2", "start_gate=off"] if began == "grpo" else [])]
    assert main([began, "--set", *given, *first]) == 0
    command, *settings = goes_on
    told = said_by(capsys, command, "--set", *given, "resume=true", *first[: command == began], *settings)
    assert said in told


def test_an_unknown_answer_grammar(make_export: MakeExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = make_export(samples=4)
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["prompt_versions"]["ask"] = "ask-9"
    (export / "manifest.json").write_text(json.dumps(manifest))
    model_directory(tmp_path / "new", "qwen3_vl")
    given = [f"export_dir={export}", f"model_dir={tmp_path / 'new'}", f"run_dir={tmp_path / 'run'}", "steps=1"]
    said = said_by(capsys, "sft", "--set", *given)
    assert said.endswith("manifest.json: its answers are written as prompt ask-9 asks, this trainer knows ask-1")


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_wrong_architecture(method: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (other / "model.safetensors").write_bytes(b"")
    given = [f"export_dir={export}", f"model_dir={other}", f"run_dir={tmp_path / 'run'}", "steps=1"]
    given += ["dimensions=physical_shadow", *(["answer_only=true"] if method == "sft" else [])]
    said = said_by(capsys, method, "--set", *given)
    assert "model_type 'llava' is not supported: expected qwen3_vl, qwen2_5_vl, internvl" in said


def test_no_room_for_a_checkpoint(export: Path, start: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing ends in the middle of the weights."""
    run_dir = tmp_path / "run"
    common = [
        "grpo", "--set", f"export_dir={export}", f"model_dir={start}", f"run_dir={run_dir}", "prompts_per_step=4",
        "max_completion_length=24", "dimensions=physical_shadow", "start_gate=off", "report=false", "device=cpu",
    ]  # fmt: skip
    assert main([*common, "steps=2", "checkpoint_every=1"]) == 0
    before = files(run_dir / "checkpoints")
    weights = (run_dir / "model" / "model.safetensors").stat().st_size
    command = [sys.executable, "-m", "trainer", *common, "steps=4", "checkpoint_every=1", "resume=true"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).resolve().parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, weights // 2)),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("trainer: ")]
    assert "step-00000003: could not be written (" in line
    assert line.endswith(f"; the last good checkpoint is {run_dir / 'checkpoints' / 'step-00000002'}")
    assert "Traceback" not in done.stderr
    assert files(run_dir / "checkpoints") == before
    # With room again it goes on from there.
    assert main([*common, "steps=4", "checkpoint_every=1", "resume=true"]) == 0
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
