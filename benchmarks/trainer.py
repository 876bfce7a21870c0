"""What sharing the prompt saves: log-probabilities and gradients of a group behind one prompt, packed and repeated.

The model has the local model's architecture and random weights; the numbers of both sides are equal (a test says so).
Not here: whole training steps beside another library (its own issue).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.measurement import Measurement, in_turns

_START = Path(__file__).resolve().parent.parent / "fixtures" / "local_screener_start"
_GENERATIONS, _COMPLETION = 8, 48


def measure(*, scale: bool) -> Iterator[Measurement]:
    """Seconds of forward and backward for one group of eight; it has one size."""
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
