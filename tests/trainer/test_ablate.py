"""The ladder of arms: equal rollouts, nothing done twice, and figures that are what they are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.conftest import SHADOW, MakeExport
from trainer import ablate, grpo, sft
from trainer.ablate import GRPO_ARMS, AblateConfig, exchange_images, grpo_settings, looks_at_images
from trainer.config import Refused
from trainer.contract.answers import format_completion
from trainer.contract.dimensions import DIMENSIONS, Polarity, Split
from trainer.contract.exports import read_manifest, read_records, write_export
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


def graded(export: Path, tmp_path: Path) -> Path:
    """The same export with the levels of drawn defects: of every second sample one is faint."""
    levels = {0: [{SHADOW[0].value: 0.4}, {}], 1: [{SHADOW[0].value: 0.9}, {}]}
    records = list(read_records(export))
    write_export(
        tmp_path / "graded",
        records=[replace(one, meta={"levels": levels[int(one.sample_id[1:]) // 4 % 2]}) for one in records],
        polarity=Polarity.ACCEPTABLE,
        prompt_versions=read_manifest(export).prompt_versions,
        image_source=lambda path: export / path,
        about={},
    )
    return tmp_path / "graded"


def test_it_runs_every_arm_once_and_at_equal_rollouts(
    export: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(graded(export, tmp_path), start, tmp_path)
    ablate.main(config)
    result = json.loads((tmp_path / "docs" / "ablation.json").read_text())
    rollouts = {name: arm["rollouts"] for name, arm in result["arms"].items()}
    # 12 records in a pass of 2 completions each: two steps less of 4 x 4.
    assert rollouts == {"base": 0, "sft": 0, "grpo": 64, "dpa": 64, "hcm": 56}
    assert {name: arm["steps"] for name, arm in result["arms"].items()}["hcm"] == 2
    assert result["records_per_seed"] == [4, 4]
    assert result["hard"] == {"rule": "a faint defect", "records": 4}
    for row in result["differences"]:
        later, earlier = (result["arms"][row[side]]["exact"]["overall"]["value"] for side in ("later", "earlier"))
        assert row["exact"]["overall"]["value"] == pytest.approx(later - earlier)
    assert (tmp_path / "docs" / "ablation.png").stat().st_size > 10_000
    table = (tmp_path / "docs" / "ablation.md").read_text()
    assert "| HCM-GRPO: DPA reward and hard cases |" in table
    assert "| | exact match | physical | easy | hard | DPA |" in table
    assert "Of all records 4 are hard (a faint defect)." in table
    assert f"`python -m trainer ablate --set export_dir={config.export_dir} " in table
    assert " seeds=0,1 split=validation publish_dir=" in table
    assert result["time"]["parts"] == result["time"]["of"] == 20
    trained = sum(arm["seconds"] for arm in result["arms"].values()) * 2
    assert trained < result["time"]["seconds"] + 1
    assert table in capsys.readouterr().out

    for path in config.run_dir.glob("seed-*/evaluate-hcm/predictions.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        easy = [row | {"answer": row["gold"]} if int(row["sample_id"][1:]) // 4 % 2 else row for row in rows]
        path.with_name("now.jsonl").write_text("".join(json.dumps(row) + "\n" for row in easy))
        path.with_name("now.jsonl").replace(path)
    turned = ablate.compare(config)
    exact = {name: turned["arms"]["hcm"]["exact"][name]["value"] for name in ("overall", "easy", "hard")}
    assert exact["easy"] == 1.0 > exact["hard"] == result["arms"]["hcm"]["exact"]["hard"]["value"]
    assert exact["overall"] == pytest.approx((1 + exact["hard"]) / 2)
    gain = turned["differences"][-1]["exact"]
    assert gain["easy"]["value"] == pytest.approx(1 - result["arms"]["grpo"]["exact"]["easy"]["value"])

    (config.run_dir / "ablation.md").unlink()

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(sft, "main", train)
    monkeypatch.setattr(grpo, "main", train)
    ablate.main(config)
    assert table.splitlines()[-1] == (config.run_dir / "ablation.md").read_text().splitlines()[-1], (
        "no time passes twice"
    )


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
        assert any(before.images != after.images for before, after in pairs)
        before, after = ({one[side].images for one in pairs} for side in (0, 1))
        assert before == after


def answering(records: list[Record], shown: list[Record], seen: dict[str, str]) -> list[Prediction]:
    """What somebody says who reads the answer off the original's image."""
    return [predict(one, seen[other.original.sha256]) for one, other in zip(records, shown, strict=True)]


def answers_in(records: list[Record]) -> dict[str, str]:
    return {one.original.sha256: format_completion("seen", one.answer) for one in records}


def test_chance_is_what_dealing_images_out_gives_on_average(make_export: MakeExport) -> None:
    records = records_of(make_export, 8)
    said = answers_in(records)
    exact, chances = [], []
    for seed in range(400):
        dealt = answering(records, exchange_images(records, seed), said)
        found = looks_at_images([dealt], [dealt], resamples=1)
        exact.append(found["exchanged"]["value"])
        chances.append(found["chance"])
    assert max(chances) == pytest.approx(min(chances))
    assert np.mean(exact) == pytest.approx(chances[0], abs=3 * float(np.std(exact)) / 20)


def test_an_unlucky_deal_below_chance_is_no_sign_of_not_looking(make_export: MakeExport) -> None:
    records = records_of(make_export, 8)
    answers = [frozenset("A")] * 3 + [frozenset("B")] * 3
    records = [replace(one, answer=answer) for one, answer in zip(records, answers, strict=True)]
    turned = answering(records, records[3:] + records[:3], answers_in(records))
    found = looks_at_images([turned], [turned], resamples=100)
    assert (found["exchanged"]["high"], found["chance"]) == (0.0, 0.5)
    assert found["falls_to_chance"]


def test_who_looks_at_images_falls_to_chance_and_who_knows_the_records_does_not(make_export: MakeExport) -> None:
    records = records_of(make_export, 160)
    shown = exchange_images(records, seed=3)
    said = answers_in(records)
    plain = answering(records, records, said)
    looking = looks_at_images([answering(records, shown, said)], [plain], resamples=400)
    assert looking["exact"] == 1.0
    assert looking["falls_to_chance"]
    by_heart = looks_at_images([plain], [plain], resamples=400)
    assert not by_heart["falls_to_chance"]
    assert by_heart["chance"] == pytest.approx(looking["chance"])
    counts = np.unique([sorted(one.answer).__str__() for one in records], return_counts=True)[1]
    assert looking["chance"] == pytest.approx(float((counts**2).sum()) / len(records) ** 2)
