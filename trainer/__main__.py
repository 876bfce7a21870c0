"""``python -m trainer sft|grpo|evaluate|ablate|report|serve --config FILE [--set key=value ...]``.

Each command is a module with a settings dataclass and ``main(config)``; only the one asked for is imported. A user's
mistake is one line on stderr and exit code 1, wrong usage exits with 2, a stop by Ctrl-C or SIGTERM with 130.
"""

from __future__ import annotations

import argparse
import errno
import importlib
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


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train, evaluate and serve a screener.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (settings, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=f"{about}. Settings: {settings} in {name}.py.")
        command.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
        command.add_argument(
            "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="wins over the file"
        )
    given = parser.parse_args(arguments)
    try:
        module = importlib.import_module(f"trainer.{given.command}")
    except ModuleNotFoundError as error:
        print(f"trainer: {error.name} is not installed: {given.command} needs the trainer's extra", file=sys.stderr)
        return 1
    try:
        module.main(load_config(getattr(module, COMMANDS[given.command][0]), given.config, given.set))
    except (Refused, ExportRefused, RecordRefused) as error:
        _say(f"trainer: {error}")
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"trainer: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("trainer: stopped")
        return 130
    return 0


def _say(line: str) -> None:
    # What is wrong is wrong in every process that torchrun started: one says it.
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
