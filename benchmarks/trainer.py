"""What sharing the prompt saves: log-probabilities and gradients of a group behind one prompt, packed and repeated.

The numbers of both sides are equal (tests say so). First one group's log-probabilities, then whole GRPO steps beside
TRL's GRPOTrainer and what either keeps for its backward pass (grpo_step.py), then the step's growth with the group.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measurement import Measurement, in_turns

_START = Path(__file__).resolve().parent.parent / "fixtures" / "local_screener_start"
_GENERATIONS, _COMPLETION = 8, 48

if TYPE_CHECKING:
    from benchmarks.grpo_step import Case


def measure(*, scale: bool) -> Iterator[Measurement]:
    """Everything at its published size; there is no other."""
    yield from _group_logprobs()
    yield from _grpo_steps()


def _group_logprobs() -> Iterator[Measurement]:
    """Seconds of forward and backward for one group of eight."""
    import torch

    from trainer.contract import prompts
    from trainer.contract.dimensions import Dimension, Polarity
    from trainer.data import encode_prompts
    from trainer.images import pixel_inputs
    from trainer.model import new_screener
    from trainer.shared_prefix import Branch, PrefixGroups, completion_logprobs, repeated_prompt_logprobs

    torch.manual_seed(0)
    prompt = prompts.ask(Dimension.PHYSICAL_SHADOW, Polarity.ACCEPTABLE, 4)
    screener = new_screener(_START, [prompt.question], seed=0, device="cpu")
    images = [torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8) for _ in range(5)]
    encoded = encode_prompts(screener, [prompt], [images])
    branches = [Branch([], torch.randint(300, 340, (_COMPLETION,)).tolist()) for _ in range(_GENERATIONS)]
    groups = PrefixGroups(encoded, [branches])
    pixels = [pixel_inputs(screener, images)]

    def packed() -> None:
        completion_logprobs(screener, groups).logprobs.sum().backward()  # type: ignore[no-untyped-call]

    def repeated() -> None:
        repeated_prompt_logprobs(screener, groups, pixels).logprobs.sum().backward()  # type: ignore[no-untyped-call]

    ours, peer = in_turns(packed, repeated, rounds=7)
    yield {
        "name": "trainer.group_logprobs_ms",
        "value": round(ours * 1000, 1),
        "unit": "ms",
        "peer": round(peer * 1000, 1),
        "ratio": round(peer / ours, 2),
        "setting": f"forward and backward, {int(encoded.lengths[0])} prompt tokens, {_GENERATIONS} completions of "
        f"{_COMPLETION}, {torch.get_num_threads()} threads; peer: the prompt repeated, one completion at a time",
    }


def _grpo_steps() -> Iterator[Measurement]:
    from benchmarks.grpo_step import Bench, Case

    growth: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for side, prompt, completions in ((8, 366, (48,)), (17, 1491, (64, 256))):
            bench = Bench(Path(folder) / str(prompt), side, prompt)
            for completion in completions:
                for together in (1, 4):
                    case = Case(side=side, prompt=prompt, completion=completion, prompts_per_step=together)
                    run_dir = Path(folder) / f"{prompt}-{completion}-{together}"
                    # Machines are not quiet for long: few rounds only where TRL takes most of a minute for a step.
                    rounds = 7 if together == 1 or prompt < 1000 else 3
                    ours, peer = bench.beside_trl(case, bench.our_step(case, run_dir), rounds)
                    yield {
                        "name": "grpo.step_ratio",
                        "value": round(peer / ours, 2),
                        "unit": "times",
                        "peer": round(peer, 4),
                        "ratio": round(peer / ours, 2),
                        "setting": _sizes(case, bench.parameters)
                        | {"our_seconds": round(ours, 4), "token_bound": round(case.bound, 2)},
                    }
                case = Case(side=side, prompt=prompt, completion=completion, prompts_per_step=1)
                kept, repeated = bench.kept_bytes(case)
                yield {
                    "name": "grpo.memory_ratio",
                    "value": round(kept / repeated, 3),
                    "unit": "of the repeated prompt's bytes",
                    "peer": repeated,
                    "ratio": round(repeated / kept, 2),
                    "setting": _sizes(case, bench.parameters) | {"our_bytes": kept},
                }
        bench = Bench(Path(folder) / "growth", 8, 366)
        for group in (4, 8, 16, 32):
            case = Case(side=8, prompt=366, completion=48, prompts_per_step=1, group=group)
            step = bench.our_step(case, Path(folder) / f"growth-{group}")
            # The first step brings the self-check, and memory that is asked for once.
            seconds = [step() for _ in range(6)][1:]
            growth.append((group, statistics.median(seconds)))
            yield {
                "name": "grpo.step_growth",
                "value": round(growth[-1][1] / growth[0][1], 2),
                "unit": "times the step of four",
                "peer": None,
                "ratio": None,
                "setting": _sizes(case, bench.parameters) | {"our_seconds": round(growth[-1][1], 4)},
            }


def _sizes(case: Case, parameters: int) -> dict[str, Any]:
    import torch

    return {
        "prompt_tokens": case.prompt,
        "completion_tokens": case.completion,
        "group": case.group,
        "prompts_per_step": case.prompts_per_step,
        "params": parameters,
        "threads": torch.get_num_threads(),
    }
