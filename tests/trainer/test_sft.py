"""SFT learns what can be seen, writes a run directory that explains itself, and goes on after a stop."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.trainer.conftest import MakeExport, make_screener, model_directory, random_images, stock_inputs
from trainer import sft
from trainer.config import ConfigRefused
from trainer.contract import prompts
from trainer.contract.dimensions import Dimension, Polarity, Split
from trainer.contract.exports import ExportRefused, read_manifest
from trainer.data import encode_prompts
from trainer.model import Screener, load_screener, save_screener
from trainer.sft import PromptMix, SFTConfig
from trainer.vision_warmup import VisionWarmupConfig

ONE = (Dimension.PHYSICAL_SHADOW,)


def settings(export: Path, tmp_path: Path, **fields: object) -> SFTConfig:
    defaults: dict[str, object] = {
        "steps": 4,
        "batch_samples": 4,
        "learning_rate": 3e-3,
        "device": "cpu",
        "report": False,
    }
    given = {"export_dir": export, "model_dir": tmp_path / "new", "run_dir": tmp_path / "run"}
    return SFTConfig(**{**defaults, **given, **fields})  # type: ignore[arg-type]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_an_export_whose_answers_can_be_seen(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=64, dimensions=ONE)
    model_directory(tmp_path / "new", "qwen3_vl")
    config = settings(export, tmp_path, steps=90, batch_samples=16, permute=True, learning_rate=8e-3)
    sft.main(config)
    assert metrics(config.run_dir)[-1]["validation_written"] >= 0.9

    told = json.loads((config.run_dir / "config.json").read_text())
    assert told["command"] == "sft"
    assert told["learning_rate"] == 8e-3
    environment = json.loads((config.run_dir / "environment.json").read_text())
    assert environment["export_version"] == read_manifest(export).version_id
    assert {"torch", "transformers"} <= environment["packages"].keys()


def test_the_model_loads_in_plain_transformers_with_the_same_logits(any_screener: Screener, tmp_path: Path) -> None:
    save_screener(any_screener, tmp_path / "saved")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", local_files_only=True)
    ask = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4)
    images = [random_images(5)]
    ours = encode_prompts(any_screener, [ask], images)
    again = encode_prompts(load_screener(tmp_path / "saved", "cpu"), [ask], images)
    assert torch.equal(ours.input_ids, again.input_ids)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**stock_inputs(any_screener, ours)).logits,
            any_screener.model(**ours.model_inputs()).logits,
            atol=1e-5,
            rtol=1e-5,
        )


def test_weights_stored_in_bfloat16_compute_in_float32_on_a_cpu(tmp_path: Path) -> None:
    save_screener(make_screener(tmp_path / "model"), tmp_path / "saved", torch.bfloat16)
    assert load_screener(tmp_path / "saved", "cpu").model.dtype == torch.float32
    assert load_screener(tmp_path / "saved", "cpu", "bfloat16").model.dtype == torch.bfloat16


def test_a_resumed_run_takes_the_same_way(
    make_export: MakeExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = make_export(samples=8)
    model_directory(tmp_path / "new", "qwen3_vl")
    mix = PromptMix(ask=1, explain=1, resolve=1)
    options = {"steps": 6, "prompt_mix": mix, "permute": True, "checkpoint_every": 3, "keep_checkpoints": 2}
    whole = settings(export, tmp_path, run_dir=tmp_path / "whole", **options)
    sft.main(whole)

    broken = settings(export, tmp_path, run_dir=tmp_path / "broken", **options)
    run = sft.build(broken)
    signals = iter([False, False, False, True])
    take_step = sft.train_step

    def kill_later(run: sft.Run, batch: list[sft.Shown]) -> dict[str, float]:
        if next(signals):
            raise RuntimeError("killed")
        return take_step(run, batch)

    monkeypatch.setattr(sft, "train_step", kill_later)
    with pytest.raises(RuntimeError, match="killed"):
        sft.train(run)
    monkeypatch.undo()
    sft.main(settings(export, tmp_path, run_dir=tmp_path / "broken", resume=True, **options))

    def losses(run_dir: Path) -> list[tuple[float, float]]:
        return [(row["step"], row["loss"]) for row in metrics(run_dir) if "loss" in row]

    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    first, second = (load_screener(tmp_path / name / "model", "cpu").model for name in ("whole", "broken"))
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, second.state_dict()[name]), name


def test_a_stop_is_saved_between_steps(
    make_export: MakeExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = make_export(samples=8, dimensions=ONE)
    model_directory(tmp_path / "new", "qwen3_vl")
    config = settings(export, tmp_path, steps=50)
    run = sft.build(config)
    take_step = sft.train_step

    def interrupted(run: sft.Run, batch: list[sft.Shown]) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return take_step(run, batch)

    monkeypatch.setattr(sft, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sft.train(run)
    assert run.directory.latest_checkpoint() == config.run_dir / "checkpoints" / "step-00000001"
    assert not (config.run_dir / "model").exists()


def test_accumulation_gives_the_same_step(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=8)
    model_directory(tmp_path / "new", "qwen3_vl")
    for pieces in (1, 3):
        sft.main(settings(export, tmp_path, steps=2, accumulate=pieces, run_dir=tmp_path / f"run{pieces}"))
    whole, pieced = ([row["loss"] for row in metrics(tmp_path / f"run{n}") if "loss" in row] for n in (1, 3))
    assert pieced == pytest.approx(whole, abs=1e-4)


def test_answers_alone_are_taught_when_wanted(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=8, rationales=False)
    model_directory(tmp_path / "new", "qwen3_vl")
    with pytest.raises(ExportRefused, match="answer_only"):
        sft.build(settings(export, tmp_path))
    run = sft.build(settings(export, tmp_path, answer_only=True))
    targets = {example.target for shown in sft.next_batch(run) for example in shown.examples}
    assert all(target.startswith("<think></think><answer>") for target in targets)


def test_a_validation_split_that_cannot_be_used_stops_no_training(
    make_export: MakeExport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = make_export(samples=8, untold=(Split.VALIDATION,))
    model_directory(tmp_path / "new", "qwen3_vl")
    config = settings(export, tmp_path, steps=1)
    sft.main(config)
    assert "loss" in metrics(config.run_dir)[-1]
    said = [line for line in capsys.readouterr().err.splitlines() if "validation record" in line]
    assert len(said) == 1
    assert "sft: no evaluation:" in said[0]


def test_every_sample_is_shown_before_any_is_shown_again(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=8, dimensions=ONE)
    model_directory(tmp_path / "new", "qwen3_vl")
    run = sft.build(settings(export, tmp_path, batch_samples=2))
    seen = []
    for run.state.step in range(3):
        seen += [shown.examples[0].record.sample_id for shown in sft.next_batch(run)]
    assert sorted(seen) == sorted(sample[0].sample_id for sample in run.train_samples)


def test_a_used_run_directory_is_refused(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=4, dimensions=ONE)
    model_directory(tmp_path / "new", "qwen3_vl")
    sft.main(settings(export, tmp_path, steps=1))
    with pytest.raises(ConfigRefused, match="already holds a run"):
        sft.build(settings(export, tmp_path, steps=1))


def test_the_vision_tower_is_warmed_up_once(make_export: MakeExport, tmp_path: Path) -> None:
    export = make_export(samples=24, dimensions=ONE)
    model_directory(tmp_path / "new", "qwen3_vl")
    phase = VisionWarmupConfig(steps=60, batch_samples=8)
    config = settings(export, tmp_path, steps=1, vision_warmup=phase)
    run = sft.build(config)
    before = run.screener.model.model.visual.blocks[0].attn.qkv.weight.clone()
    language = run.screener.model.model.language_model.layers[0].mlp.up_proj.weight.clone()
    sft.warm_up_vision(run)
    assert not torch.equal(run.screener.model.model.visual.blocks[0].attn.qkv.weight, before)
    assert torch.equal(run.screener.model.model.language_model.layers[0].mlp.up_proj.weight, language)
    assert metrics(config.run_dir)[-1]["right"] > 0.9

    resumed = sft.build(settings(export, tmp_path, steps=1, vision_warmup=phase, resume=True))
    warmed = resumed.screener.model.model.visual.blocks[0].attn.qkv.weight.clone()
    sft.warm_up_vision(resumed)
    assert torch.equal(resumed.screener.model.model.visual.blocks[0].attn.qkv.weight, warmed)
