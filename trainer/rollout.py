"""Completions from a model: many prompts decoded together, each shared part computed once and never copied.

A head (an encoded prompt, or only its images) is read once; its branches are completions, each after words of its own
or straight after the head. Every step feeds one word per branch still going, whatever its head's length (decoding.py).
So a group of G reads one copy of its prompt's keys, four questions about one sample read one copy of its images, and
finished branches and heads leave the batch, and heads join between two steps (`Decoding`). Exact: equal to decoding
each branch alone. Positions are given, never the model's `rope_deltas`.
Not here: log-probabilities with gradients (shared_prefix.py), how a word is chosen (sampling.py), parsing
(contract/answers.py), other engines (rollout_engines.py).

Shapes: N heads, P tokens of a head, B branches still going, V vocabulary, H hidden width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer.contract.prompts import Prompt
from trainer.data import PromptBatch, encode_prompts, question_ids
from trainer.decoding import BranchDecoder, HeadKeys
from trainer.images import ImageTensor
from trainer.model import Screener
from trainer.prompt_reading import ReadPrompts, read_prompts
from trainer.sampling import Chooser, Sampling
from trainer.seen_prompts import SeenPrompts, see

__all__ = [
    "Decoding",
    "Growing",
    "Likelihood",
    "Sampling",
    "Wanted",
    "Written",
    "choose_threads",
    "generate",
    "reseeded",
    "threads_to_write",
    "write_completions",
    "write_seen_groups",
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion to write: the words between the head and it (may be empty), and how to choose its own."""

    question: Sequence[int]
    sampling: Sampling
    alternatives: int | None = None
    """Tell of each token how likely it was, and that of so many likeliest ones (0: of none). None tells nothing."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely the model found a token, by log-probability at temperature 1, whatever it was drawn at."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    """The likeliest tokens at its place, the likeliest first."""


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
_MANY_KEYS = 50_000
"""Numbers of the heads' keys, in one layer, from which it does: every word reads them all. Measured with eight branches
behind one head: two threads take 1.1 ms a word for 1.2 at 23,000 numbers and 1.8 for 2.8 at 95,000. Ours."""
_MOST_THREADS = 2
"""What a small model writes with at most: more were not measured, and threads that wait for each other cost much."""


def choose_threads(screener: Screener, threads: int) -> None:
    """Set torch's computing threads for decoding: `threads`, or where it is 0 one for a small model on a CPU.

    Such a model's steps are so short that threads mostly wait for each other, and where other processes want the same
    cores they wait for whole time slices: with two busy cores, two threads served a tenth of what one did.
    """
    if threads:
        torch.set_num_threads(threads)
    elif _is_small(screener):
        torch.set_num_threads(1)


@contextlib.contextmanager
def threads_to_write(screener: Screener, head_tokens: int) -> Iterator[None]:
    """Inside, a small model on a CPU decodes in one thread, and in two behind heads of many tokens in all.

    Learning has all threads again.
    """
    before = torch.get_num_threads()
    wanted = min(before, _MOST_THREADS if head_tokens * _key_width(screener) >= _MANY_KEYS else 1)
    if wanted == before or not _is_small(screener):
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key_width(screener: Screener) -> int:
    """Numbers of one token's keys in one layer."""
    text = screener.model.model.language_model
    return int(text.layers[0].self_attn.head_dim * text.config.num_key_value_heads)


def _is_small(screener: Screener) -> bool:
    return screener.device.type == "cpu" and sum(weight.numel() for weight in screener.model.parameters()) < _SMALL


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
        seen = see(screener, prompts, images, places, once="nothing")
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
        [Wanted(question_ids(screener, prompts[at]), reseeded(sampling, places[at])) for at in together]
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
        [Wanted([], reseeded(sampling, place * num_generations + j)) for j in range(num_generations)]
        for place in places
    ]
    heads = seen.select(places)
    with seen.shown(places, graph=False), threads_to_write(seen.screener, int(heads.lengths.sum())):
        written = write_completions(seen.screener, heads, wanted, read=seen.to_write(places))
    return [written[at : at + num_generations] for at in range(0, len(written), num_generations)]


def write_completions(
    screener: Screener,
    heads: PromptBatch,
    wanted: Sequence[Sequence[Wanted]],
    on_written: Callable[[int, Written], None] = lambda index, written: None,
    read: ReadPrompts | None = None,
) -> list[Written]:
    """Every wanted completion behind its head, in the order of heads and their wants; `read`: the heads, read before.

    `on_written` is told of each as soon as it is done, by its place in that order. ValueError when a head has no want,
    or some branches have a question and others have none.
    """
    decoding = Decoding(screener)
    got = branches = decoding.join(heads, wanted, read)
    while got:
        for branch in got:
            if branch.over:
                on_written(branch.index, branch.as_written(screener))
        got = decoding.step()
    return [branch.as_written(screener) for branch in branches]


@dataclass(slots=True, eq=False)
class Growing:
    """A completion being written."""

    index: int
    """Its place among those that joined with it."""
    row: int
    """Its head's place among those."""
    want: Wanted
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    """One per token where they are wanted."""
    finished: bool = False

    @property
    def over(self) -> bool:
        """Whether it got its last token."""
        return self.finished or len(self.tokens) == self.want.sampling.max_new_tokens

    def as_written(self, screener: Screener) -> Written:
        """What stands so far."""
        said = self.tokens[:-1] if self.finished else self.tokens
        text = screener.tokenizer.decode(said, skip_special_tokens=True)
        return Written(tuple(self.tokens), tuple(self.logprobs), text, self.finished)


