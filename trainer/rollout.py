"""Completions from a model: many prompts decoded together, each shared part computed once and never copied.

A head (an encoded prompt, or only its images) is one row; its branches are completions, each after words of its own or
straight after the head. Every step feeds one token per branch still going: row ``head | branch tokens, interleaved``,
and a mask lets a token see its head and its own branch. So a group of G reads one copy of its prompt's keys, four
questions about one sample read one copy of its images, and finished branches and rows leave the batch. Heads may join
between two steps (`Decoding`). Exact: equal to decoding each branch alone. Positions are given, never the model's
`rope_deltas`. The packing is ours.
Not here: log-probabilities with gradients (shared_prefix.py), parsing (contract/answers.py).

Shapes: N rows (heads) still going, W branches side by side in a row, K keys of a row, A branches still going,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from trainer.contract.prompts import Prompt
from trainer.data import PromptBatch, encode_prompts, question_ids
from trainer.images import ImageTensor
from trainer.model import Architecture, Screener

_HEAD, _NOBODY = 0, -1
"""Owners of a key: every branch of the row; padding or a finished branch. A branch owns with its number from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a completion's words are chosen."""

    max_new_tokens: int
    """Longest completion in tokens, the ending token included."""
    temperature: float = 0.0
    """0 takes the likeliest word; above, logits are divided by it and words are drawn."""
    top_p: float = 1.0
    """Draw among the likeliest words that together have this probability."""
    seed: int = 0
    """Decides the draws of this completion alone: the same in any batch."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature must not be negative, and top_p must be above 0 and at most 1")


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
) -> list[list[Written]]:
    """`num_generations` completions of each prompt, prompt by prompt; completion j of prompt i has its own seed.

    With several completions per prompt each prompt is a head; with one, prompts given the same images (the same
    tensors) share one head that ends after the last image.
    """
    if num_generations > 1:
        heads = encode_prompts(screener, prompts, images)
        wanted = [
            [Wanted([], _reseeded(sampling, place * num_generations + j)) for j in range(num_generations)]
            for place in range(len(prompts))
        ]
        written = write_completions(screener, heads, wanted)
        return [written[at : at + num_generations] for at in range(0, len(written), num_generations)]
    sharing: dict[tuple[int, ...], list[int]] = {}
    for place, pictures in enumerate(images):
        sharing.setdefault(tuple(id(picture) for picture in pictures), []).append(place)
    places = list(sharing.values())
    firsts = [together[0] for together in places]
    heads = encode_prompts(
        screener, [prompts[first] for first in firsts], [images[first] for first in firsts], head_only=True
    )
    wanted = [
        [Wanted(question_ids(screener, prompts[place]), _reseeded(sampling, place)) for place in together]
        for together in places
    ]
    written = write_completions(screener, heads, wanted)
    order = [place for together in places for place in together]
    return [[found] for _, found in sorted(zip(order, written, strict=True), key=lambda pair: pair[0])]


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
    decoding = Decoding(screener)
    got = branches = decoding.join(heads, wanted)
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
    owner: int
    want: Wanted
    position: int
    """Where its next token stands."""
    generator: torch.Generator
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
        self._rows: list[int] = []
        """The heads still held, by number."""
        self._joined = 0
        """Heads that ever joined."""
        self._cache = Cache(layer_class_to_replicate=_RoomyLayer)
        self._owner_NK = torch.empty(0, 0, dtype=torch.long, device=screener.device)

    @torch.no_grad()
    def join(self, heads: PromptBatch, wanted: Sequence[Sequence[Wanted]]) -> list[Growing]:
        """Read heads, and write the first token of every completion wanted of them; the new branches in their order.

        ValueError when a head has no want, or some branches have a question and others have none. Whatever is raised,
        those who were here before go on as if nobody had come.
        """
        asked = [bool(want.question) for wants in wanted for want in wants]
        if not all(wanted) or any(asked) != all(asked):
            raise ValueError("every head needs a completion to write, and all of them a question or none")
        come = Decoding(self.screener)
        come._joined = self._joined
        branches = come._begin(heads, wanted)
        self._joined = come._joined
        if self.active:
            self._take_in(come)
        else:
            self.active, self._rows = come.active, come._rows
            self._cache, self._owner_NK = come._cache, come._owner_NK
        return branches

    @torch.no_grad()
    def step(self) -> list[Growing]:
        """One more token of every active branch: the branches that got one, none when nothing is going on."""
        if not self.active:
            return []
        self._drop_done_rows()
        return self._write(self._feed([[branch.tokens[-1]] for branch in self.active]))

    def leave(self, branch: Growing) -> None:
        """A branch that needs no more tokens goes; `over` stays as it is."""
        self.active = [one for one in self.active if one is not branch]

    def _begin(self, heads: PromptBatch, wanted: Sequence[Sequence[Wanted]]) -> list[Growing]:
        starts = heads.next_position.tolist()
        for place, wants in enumerate(wanted):
            row = self._joined + place
            for owner, want in enumerate(wants, start=1):
                generator = torch.Generator(device=self.screener.device).manual_seed(want.sampling.seed)
                self.active.append(Growing(len(self.active), row, owner, want, starts[place], generator))
            self._rows.append(row)
        branches = list(self.active)
        self._joined += len(wanted)
        self._owner_NK = torch.where(heads.attention_mask.bool(), _HEAD, _NOBODY)
        logits_AV = self._read_heads(heads)
        if branches[0].want.question:
            logits_AV = self._feed([list(branch.want.question) for branch in self.active])
        self._write(logits_AV)
        return branches

    def _write(self, logits_AV: Tensor) -> list[Growing]:
        """Choose every active branch's next token; those that got their last are active no more."""
        branches = self.active
        chosen = _choose(logits_AV, branches, self.screener.banned_token_ids)
        for branch, (token, logprob) in zip(branches, chosen, strict=True):
            branch.tokens.append(token)
            branch.logprobs.append(logprob)
            branch.finished = token == self.screener.end_token_id
        _tell_likelihoods(logits_AV, branches)
        self.active = [branch for branch in branches if not branch.over]
        return branches

    def _take_in(self, come: Decoding) -> None:
        """Let the rows of another batch stand below ours, keys left-aligned in no particular order.

        A key's place in its row does not matter: its position is in it, and who sees it is in `_owner_NK`. So what no
        branch sees any more is left out, and the shorter rows are filled with keys that nobody owns.
        """
        self._drop_done_rows(share=1.0)
        kept_NK = self._still_seen()
        ours = int(kept_NK.sum(1).max())
        # A stable sort brings the keys that are still seen to the front.
        order_NK = (~kept_NK).to(torch.uint8).argsort(dim=1, stable=True)[:, :ours]
        owner_NK = self._owner_NK.masked_fill(~kept_NK, _NOBODY).gather(1, order_NK)
        keys = max(ours, come._owner_NK.shape[1])
        for layer, other in zip(self._cache.layers, come._cache.layers, strict=True):
            layer.take_in(order_NK, other, keys)
        self._owner_NK = torch.cat([_filled_up(owner_NK, keys), _filled_up(come._owner_NK, keys)])
        self.active += come.active
        self._rows += come._rows

    def _still_seen(self) -> Tensor:
        """(N, K) whether a key is of a head or of a branch still going."""
        place_of = {row: place for place, row in enumerate(self._rows)}
        most = max(branch.owner for branch in self.active)
        seen_NW = torch.zeros(len(self._rows), most + 2, dtype=torch.bool)
        seen_NW[:, _HEAD] = True
        for branch in self.active:
            seen_NW[place_of[branch.row], branch.owner] = True
        # Owners beyond `most` have finished; nobody owns with -1, the last column, which stays False.
        known_NK = torch.where(self._owner_NK > most, _NOBODY, self._owner_NK) % (most + 2)
        return seen_NW.to(self._owner_NK.device).gather(1, known_NK)

    def _read_heads(self, heads: PromptBatch) -> Tensor:
        """Fill the cache with the heads; logits of what follows each, repeated for its branches."""
        images = heads.image_inputs() if sum(heads.images_per_prompt) else {}
        hidden_NPH = self.screener.model.model(
            input_ids=heads.input_ids,
            attention_mask=heads.attention_mask,
            position_ids=heads.position_ids,
            past_key_values=self._cache,
            use_cache=True,
            **images,
        ).last_hidden_state
        place_of = {row: place for place, row in enumerate(self._rows)}
        rows_A = torch.tensor([place_of[branch.row] for branch in self.active], device=hidden_NPH.device)
        last_NH = hidden_NPH[torch.arange(len(heads.lengths), device=hidden_NPH.device), heads.lengths - 1]
        return self._logits(last_NH)[rows_A]

    def _feed(self, following: list[list[int]]) -> Tensor:
        """Append each active branch's next words behind its row; logits (A, V) of what follows them."""
        place_of = {row: place for place, row in enumerate(self._rows)}
        used = [0] * len(self._rows)
        places, columns, tokens, positions, owners, last = [], [], [], [], [], []
        for branch, words in zip(self.active, following, strict=True):
            place = place_of[branch.row]
            for word in words:
                places.append(place)
                columns.append(used[place])
                tokens.append(word)
                positions.append(branch.position)
                owners.append(branch.owner)
                branch.position += 1
                used[place] += 1
            last.append(len(tokens) - 1)
        device = self.screener.device
        where = torch.tensor([places, columns])
        grid_3NW = torch.tensor([self.screener.pad_token_id, 0, _NOBODY])[:, None, None].repeat(
            1, len(self._rows), max(used)
        )
        grid_3NW[:, where[0], where[1]] = torch.tensor([tokens, positions, owners])
        tokens_NW, positions_NW, owner_NW = grid_3NW.to(device)
        multimodal = self.screener.architecture is not Architecture.INTERNVL
        model = self.screener.model
        hidden_NWH = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(tokens_NW),
            attention_mask=self._visible(owner_NW),
            position_ids=positions_NW.expand(3, -1, -1) if multimodal else positions_NW,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        ends = where[:, last].to(device)
        return self._logits(hidden_NWH[ends[0], ends[1]])

    def _visible(self, owner_NW: Tensor) -> Tensor:
        """Which keys (N, 1, W, K) each new token sees: the head, and its own branch as far as it is written."""
        before = self._owner_NK.shape[1]
        self._owner_NK = torch.cat([self._owner_NK, owner_NW], 1)
        own = self._owner_NK[:, None, :] == owner_NW[:, :, None]
        visible = (self._owner_NK[:, None, :] == _HEAD) | (own & (owner_NW >= 0)[:, :, None])
        written = torch.ones(owner_NW.shape[1], self._owner_NK.shape[1], dtype=torch.bool, device=owner_NW.device)
        return (visible & written.tril(before))[:, None]

    def _logits(self, hidden_AH: Tensor) -> Tensor:
        logits: Tensor = self.screener.model.get_output_embeddings()(hidden_AH).float()
        return logits

    def _drop_done_rows(self, share: float = 0.75) -> None:
        """Let rows without an active branch leave once so few are left: leaving copies the cache."""
        needed = {branch.row for branch in self.active}
        if len(needed) == len(self._rows) or len(needed) > share * len(self._rows):
            return
        kept = torch.tensor([place for place, row in enumerate(self._rows) if row in needed])
        self._cache.batch_select_indices(kept.to(self.screener.device))
        self._owner_NK = self._owner_NK[kept.to(self.screener.device)]
        self._rows = [row for row in self._rows if row in needed]


