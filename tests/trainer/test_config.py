"""A wrong setting is named in one line, with what was expected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.config import ConfigRefused, load_config, settings_json
from trainer.contract.dimensions import Dimension, Polarity
from trainer.sft import SFTConfig

NEEDED = 'export_dir = "e"\nmodel_dir = "m"\nrun_dir = "r"\nsteps = 5\n'


def load(tmp_path: Path, text: str, *overrides: str) -> SFTConfig:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return load_config(SFTConfig, file, list(overrides))


def test_file_and_overrides_make_a_config(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        NEEDED + '# a comment\ndimensions = ["physical_shadow"]\n[prompt_mix]\nexplain = 1\n',
        "learning_rate=1e-3",
        "polarity=flawed",
        "prompt_mix.ask=0",
        "image_max_side=none",
        "run_dir=17",
        "vision_warmup.steps=3",
    )
    assert config.dimensions == (Dimension.PHYSICAL_SHADOW,)
    assert config.learning_rate == 1e-3
    assert config.polarity is Polarity.FLAWED
    assert (config.prompt_mix.ask, config.prompt_mix.explain) == (0, 1)
    assert config.run_dir == Path("17")
    assert config.vision_warmup.steps == 3
    assert settings_json(config)["polarity"] == "flawed"


@pytest.mark.parametrize(
    ("text", "override", "said"),
    [
        (NEEDED + "learning_rat = 1", "", "there is no setting learning_rat; did you mean learning_rate?"),
        (NEEDED, "prompt_mix.aks=1", "did you mean prompt_mix.ask?"),
        ('model_dir = "m"\nrun_dir = "r"', "", "setting export_dir is missing: expected a path"),
        (NEEDED, "steps=many", "steps: expected a whole number, found 'many'"),
        (NEEDED, "steps=1.5", "steps: expected a whole number"),
        (NEEDED, "permute=1", "permute: expected true or false"),
        (NEEDED, "device=gpu", "device: expected one of auto, cpu, cuda, found 'gpu'"),
        (NEEDED, "dimensions=shadow", "dimensions: expected one of appearance_deformation"),
        (NEEDED, "polarity=good", "polarity: expected one of acceptable, flawed"),
        (NEEDED, "prompt_mix=3", "prompt_mix: expected a group of settings"),
        (NEEDED, "minutes=2", "set either steps or minutes"),
        (NEEDED, "accumulate=99", "accumulate: expected 1 to batch_samples"),
        (NEEDED, "steps", "expected key=value"),
        ("steps = = 1", "", "not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, override: str, said: str) -> None:
    with pytest.raises(ConfigRefused, match=r"run\.toml|--set") as refused:
        load(tmp_path, text, *([override] if override else []))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["export_dir=nowhere"], "nowhere: no such directory"),
        (["stepz=1"], "did you mean steps?"),
    ],
)
def test_the_command_says_one_line_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(NEEDED.replace('"r"', f'"{tmp_path / "run"}"'))
    code = main(["sft", "--config", str(file), *(part for one in overrides for part in ("--set", one))])
    shown = capsys.readouterr().err
    assert code == 1
    assert shown.startswith("trainer: ")
    assert said in shown
    assert shown.count("\n") == 1


def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2
    assert "sft" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["seeds=5,6,7", "seeds=[5, 6, 7]", "seeds=5, 6,7"])
def test_a_list_of_numbers_is_typed_as_one_says_it(given: str) -> None:
    @dataclass(frozen=True)
    class Seeded:
        seeds: tuple[int, ...] = ()

    assert load_config(Seeded, None, [given]).seeds == (5, 6, 7)
    assert load_config(Seeded, None, ["seeds=5"]).seeds == (5,)
    with pytest.raises(ConfigRefused, match="seeds: expected a whole number, found 'x'"):
        load_config(Seeded, None, ["seeds=5,x"])
