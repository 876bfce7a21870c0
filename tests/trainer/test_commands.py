"""What the commands say about themselves: every setting in --help, what a run would do, examples that parse."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.__main__ import COMMANDS, _of_positional, main
from trainer.config import load_config
from trainer.grpo import GRPOConfig
from trainer.model import load_screener
from trainer.settings_help import settings_of, settings_text
from trainer.sft import SFTConfig

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
KINDS = {name: getattr(importlib.import_module(f"trainer.{name}"), kind) for name, (kind, _) in COMMANDS.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_says_what_it_is(command: str) -> None:
    settings = list(settings_of(KINDS[command]))
    assert [one.key for one in settings if not one.about] == []
    assert len({one.key for one in settings}) == len(settings) > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m trainer {command}" in shown
    for one in settings_of(KINDS[command]):
        assert f"  {one.key}  (" in shown


def test_a_setting_in_help_has_its_type_default_and_word() -> None:
    text = settings_text(GRPOConfig)
    assert "  export_dir  (a path; needed)\n      The dataset version to read" in text
    assert "  epsilon  (a number; default 0.2)\n      The ratio is clipped at 1 − epsilon (TRL's default)." in text
    assert "  reward.dpa  (a number; default 0.9)" in text
    assert "  models[].endpoint.base_url  (text; needed)" in settings_text(KINDS["evaluate"])


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown and about.split(",")[0] in shown for name, (_, about) in COMMANDS.items())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_is_read_as_it_stands(path: Path) -> None:
    command = "evaluate" if path.stem == "compare" else path.stem.rpartition("_")[2]
    config = load_config(KINDS[command], path, [])
    comments = [line for line in path.read_text().splitlines() if "#" in line]
    assert len(comments) >= 5
    assert config.export_dir == Path("export")


def documented(path: Path) -> list[str]:
    return [
        line[1:].strip() for line in path.read_text().splitlines() if re.match(r"#\s+(?:python -m|torchrun) ", line)
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_commands_in_an_example_run(
    path: Path, make_export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"export_dir={make_export(samples=2)}", "model_dir=fixtures/base_screener", f"run_dir={tmp_path / 'run'}"]
    for line in documented(path):
        _, _, given = line.partition(" -m trainer ")
        words = [word for word in shlex.split(given, comments=True) if not word.endswith("…") and word != "--dry-run"]
        command, rest = words[0], words[1:]
        if command == "evaluate":
            named = rest[: rest.index("--config")]
            config = load_config(KINDS[command], path, _of_positional(command, named))
            assert len(config.subjects()) == 4 + len(named)
        else:
            wanted = [word for word in rest if word != "--set"]
            assert main([command, *wanted, "--dry-run", "--set", *here]) == 0
            assert "memory: about" in capsys.readouterr().out


def test_there_is_an_example_for_every_machine() -> None:
    machines = ("laptop", "gpu_24gb", "gpu_80gb", "gpus_8")
    wanted = {f"{machine}_{method}" for machine in machines for method in ("sft", "grpo")} | {"compare"}
    assert {path.stem for path in CONFIGS.glob("*.toml")} == wanted
    assert {path.stem for path in CONFIGS.glob("*.toml") if documented(path)} >= {
        "compare",
        "laptop_sft",
        "gpus_8_grpo",
    }


def test_a_dry_run_tells_settings_and_counts_and_writes_nothing(
    make_export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = make_export(samples=8)
    given = [f"export_dir={export}", "model_dir=fixtures/base_screener", f"run_dir={tmp_path / 'run'}"]
    more = ["steps=3", "mining.replay_share=0.5"]
    assert main(["grpo", "--dry-run", "--set", *given, *more, "image_max_side=none"]) == 0
    shown = capsys.readouterr().out
    settings = tomllib.loads(shown)
    assert (settings["steps"], settings["mining"]["replay_share"]) == (3, 0.5)
    assert "# image_max_side: not set" in shown
    assert "# train: 24 records of 6 samples, 24 with a rationale; appearance_deformation 6, " in shown
    assert "# test: no records in these dimensions" in shown
    assert "# 3 steps draw 24 records (1.00 times the train split) and write 192 completions" in shown
    assert "MB of weights" in shown
    # Weights, gradients and two moments of 1.5 million parameters in 32 bits.
    parameters = sum(weight.numel() for weight in load_screener(Path("fixtures/base_screener")).model.parameters())
    assert f"# memory: about {round(16 * parameters / 2**20)} MB (weights {round(4 * parameters / 2**20)} MB, " in shown
    assert not (tmp_path / "run").exists()
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert load_config(GRPOConfig, again, []) == load_config(GRPOConfig, None, [*given, *more])


def test_a_dry_run_counts_what_is_trained_alone(
    make_export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"export_dir={make_export(samples=2)}", "model_dir=fixtures/base_screener", f"run_dir={tmp_path / 'run'}"]
    told = []
    for more in ([], ["vision_lr=0"], ["lora.r=4"], ["beta=0.04"]):
        assert main(["grpo", "--dry-run", "--set", *given, "steps=3", *more]) == 0
        shown = capsys.readouterr().out
        told.append(float(re.findall(r"memory: about (\d+) MB", shown)[0]))
    whole, frozen, adapted, held = told
    assert adapted < frozen < whole < held
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert main(["grpo", "--dry-run", "--set", *given, "steps=3", f"model_dir={tmp_path}"]) == 0
    assert "this run would be refused: " in capsys.readouterr().out


def test_a_dry_run_of_sft_counts_epochs(
    make_export: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make_export(samples=8, rationales=False)
    given = [f"export_dir={bare}", f"model_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    assert main(["sft", "--dry-run", "--set", *given, "steps=3", "batch_samples=4", "answer_only=true"]) == 0
    assert "# 3 steps read 2.00 times the train split" in capsys.readouterr().out
    assert main(["sft", "--dry-run", "--set", *given, "steps=3"]) == 0
    assert "steps read" not in capsys.readouterr().out, "without a rationale nothing is learnt from"
    shutil.rmtree(bare)
    make_export(samples=8)
    assert main(["sft", "--dry-run", "--set", *given, "steps=3", "batch_samples=4"]) == 0
    shown = capsys.readouterr().out
    assert "# 3 steps read 2.00 times the train split" in shown
    assert "holds no config.json that can be read" in shown
    assert load_config(SFTConfig, None, [*given, "steps=1"]).steps == 1
    assert main(["sft", "--dry-run", "--set", *given, "export_dir=nowhere", "steps=3"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_every_process_says_what_it_has_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, beginning in (("0", "trainer: "), ("3", "[process 3] trainer: ")):
        monkeypatch.setenv("RANK", rank)
        assert main(["report", "--set", f"run_dir={tmp_path}"]) == 1
        assert capsys.readouterr().err.startswith(f"{beginning}run_dir: {tmp_path} holds no run")


def test_a_directory_after_the_command_is_what_it_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == 1
    assert f"{tmp_path / 'config.json'} is missing" in capsys.readouterr().err
    assert main(["evaluate", "a/x", "b/x", "--set", f"export_dir={tmp_path}", f"run_dir={tmp_path / 'r'}"]) == 1
    assert "two models are called 'x'" in capsys.readouterr().err