def _choose(logits_AV: Tensor, branches: list[Growing], banned: list[int]) -> list[tuple[int, float]]:
    """Each branch's next token and its log-probability."""
    samplings = [branch.want.sampling for branch in branches]
    divisor_A = torch.tensor([s.temperature or 1.0 for s in samplings], device=logits_AV.device)
    logprobs_AV = (logits_AV / divisor_A[:, None]).log_softmax(-1)
    allowed_AV = logprobs_AV.index_fill(1, torch.tensor(banned, device=logits_AV.device, dtype=torch.long), -torch.inf)
    drawing = [place for place, s in enumerate(samplings) if s.temperature > 0]
    if drawing:
        drawn_DV = allowed_AV[drawing].softmax(-1)
        if any(samplings[place].top_p < 1 for place in drawing):
            drawn_DV = _nucleus(drawn_DV, [samplings[place].top_p for place in drawing])
        # The largest of p / Exp(1) is a draw from p; each branch's noise comes from its own generator.
        noise_DV = torch.stack(
            [torch.empty_like(drawn_DV[0]).exponential_(generator=branches[place].generator) for place in drawing]
        )
        allowed_AV[drawing] = drawn_DV / noise_DV
    chosen_A1 = allowed_AV.argmax(-1, keepdim=True)
    chosen_logprobs = logprobs_AV.gather(1, chosen_A1)[:, 0].tolist()
    return list(zip(chosen_A1[:, 0].tolist(), chosen_logprobs, strict=True))


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


