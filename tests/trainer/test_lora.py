"""Adapters: what is trained and what is not, what is saved; the start model is the same one with its adapter off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.trainer.conftest import (
    MakeExport,
    make_screener,
    model_directory,
    random_images,
    stock_inputs,
    teach_the_form,
)
from trainer import grpo, sft
from trainer.config import ConfigRefused, LoraConfig, load_config
from trainer.contract import prompts
from trainer.contract.dimensions import Dimension, Polarity
from trainer.data import encode_prompts
from trainer.grpo import GRPOConfig
from trainer.lora import adapter_disabled, add_adapter
from trainer.model import Screener, load_screener, save_screener
from trainer.optimization import set_learning_rate
from trainer.sft import SFTConfig

SHADOW = Dimension.PHYSICAL_SHADOW


def stirred(screener: Screener) -> Screener:
    """With an adapter that changes what is computed."""
    add_adapter(screener.model, LoraConfig(r=4, alpha=8.0))
    with torch.no_grad():
        for parameter in screener.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    return screener


def logits(screener: Screener, model: Any = None) -> torch.Tensor:
    ask = prompts.ask(SHADOW, Polarity.ACCEPTABLE, 4)
    batch = encode_prompts(screener, [ask], [random_images(5)])
    with torch.no_grad():
        if model is None:
            found: torch.Tensor = screener.model(**batch.model_inputs()).logits
        else:
            found = model(**stock_inputs(screener, batch)).logits
    return found


@pytest.fixture
def start(make_export: MakeExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes readable answers, made once."""
    directory = tmp_path_factory.getbasetemp() / "lora-start"
    export = make_export(samples=16)
    if not directory.exists():
        screener = make_screener(tmp_path_factory.mktemp("new"))
        teach_the_form(screener, export, (SHADOW,))
        save_screener(screener, directory)
    return directory


def test_a_new_adapter_changes_nothing_and_can_be_switched_off(any_screener: Screener) -> None:
    before = logits(any_screener)
    stirred(any_screener)
    assert float((logits(any_screener) - before).abs().max()) > 0.1
    with adapter_disabled(any_screener.model):
        assert torch.equal(logits(any_screener), before)
    assert all("lora_" in name for name, p in any_screener.model.named_parameters() if p.requires_grad)
    assert not any(
        "visual" in name or "vision" in name for name, _ in any_screener.model.named_parameters() if "lora_" in name
    )


def test_the_merged_model_is_a_plain_directory(any_screener: Screener, tmp_path: Path) -> None:
    stirred(any_screener)
    save_screener(any_screener, tmp_path / "merged")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", local_files_only=True)
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    torch.testing.assert_close(logits(any_screener, plain), logits(any_screener), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft, when it wraps a model
def test_grpo_trains_an_adapter_beside_its_reference(start: Path, tmp_path: Path) -> None:
    settings = [f"export_dir={tmp_path / 'export'}", f"model_dir={start}", "device=cpu", "dimensions=physical_shadow"]
    settings += ["prompts_per_step=4", "max_completion_length=16", "learning_rate=5e-3", "beta=0.05", "lora.r=4"]
    settings += ["gradient_checkpointing=true", "steps=4", "checkpoint_every=2"]
    run_dir = tmp_path / "run"
    grpo.main(load_config(GRPOConfig, None, [*settings, f"run_dir={run_dir}"]))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kl = [row["kl"] for row in rows if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[-1] > 0

    trained, begun = load_screener(run_dir / "model", "cpu"), load_screener(start, "cpu")
    ours, before = trained.model.state_dict(), begun.model.state_dict()
    changed = {name for name in before if not torch.equal(ours[name], before[name])}
    assert changed
    assert all("language_model.layers" in name and "_proj.weight" in name for name in changed)

    # What peft reads from the adapter beside the start model is the merged model.
    wrapped = peft.PeftModel.from_pretrained(begun.model, run_dir / "adapter")
    torch.testing.assert_close(logits(trained), logits(trained, wrapped), atol=1e-4, rtol=1e-4)
    told = json.loads((run_dir / "adapter" / "adapter_config.json").read_text())
    assert (told["r"], told["base_model_name_or_path"]) == (4, str(start))
    kept = run_dir / "checkpoints" / "step-00000004"
    assert (kept / "adapter" / "adapter_model.safetensors").exists()
    assert not (kept / "model").exists()


def test_a_resumed_adapter_takes_the_same_way(start: Path, tmp_path: Path) -> None:
    settings = [f"export_dir={tmp_path / 'export'}", f"model_dir={start}", "device=cpu", "lora.r=2", "lora.dropout=0.1"]
    settings += ["steps=4", "batch_samples=4", "checkpoint_every=2", "keep_checkpoints=9", "learning_rate=5e-3"]
    whole = [*settings, f"run_dir={tmp_path / 'whole'}"]
    sft.main(load_config(SFTConfig, None, whole))
    parts = [*settings, f"run_dir={tmp_path / 'parts'}"]
    run = sft.build(load_config(SFTConfig, None, parts))
    for _ in range(2):
        set_learning_rate(run.optimizer, run.state.step / 4, run.config)
        sft.train_step(run, sft.next_batch(run))
        run.state.step += 1
    run.directory.save_checkpoint(run.screener, run.optimizer, run.state)
    sft.main(load_config(SFTConfig, None, [*parts, "resume=true"]))
    first, second = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "parts")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_adapted_is_refused(start: Path, tmp_path: Path) -> None:
    screener = make_screener(tmp_path / "other")
    with pytest.raises(ConfigRefused, match=r"lora.target_modules: attn_qkv is no linear layer.*q_proj"):
        add_adapter(screener.model, LoraConfig(r=2, target_modules=("q_proj", "attn_qkv")))
    settings = [f"export_dir={tmp_path / 'export'}", "device=cpu", "lora.r=2", "steps=1"]
    model_directory(tmp_path / "empty", "qwen3_vl")
    with pytest.raises(ConfigRefused, match="has no weights to train an adapter beside"):
        sft.build(
            load_config(SFTConfig, None, [*settings, f"model_dir={tmp_path / 'empty'}", f"run_dir={tmp_path / 'a'}"])
        )
    with pytest.raises(ConfigRefused, match=r"lora.r"):
        sft.build(
            load_config(SFTConfig, None, [*settings, f"model_dir={start}", f"run_dir={tmp_path / 'b'}", "fsdp=true"])
        )
