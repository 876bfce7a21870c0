"""The ladder of arms: equal rollouts, nothing done twice, and figures that are what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.conftest import SHADOW, MakeExport
from trainer import ablate, grpo, sft
from trainer.ablate import GRPO_ARMS, AblateConfig, exchange_images, grpo_settings, looks_at_images
from trainer.config import Refused
from trainer.contract.dimensions import DIMENSIONS, Polarity, Split
from trainer.contract.records import Record
from trainer.data import read_split
from trainer.predictions import Prediction, predict

SFT = """
steps = 2
batch_samples = 2
dimensions = ["physical_shadow"]
device = "cpu"
answer_only = true
report = false
"""
GRPO = """
steps = 4
prompts_per_step = 4
num_generations = 4
max_completion_length = 24
dimensions = ["physical_shadow"]
device = "cpu"
start_gate = "off"
evaluate_records = 0
report = false

[mining]
pass_generations = 2
"""


def settings(export: Path, start: Path, tmp_path: Path, toml: str = GRPO) -> AblateConfig:
    (tmp_path / "sft.toml").write_text(SFT)
    (tmp_path / "grpo.toml").write_text(toml)
    return AblateConfig(
        export_dir=export,
        model_dir=start,
        run_dir=tmp_path / "ablation",
        sft_config=tmp_path / "sft.toml",
        grpo_config=tmp_path / "grpo.toml",
        seeds=(0, 1),
        split=Split.VALIDATION,
        resamples=200,
        publish_dir=tmp_path / "docs",
    )


def test_it_runs_every_arm_once_and_at_equal_rollouts(
    export: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(export, start, tmp_path)
    ablate.main(config)
    result = json.loads((tmp_path / "docs" / "ablation.json").read_text())
    rollouts = {name: arm["rollouts"] for name, arm in result["arms"].items()}
    # 12 records in a pass of 2 completions each: two steps less of 4 x 4.
    assert rollouts == {"base": 0, "sft": 0, "grpo": 64, "dpa": 64, "hcm": 56}
    assert {name: arm["steps"] for name, arm in result["arms"].items()}["hcm"] == 2
    assert result["records_per_seed"] == 4
    for row in result["differences"]:
        later, earlier = (result["arms"][row[side]]["exact"]["overall"]["value"] for side in ("later", "earlier"))
        assert row["exact"]["overall"]["value"] == pytest.approx(later - earlier)
    assert (tmp_path / "docs" / "ablation.png").stat().st_size > 10_000
    table = (tmp_path / "docs" / "ablation.md").read_text()
    assert "| HCM-GRPO: DPA reward and hard cases |" in table
    assert table in capsys.readouterr().out

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(sft, "main", train)
    monkeypatch.setattr(grpo, "main", train)
    ablate.main(config)
    assert (config.run_dir / "ablation.md").read_text() == table


def test_other_settings_do_not_go_on_in_its_directory(export: Path, start: Path, tmp_path: Path) -> None:
    ablate.check(settings(export, start, tmp_path))
    with pytest.raises(Refused, match=r"was begun with other settings \(grpo settings\)"):
        ablate.check(settings(export, start, tmp_path, toml=GRPO.replace("steps = 4", "steps = 5")))


def test_arms_are_compared_at_steps_not_minutes(export: Path, start: Path, tmp_path: Path) -> None:
    config = settings(export, start, tmp_path, toml=GRPO.replace("steps = 4", "minutes = 1"))
    with pytest.raises(Refused, match="equal rollouts, not minutes"):
        grpo_settings(config, 0, GRPO_ARMS[0])


def test_a_pass_that_costs_everything_is_refused(export: Path, start: Path, tmp_path: Path) -> None:
    config = settings(export, start, tmp_path, toml=GRPO.replace("pass_generations = 2", "pass_generations = 6"))
    with pytest.raises(Refused, match="the pass costs 5 of 4 steps"):
        grpo_settings(config, 0, GRPO_ARMS[-1])


def records_of(make_export: MakeExport, samples: int) -> list[Record]:
    return read_split(make_export(samples=samples), Split.TRAIN, SHADOW, Polarity.ACCEPTABLE)


def test_images_are_exchanged_within_a_dimension_and_answers_stay(make_export: MakeExport) -> None:
    records = read_split(make_export(samples=12), Split.TRAIN, DIMENSIONS, Polarity.ACCEPTABLE)
    exchanged = exchange_images(records, seed=1)
    assert [(one.id, one.answer) for one in exchanged] == [(one.id, one.answer) for one in records]
    for dimension in DIMENSIONS:
        pairs = [(a, b) for a, b in zip(records, exchanged, strict=True) if a.dimension is dimension]
        assert all(before.images != after.images for before, after in pairs)
        before, after = ({one[side].images for one in pairs} for side in (0, 1))
        assert before == after


def answering(records: list[Record], shown: list[Record], seen: dict[str, str]) -> list[Prediction]:
    """What somebody says who reads the answer off the original's image."""
    return [predict(one, seen[other.original.sha256]) for one, other in zip(records, shown, strict=True)]


def test_who_looks_at_images_falls_to_chance_and_who_knows_the_records_does_not(make_export: MakeExport) -> None:
    records = records_of(make_export, 160)
    shown = exchange_images(records, seed=3)
    said = {
        one.original.sha256: f"<think></think><answer>{','.join(sorted(one.answer)) or 'none'}</answer>"
        for one in records
    }
    plain = answering(records, records, said)
    looking = looks_at_images([answering(records, shown, said)], [plain], resamples=400)
    assert looking["exact"] == 1.0
    assert looking["inside"]
    by_heart = looks_at_images([plain], [plain], resamples=400)
    assert not by_heart["inside"]
    assert by_heart["chance"] == pytest.approx(looking["chance"])
    counts = np.unique([sorted(one.answer).__str__() for one in records], return_counts=True)[1]
    assert looking["chance"] == pytest.approx(float((counts**2).sum()) / len(records) ** 2)
