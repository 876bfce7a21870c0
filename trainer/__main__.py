"""``python -m trainer sft|grpo|evaluate|ablate|report|serve [RUN ...] --config FILE [--set key=value ...]``.

`evaluate` and `serve` take the models they are about as arguments, too; ``COMMAND --help`` lists every setting, and
``sft|grpo --dry-run`` says what a run would do. Each command is a module with a settings dataclass and
``main(config)``; only the one asked for is imported. A user's mistake is one line on stderr and exit code 1, wrong
usage exits with 2, a stop by Ctrl-C or SIGTERM with 130.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from pathlib import Path

from trainer.config import Refused, load_config
from trainer.contract.exports import ExportRefused
from trainer.contract.records import RecordRefused

COMMANDS = {
    "sft": ("SFTConfig", "teach a model to reason and answer from records"),
    "grpo": ("GRPOConfig", "improve a model by reward on its own answers, hard cases more often"),
    "evaluate": ("EvaluateConfig", "score a model or an endpoint on records"),
    "ablate": ("AblateConfig", "what each stage of training is worth, over several seeds"),
    "report": ("ReportConfig", "plots and one page about a run"),
    "serve": ("ServeConfig", "answer over the OpenAI protocol"),
}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


POSITIONAL = {"evaluate": ("[NAME=]RUN", True), "serve": ("RUN", False)}
"""What stands after a command, a directory of a model or a run, and whether there may be several."""
DRY = ("sft", "grpo")


class _Help(argparse.Action):
    """--help with every setting, for which the command's module has to be imported."""

    def __init__(self, option_strings: list[str], dest: str, settings: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)
        self.settings = settings

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.print_help()
        command = parser.prog.split()[-1]
        try:
            module = importlib.import_module(f"trainer.{command}")
        except ModuleNotFoundError as error:
            print(f"\n{error.name} is not installed: the settings stand in trainer/{command}.py")
        else:
            listed = importlib.import_module("trainer.settings_help").settings_text(getattr(module, self.settings))
            print(f"\nsettings, in the file or after --set (of a group: group.key=value):\n{listed}")
        parser.exit()


def _of_positional(command: str, runs: str | list[str]) -> list[str]:
    """The override that names on the command line mean: one directory, or several to compare."""
    if not runs:
        return []
    if isinstance(runs, str):
        return [f"model_dir={runs}"]
    return [f"runs={json.dumps(runs, ensure_ascii=False)}"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train, evaluate and serve a screener.",
        epilog="COMMAND --help lists every setting of a command. Commented examples: trainer/configs/.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (settings, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=f"{about}.", add_help=False)
        command.add_argument("-h", "--help", action=_Help, settings=settings, help="this, and every setting")
        if name in POSITIONAL:
            metavar, many = POSITIONAL[name]
            command.add_argument("runs", nargs="*" if many else "?", default=[], metavar=metavar)
        command.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
        command.add_argument(
            "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="wins over the file"
        )
        if name in DRY:
            command.add_argument(
                "--dry-run", action="store_true", help="print the resolved settings and the export's counts, and stop"
            )
    given = parser.parse_args(arguments)
    try:
        module = importlib.import_module(f"trainer.{given.command}")
    except ModuleNotFoundError as error:
        print(f"trainer: {error.name} is not installed: {given.command} needs the trainer's extra", file=sys.stderr)
        return 1
    try:
        overrides = [*_of_positional(given.command, getattr(given, "runs", [])), *given.set]
        config = load_config(getattr(module, COMMANDS[given.command][0]), given.config, overrides)
        if getattr(given, "dry_run", False):
            print(importlib.import_module("trainer.dry_run").describe(given.command, config))
        else:
            module.main(config)
    except (Refused, ExportRefused, RecordRefused) as error:
        _say(f"trainer: {error}")
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _say(f"trainer: {error.filename or 'writing'}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        _say("trainer: stopped")
        return 130
    return 0


def _say(line: str) -> None:
    # Mostly every process that torchrun started says the same; what only one has met, an image that is gone say, must
    # not be lost.
    rank = os.environ.get("RANK", "0")
    print(line if rank == "0" else f"[process {rank}] {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
