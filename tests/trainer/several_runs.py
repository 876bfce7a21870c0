"""Training runs one after the other in one process of several: ``python -m tests.trainer.several_runs RUNS``.

RUNS is JSON: lists of a command (sft, grpo) and its settings. Started by test_distributed.py.
"""

from __future__ import annotations

import json
import sys

from trainer import grpo, sft
from trainer.config import load_config
from trainer.distributed import joined_ranks
from trainer.grpo import GRPOConfig
from trainer.sft import SFTConfig


def main() -> None:
    """Join the other processes once, then run by run."""
    runs = json.loads(sys.argv[1])
    with joined_ranks(load_config(SFTConfig, None, runs[0][1:])) as ranks:
        for command, *settings in runs:
            if command == "sft":
                learning = sft.build(load_config(SFTConfig, None, settings), ranks)
                sft.train(learning)
                sft.save(learning)
            else:
                rewarded = grpo.build(load_config(GRPOConfig, None, settings), ranks)
                grpo.train(rewarded)
                grpo.save(rewarded)


if __name__ == "__main__":
    main()