class Decoding:
    """A batch being decoded, a token of every branch at a time; heads join and branches leave between two steps.

    `active` are the branches still going, each with a last token that the model has not read yet.
    """

    def __init__(self, screener: Screener) -> None:
        self.screener = screener
        self.active: list[Growing] = []
        self._held: list[Growing] = []
        """The branches whose keys are kept: those that left since the last step are among them."""
        self._decoder: BranchDecoder | None = None
        self._chooser: Chooser | None = None
        # Looked up once: the model searches its modules for it.
        self._head = screener.model.get_output_embeddings()

    @torch.inference_mode()
    def join(
        self, heads: PromptBatch, wanted: Sequence[Sequence[Wanted]], read: ReadPrompts | None = None
    ) -> list[Growing]:
        """Read heads (unless they come `read`), and write the first token of every completion wanted of them.

        Returns the new branches in their order.
        ValueError when a head has no want, or some branches have a question and others have none. Whatever is raised,
        those who were here before go on as if nobody had come.
        """
        asked = [bool(want.question) for wants in wanted for want in wants]
        if not all(wanted) or any(asked) != all(asked):
            raise ValueError("every head needs a completion to write, and all of them a question or none")
        branches: list[Growing] = []
        for row, wants in enumerate(wanted):
            branches += [Growing(len(branches) + place, row, want) for place, want in enumerate(wants)]
        read = read_prompts(self.screener, heads) if read is None else read
        starts = heads.next_position.tolist()
        rows = [branch.row for branch in branches]
        decoder = BranchDecoder(self.screener, self._keys_of(read), rows, [starts[row] for row in rows])
        chooser = self._make_chooser(heads, branches)
        if any(asked):
            logits_BV = self._logits(decoder.feed([branch.want.question for branch in branches]))
        else:
            logits_BV = self._logits(read.last_NH)[torch.tensor(rows, device=read.last_NH.device)]
        self._write(logits_BV, branches, chooser)
        if self._decoder is None or self._chooser is None or not self.active:
            self._decoder, self._chooser = decoder, chooser
            self._held, self.active = list(branches), []
        else:
            self._let_go()
            self._decoder.take_in(decoder)
            self._chooser.take_in(chooser)
            self._held += branches
        self.active = self.active + [branch for branch in branches if not branch.over]
        return branches

    @torch.inference_mode()
    def step(self) -> list[Growing]:
        """One more token of every active branch: the branches that got one, none when nothing is going on."""
        if not self.active or self._decoder is None or self._chooser is None:
            return []
        self._let_go()
        branches = self.active
        self._write(
            self._logits(self._decoder.feed([[branch.tokens[-1]] for branch in branches])), branches, self._chooser
        )
        self.active = [branch for branch in branches if not branch.over]
        return branches

    def leave(self, branch: Growing) -> None:
        """A branch that needs no more tokens goes; `over` stays as it is."""
        self.active = [one for one in self.active if one is not branch]

    def _let_go(self) -> None:
        """Forget the keys of branches that are active no more."""
        if len(self._held) == len(self.active) or self._decoder is None or self._chooser is None:
            return
        going = {id(branch) for branch in self.active}
        places = [place for place, branch in enumerate(self._held) if id(branch) in going]
        self._decoder.keep(places)
        self._chooser.keep(places)
        self._held = [self._held[place] for place in places]

    def _write(self, logits_BV: Tensor, branches: Sequence[Growing], chooser: Chooser) -> None:
        """Choose each branch's next token."""
        end = self.screener.end_token_id
        for branch, token, logprob in zip(branches, *chooser.choose(logits_BV), strict=True):
            branch.tokens.append(token)
            branch.logprobs.append(logprob)
            branch.finished = token == end
        _tell_likelihoods(logits_BV, branches)

    def _keys_of(self, read: ReadPrompts) -> HeadKeys:
        kind = self.screener.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.screener.model.dtype
        return HeadKeys(read.layers, read.lengths_N, dtype)

    def _make_chooser(self, heads: PromptBatch, branches: Sequence[Growing]) -> Chooser:
        prompts = []
        for branch in branches:
            penalized = branch.want.sampling.repetition_penalty != 1
            head = heads.input_ids[branch.row, : int(heads.lengths[branch.row])].tolist() if penalized else []
            prompts.append([*head, *branch.want.question])
        samplings = [branch.want.sampling for branch in branches]
        vocabulary = self._head.weight.shape[0]
        return Chooser(samplings, prompts, self.screener.banned_token_ids, vocabulary, self.screener.device)

    def _logits(self, hidden_BH: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden_BH).float()
        return logits


def _tell_likelihoods(logits_AV: Tensor, branches: Sequence[Growing]) -> None:
    """Note how likely the newest token of each branch was, where that is wanted."""
    asked = {place: branch.want.alternatives for place, branch in enumerate(branches)}
    places = [place for place, wanted in asked.items() if wanted is not None]
    if not places:
        return
    logprobs_DV = logits_AV[places].log_softmax(-1)
    newest_D1 = torch.tensor([[branches[place].tokens[-1]] for place in places], device=logits_AV.device)
    own = logprobs_DV.gather(1, newest_D1)[:, 0].tolist()
    values_DT, tokens_DT = logprobs_DV.topk(max(asked[place] or 0 for place in places))
    for place, logprob, values, tokens in zip(places, own, values_DT.tolist(), tokens_DT.tolist(), strict=True):
        told = list(zip(tokens, values, strict=True))[: asked[place]]
        branches[place].likelihoods.append(Likelihood(logprob, tuple(told)))


def reseeded(sampling: Sampling, place: int) -> Sampling:
    """The same settings with the seed of one of many completions."""
    if sampling.temperature == 0:
        return sampling
    # A multiplier far above any number of completions: seeds of neighbouring calls do not meet.
    return replace(sampling, seed=(sampling.seed * 1_000_003 + place) % (1 << 63))