def _filled_up(owner_NK: Tensor, keys: int) -> Tensor:
    return torch.nn.functional.pad(owner_NK, (0, keys - owner_NK.shape[1]), value=_NOBODY)


def _nucleus(probabilities_DV: Tensor, top_p: list[float]) -> Tensor:
    """Zero outside of the likeliest words that together reach top_p; the likeliest always stays."""
    ordered_DV, order_DV = probabilities_DV.sort(-1, descending=True)
    before_DV = ordered_DV.cumsum(-1) - ordered_DV
    kept_DV = before_DV < torch.tensor(top_p, device=probabilities_DV.device)[:, None]
    return torch.zeros_like(probabilities_DV).scatter(1, order_DV, ordered_DV * kept_DV)


def _reseeded(sampling: Sampling, place: int) -> Sampling:
    if sampling.temperature == 0:
        return sampling
    # A multiplier far above any number of completions: seeds of neighbouring calls do not meet.
    seed = (sampling.seed * 1_000_003 + place) % (1 << 63)
    return Sampling(
        max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p, seed=seed
    )


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that grows in steps: the stock one copies all keys and values for every new token."""

    keys: Any
    values: Any
    _room: Tensor | None = None
    """(2, N, heads, capacity, head size): keys and values; `keys` and `values` are views of its filled part."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; see transformers' DynamicLayer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, heads, new, size = key_states.shape
        filled = self.get_seq_length()
        total = filled + new
        # After rows left, keys and values are copies outside of the room, and the room has another number of rows.
        if self._room is None or self._room.shape[1] != rows or self._room.shape[3] < total:
            self._room = key_states.new_empty(2, rows, heads, total + max(64, total // 4), size)
            if filled:
                self._room[:, :, :, :filled] = torch.stack([self.keys, self.values])
        self._room[0, :, :, filled:total] = key_states
        self._room[1, :, :, filled:total] = value_states
        self.keys, self.values = self._room[0, :, :, :total], self._room[1, :, :, :total]
        return self.keys, self.values

    def take_in(self, order_NK: Tensor, other: _RoomyLayer, keys: int) -> None:
        """Keep our keys and values in the order given, and put another layer's rows below; all get `keys` keys."""
        rows, heads, _, size = self.keys.shape
        come, filled = other.keys.shape[0], other.keys.shape[2]
        room = self.keys.new_zeros(2, rows + come, heads, keys + max(64, keys // 4), size)
        picked = order_NK[:, None, :, None].expand(-1, heads, -1, size)
        ours = order_NK.shape[1]
        for place, (mine, theirs) in enumerate(((self.keys, other.keys), (self.values, other.values))):
            room[place, :rows, :, :ours] = mine.gather(2, picked)
            room[place, rows:, :, :filled] = theirs
        self._room = room
        self.keys, self.values = room[0, :, :, :keys], room[1, :, :, :keys]
