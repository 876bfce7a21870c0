"""Completions from a model: many prompts decoded together, each shared part computed once and never copied.

A head (an encoded prompt, or only its images) is read once; its branches are completions, each after words of its own
or straight after the head. Every step feeds one word per branch still going, whatever its head's length (decoding.py).
So a group of G reads one copy of its prompt's keys, four questions about one sample read one copy of its images, and
finished branches and heads leave the batch. Exact: equal to decoding each branch alone. Positions are given, never the
model's `rope_deltas`.
Not here: log-probabilities with gradients (shared_prefix.py), how a word is chosen (sampling.py), parsing
(contract/answers.py), other engines (rollout_engines.py).

Shapes: N heads, P tokens of a head, B branches still going, V vocabulary, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from trainer.contract.prompts import Prompt
from trainer.data import PromptBatch, encode_prompts, question_ids
from trainer.decoding import BranchDecoder, HeadKeys
from trainer.images import ImageTensor
from trainer.model import Screener
from trainer.sampling import Chooser, Sampling
from trainer.seen_prompts import SeenPrompts, see

__all__ = ["Sampling", "Wanted", "Written", "choose_threads", "generate", "write_completions", "write_seen_groups"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion to write: the words between the head and it (may be empty), and how to choose its own."""

    question: Sequence[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Written:
    """One completion."""

    token_ids: tuple[int, ...]
    """Its tokens, with the ending token when it finished."""
    logprobs: tuple[float, ...]
    """Log-probability of each under the model at the sampling temperature (1 when greedy), before top_p and bans."""
    text: str
    """Without control tokens."""
    finished: bool
    """False when max_new_tokens cut it."""


_SMALL = 20_000_000
"""Parameters below which a second thread does not pay when decoding on a CPU. Measured at 1.3 million, ours."""


def choose_threads(screener: Screener, threads: int) -> None:
    """Set torch's computing threads for decoding: `threads`, or where it is 0 one for a small model on a CPU.

    Such a model's steps are so short that threads mostly wait for each other, and where other processes want the same
    cores they wait for whole time slices: with two busy cores, two threads served a tenth of what one did.
    """
    if threads:
        torch.set_num_threads(threads)
    elif screener.device.type == "cpu" and sum(weight.numel() for weight in screener.model.parameters()) < _SMALL:
        torch.set_num_threads(1)


def generate(
    screener: Screener,
    prompts: Sequence[Prompt],
    images: Sequence[Sequence[ImageTensor]],
    sampling: Sampling,
    num_generations: int = 1,
    places: Sequence[int] | None = None,
) -> list[list[Written]]:
    """`num_generations` completions of each prompt, prompt by prompt; completion j of prompt i has its own seed.

    `places`: what i is for each prompt, where these are some of a batch that several processes share.
    With several completions per prompt each prompt is a head; with one, prompts given the same images (the same
    tensors) share one head that ends after the last image.
    """
    places = range(len(prompts)) if places is None else places
    if num_generations > 1:
        seen = see(screener, prompts, images, places, once=False)
        return write_seen_groups(seen, places, sampling, num_generations)
    sharing: dict[tuple[int, ...], list[int]] = {}
    for at, pictures in enumerate(images):
        sharing.setdefault(tuple(id(picture) for picture in pictures), []).append(at)
    rows = list(sharing.values())
    firsts = [together[0] for together in rows]
    heads = encode_prompts(
        screener, [prompts[first] for first in firsts], [images[first] for first in firsts], head_only=True
    )
    wanted = [
        [Wanted(question_ids(screener, prompts[at]), _reseeded(sampling, places[at])) for at in together]
        for together in rows
    ]
    written = write_completions(screener, heads, wanted)
    order = [at for together in rows for at in together]
    return [[found] for _, found in sorted(zip(order, written, strict=True), key=lambda pair: pair[0])]


def write_seen_groups(
    seen: SeenPrompts, places: Sequence[int], sampling: Sampling, num_generations: int
) -> list[list[Written]]:
    """`num_generations` completions of some prompts that were encoded before, as `generate` writes them."""
    if not places:
        return []
    wanted = [
        [Wanted([], _reseeded(sampling, place * num_generations + j)) for j in range(num_generations)]
        for place in places
    ]
    with seen.shown(places, graph=False):
        written = write_completions(seen.screener, seen.select(places), wanted)
    return [written[at : at + num_generations] for at in range(0, len(written), num_generations)]


def write_completions(
    screener: Screener,
    heads: PromptBatch,
    wanted: Sequence[Sequence[Wanted]],
    on_written: Callable[[int, Written], None] = lambda index, written: None,
) -> list[Written]:
    """Every wanted completion behind its head, in the order of heads and their wants.

    `on_written` is told of each as soon as it is done, by its place in that order. ValueError when a head has no want,
    or some branches have a question and others have none.
    """
    asked = [bool(want.question) for wants in wanted for want in wants]
    if not all(wanted) or any(asked) != all(asked):
        raise ValueError("every head needs a completion to write, and all of them a question or none")
    decoder = _Decoder(screener, heads, wanted)
    with torch.no_grad():
        decoder.run(on_written)
    return [branch.as_written(screener) for branch in decoder.branches]


@dataclass(slots=True)
class _Branch:
    index: int
    row: int
    want: Wanted
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False

    def as_written(self, screener: Screener) -> Written:
        said = self.tokens[:-1] if self.finished else self.tokens
        text = screener.tokenizer.decode(said, skip_special_tokens=True)
        return Written(tuple(self.tokens), tuple(self.logprobs), text, self.finished)


class _Decoder:
    """The batch being decoded: `active` are the branches still going."""

    def __init__(self, screener: Screener, heads: PromptBatch, wanted: Sequence[Sequence[Wanted]]) -> None:
        self.screener = screener
        self.heads = heads
        self.branches: list[_Branch] = []
        for row, wants in enumerate(wanted):
            self.branches += [_Branch(len(self.branches) + place, row, want) for place, want in enumerate(wants)]
        self.active = list(self.branches)

    def run(self, on_written: Callable[[int, Written], None]) -> None:
        keys, logits_BV = self._read_heads()
        starts = self.heads.next_position.tolist()
        rows = [branch.row for branch in self.active]
        decoder = BranchDecoder(self.screener, keys, rows, [starts[row] for row in rows])
        chooser = self._chooser()
        if self.branches[0].want.question:
            logits_BV = self._logits(decoder.feed([branch.want.question for branch in self.active]))
        end = self.screener.end_token_id
        while True:
            going = []
            for place, (branch, token, logprob) in enumerate(zip(self.active, *chooser.choose(logits_BV), strict=True)):
                branch.tokens.append(token)
                branch.logprobs.append(logprob)
                branch.finished = token == end
                if branch.finished or len(branch.tokens) == branch.want.sampling.max_new_tokens:
                    on_written(branch.index, branch.as_written(self.screener))
                else:
                    going.append(place)
            if not going:
                return
            if len(going) < len(self.active):
                self.active = [self.active[place] for place in going]
                decoder.keep(going)
                chooser.keep(going)
            logits_BV = self._logits(decoder.feed([[branch.tokens[-1]] for branch in self.active]))

    def _read_heads(self) -> tuple[HeadKeys, Tensor]:
        """Keys of the heads, and the logits (B, V) of what follows each, repeated for its branches."""
        heads = self.heads
        images = heads.image_inputs() if sum(heads.images_per_prompt) else {}
        cache = DynamicCache()
        even = bool(heads.attention_mask.all())
        hidden_NPH = self.screener.model.model(
            input_ids=heads.input_ids,
            attention_mask=None if even else heads.attention_mask,
            position_ids=heads.position_ids,
            past_key_values=cache,
            use_cache=True,
            **images,
        ).last_hidden_state
        rows_B = torch.tensor([branch.row for branch in self.active], device=hidden_NPH.device)
        last_NH = hidden_NPH[torch.arange(len(heads.lengths), device=hidden_NPH.device), heads.lengths - 1]
        kind = hidden_NPH.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.screener.model.dtype
        keys = HeadKeys([(layer.keys, layer.values) for layer in cache.layers], heads.lengths, dtype)
        return keys, self._logits(last_NH)[rows_B]

    def _chooser(self) -> Chooser:
        prompts = []
        for branch in self.branches:
            penalized = branch.want.sampling.repetition_penalty != 1
            head = self.heads.input_ids[branch.row, : int(self.heads.lengths[branch.row])].tolist() if penalized else []
            prompts.append([*head, *branch.want.question])
        samplings = [branch.want.sampling for branch in self.branches]
        vocabulary = self.screener.model.get_output_embeddings().weight.shape[0]
        return Chooser(samplings, prompts, self.screener.banned_token_ids, vocabulary, self.screener.device)

    def _logits(self, hidden_BH: Tensor) -> Tensor:
        logits: Tensor = self.screener.model.get_output_embeddings()(hidden_BH).float()
        return logits


def _reseeded(sampling: Sampling, place: int) -> Sampling:
    if sampling.temperature == 0:
        return sampling
    # A multiplier far above any number of completions: seeds of neighbouring calls do not meet.
    return replace(sampling, seed=(sampling.seed * 1_000_003 + place) % (1 << 63))
