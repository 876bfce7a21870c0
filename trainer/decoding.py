"""The text stack one word at a time: many branches behind heads whose keys are kept once, with few calls per word.

transformers' own forward rebuilds masks, rotary tables and caches for every word, and a batch of branches would need
the head's keys once per branch. Here a step is the layers' own arithmetic: queries of all branches of a head meet its
keys in one product, their own keys in another, and one softmax joins both. Weights stay where they are (adapters work);
small models get theirs joined into fewer products. Exact: tested against the stock forward. The arrangement is ours.
Not here: choosing words (sampling.py), which branches there are (rollout.py), gradients (shared_prefix.py).

Shapes: N heads, P keys of a head, B branches, W places of a head side by side (as many as its widest has branches; a
place without a branch computes something that nobody reads), L words fed at once, S keys of a branch so far, Q query
heads of a layer, K key heads, R = Q / K, A = Q + 2K heads of queries, keys and values, D head size, H hidden width,
M = B·L words fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model import Screener

_JOINED = 100_000_000
"""Parameters of a text stack up to which projections are joined for a rollout: a copy of the weights, fewer calls."""
_AHEAD = 64
"""Words for which rotary tables are looked up in one call."""


class HeadKeys:
    """What the heads left in the cache: keys and values of each layer, each head's once."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], lengths_N: Tensor, dtype: torch.dtype) -> None:
        self.layers = [(keys.to(dtype), values.to(dtype)) for keys, values in layers]
        """(N, K, P, D) each."""
        self.lengths_N = lengths_N
        self._settle()

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the heads only."""
        longest = int(self.lengths_N[rows].max())
        self.layers = [(keys[rows, :, :longest], values[rows, :, :longest]) for keys, values in self.layers]
        self.lengths_N = self.lengths_N[rows]
        self._settle()

    def take_in(self, other: HeadKeys) -> None:
        """Go on with other heads behind ours."""
        longest = max(self.layers[0][0].shape[2], other.layers[0][0].shape[2])
        self.layers = [
            (_stacked(ours[0], theirs[0], longest), _stacked(ours[1], theirs[1], longest))
            for ours, theirs in zip(self.layers, other.layers, strict=True)
        ]
        self.lengths_N = torch.cat([self.lengths_N, other.lengths_N])
        self._settle()

    def _settle(self) -> None:
        first = self.layers[0][0]
        kinds, longest = first.shape[1:3]
        self.flat = [(keys.flatten(0, 1).mT, values.flatten(0, 1)) for keys, values in self.layers]
        """Keys (N·K, D, P) and values (N·K, P, D)."""
        self.bias: Tensor | None = None
        """(N·K, 1, P) to add to scores, where heads have different lengths."""
        if not bool((self.lengths_N == longest).all()):
            beyond_NP = torch.arange(longest, device=first.device) >= self.lengths_N[:, None]
            lowest = torch.zeros(beyond_NP.shape, dtype=first.dtype, device=first.device)
            lowest.masked_fill_(beyond_NP, torch.finfo(first.dtype).min)
            self.bias = lowest[:, None].repeat_interleave(kinds, 0)


class BranchDecoder:
    """Feeds words of branches to the text stack and answers with hidden states; holds the branches' own keys.

    `rows` is each branch's head, ascending; `start_positions` where each branch's first word stands.
    """

    def __init__(
        self, screener: Screener, heads: HeadKeys, rows: Sequence[int], start_positions: Sequence[int]
    ) -> None:
        stack = screener.model.model.language_model
        config = stack.config
        self._stack = stack
        self._embed = screener.model.get_input_embeddings()
        self._norm = _Norm(stack.norm)
        self._heads = heads
        self._device = screener.device
        self._size = int(stack.layers[0].self_attn.head_dim)
        self._query_heads, self._key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._dtype = heads.layers[0][0].dtype
        join = sum(weight.numel() for weight in stack.parameters()) <= _JOINED
        shape = (self._query_heads, self._key_heads, self._size)
        self._layers = [_Layer(layer, *shape, join=join, dtype=self._dtype) for layer in stack.layers]
        self._own: Tensor | None = None
        """(layers, 2, N, K, W, room, D) keys and values of the branches' own words."""
        self._filled = [0] * len(rows)
        """Per branch, the words fed so far."""
        self._starts = list(start_positions)
        self._rotary = torch.zeros(0)
        self._turns: list[tuple[Tensor, Tensor]] = []
        """Tables of single words to come, the next one last."""
        self._desk: _Desk | None = None
        self._lay_out(list(rows))

    def feed(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Append each branch's next words; (B, H) hidden states of the last of each.

        Lists of different lengths are padded on the right: padding is overwritten by what comes next.
        """
        lengths = [len(some) for some in words]
        longest = max(lengths)
        even = len(set(self._filled)) == 1
        seen = max(self._filled) + longest
        own = self._with_room(seen)
        near = own[..., :seen, :]
        # Every word a row: products of two dimensions take fewer calls than of three.
        words_M = torch.tensor([word for some in words for word in (*some, *[0] * (longest - len(some)))])
        cos_M1D, sin_M1D = self._tables(longest)
        hidden_MH = self._embed(words_M.to(self._device))
        if even:
            # Even branches write one slice; uneven ones, each word into its own place.
            new = near[..., seen - longest :, :].unbind()
        else:
            into_BL = self._places(longest).to(self._device)
        bias = None if even and longest == 1 else self._own_bias(longest, seen)
        if self._desk is None or self._desk.length != longest:
            self._desk = _Desk(self, longest)
        desk = self._desk
        # Of all layers at once: what is the same for each costs a call once.
        near_keys, near_values = (near[:, kind].flatten(1, 3) for kind in (0, 1))
        parts = zip(self._layers, self._heads.flat, near_keys.mT.unbind(), near_values.unbind(), strict=True)
        for number, (layer, head, keys, values) in enumerate(parts):
            layer.project(hidden_MH, cos_M1D, sin_M1D, desk)
            if not self._dense:
                desk.grid[self._rows_B, self._slots_B] = desk.every_BLAD
            if even:
                new[number].copy_(desk.new)
            else:
                kept = desk.every_BLAD[:, :, self._query_heads :].view(len(words), longest, 2, -1, self._size)
                own[number][:, self._rows_B[:, None], :, self._slots_B[:, None], into_BL] = kept
            self._attend(head, keys, values, desk, bias)
            desk.mixed_out.copy_(desk.mixed if self._dense else desk.mixed[self._rows_B, self._slots_B])
            hidden_MH = layer.finish(hidden_MH, desk.mixed_MH)
        self._filled = [filled + length for filled, length in zip(self._filled, lengths, strict=True)]
        if longest > 1:
            hidden_MH = hidden_MH[[place * longest + length - 1 for place, length in enumerate(lengths)]]
        return self._norm(hidden_MH)

    def keep(self, branches: Sequence[int]) -> None:
        """Go on with some of the branches only; heads without any leave once they are a quarter."""
        own = self._of_branches(branches)
        self._filled = [self._filled[branch] for branch in branches]
        self._starts = [self._starts[branch] for branch in branches]
        kept = [self._rows[branch] for branch in branches]
        needed = sorted(set(kept))
        if len(needed) <= 0.75 * len(self._heads.lengths_N):
            self._heads.keep(torch.tensor(needed, device=self._device))
            place_of = {row: place for place, row in enumerate(needed)}
            kept = [place_of[row] for row in kept]
        self._lay_out(kept)
        self._own = None if own is None else self._in_places(own)

    def take_in(self, other: BranchDecoder) -> None:
        """Go on with another batch's heads and branches behind ours."""
        sides = [(part._of_branches(range(len(part._rows))), len(part._rows)) for part in (self, other)]
        behind = len(self._heads.lengths_N)
        self._heads.take_in(other._heads)
        self._filled += other._filled
        self._starts += other._starts
        self._lay_out([*self._rows, *(behind + row for row in other._rows)])
        some = [own for own, _ in sides if own is not None]
        if some:
            # A side that was fed nothing yet has no keys of its own.
            both = [some[0][:1, ..., :0, :].expand(count, *[-1] * 5) if own is None else own for own, count in sides]
            self._own = self._in_places(_stacked(both[0], both[1], max(own.shape[-2] for own in some)))

    def _of_branches(self, chosen: Sequence[int]) -> Tensor | None:
        """(B, layers, 2, K, room, D) keys and values of some branches."""
        if self._own is None:
            return None
        places = torch.tensor(list(chosen), device=self._device)
        return self._own[:, :, self._rows_B[places], :, self._slots_B[places]]

    def _lay_out(self, rows: list[int]) -> None:
        """Where each branch stands in a grid of heads × places side by side."""
        self._rows = rows
        used = [0] * len(self._heads.lengths_N)
        slots = []
        for row in rows:
            slots.append(used[row])
            used[row] += 1
        self._wide = max(used)
        self._rows_B = torch.tensor(rows, device=self._device)
        self._slots_B = torch.tensor(slots, device=self._device)
        self._dense = len(rows) == len(used) * self._wide
        self._desk = None
        self._turns.clear()

    def _in_places(self, kept: Tensor) -> Tensor:
        """`_of_branches` as `_own`; zeros where no branch stands: never NaN, whose product is not 0."""
        placed = kept.new_zeros(len(self._heads.lengths_N), self._wide, *kept.shape[1:])
        placed[self._rows_B, self._slots_B] = kept
        return placed.permute(2, 3, 0, 4, 1, 5, 6).contiguous()

    def _grid(self, part: Tensor) -> Tensor:
        """(B, …) as (N, W, …)."""
        if self._dense:
            return part.view(-1, self._wide, *part.shape[1:])
        grid = part.new_zeros(len(self._heads.lengths_N), self._wide, *part.shape[1:])
        grid[self._rows_B, self._slots_B] = part
        return grid

    def _attend(
        self,
        head: tuple[Tensor, Tensor],
        near_keys: Tensor,
        near_values: Tensor,
        desk: _Desk,
        bias: Tensor | None,
    ) -> None:
        """One softmax over the head's keys and the branch's own, from the desk's queries to what they mix."""
        head_keys, head_values = head
        longest, seen = head_keys.shape[-1], near_keys.shape[-1]
        desk.query.copy_(desk.queries)
        if self._heads.bias is None:
            far = torch.bmm(desk.far_query, head_keys)
        else:
            far = torch.baddbmm(self._heads.bias, desk.far_query, head_keys)
        near = torch.bmm(desk.near_query, near_keys)
        if bias is not None:
            near.view(*desk.query.shape[:-1], seen).add_(bias)
        scores = torch.cat([far, near.view(*far.shape[:2], seen)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        of_head, of_own = weights.split_with_sizes([longest, seen], -1)
        torch.bmm(of_head, head_values, out=desk.far_mixed)
        desk.near_mixed.baddbmm_(of_own.view(*near.shape), near_values)

    def _places(self, length: int) -> Tensor:
        """(B, L) where so many next words stand among their branch's."""
        return torch.tensor(self._filled)[:, None] + torch.arange(length)

    def _own_bias(self, length: int, seen: int) -> Tensor:
        """What each new word must not see of its branch's keys: (N, 1, W, 1, L, S) to add."""
        hidden_BLS = torch.arange(seen) > self._places(length)[:, :, None]
        bias_BLS = torch.zeros(hidden_BLS.shape, dtype=self._dtype)
        bias_BLS.masked_fill_(hidden_BLS, torch.finfo(self._dtype).min)
        return self._grid(bias_BLS.to(self._device))[:, None, :, None]

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine (M, 1, D) at the positions of the next words; computed for many words ahead."""
        if length == 1 and self._turns:
            return self._turns.pop()
        firsts = [start + filled for start, filled in zip(self._starts, self._filled, strict=True)]
        last = max(firsts) + max(length, _AHEAD)
        if last > len(self._rotary):
            every = torch.arange(last + 256, device=self._device)
            # Words have one position on all three axes of a multimodal rope: any of its tables serves.
            multimodal = "mrope_section" in (self._stack.config.rope_parameters or {})
            sample = torch.zeros((), dtype=self._dtype, device=self._device)
            cos, sin = self._stack.rotary_emb(sample, every.expand(3, 1, -1) if multimodal else every[None])
            signed = torch.cat([-sin[..., : self._size // 2], sin[..., self._size // 2 :]], -1)
            self._rotary = torch.stack([cos.reshape(-1, 1, self._size), signed.reshape(-1, 1, self._size)], 1)
        if length == 1:
            where_SB = torch.tensor(firsts) + torch.arange(_AHEAD - 1, -1, -1)[:, None]
            cos_SB1D, sin_SB1D = self._rotary[where_SB.to(self._device)].unbind(2)
            self._turns = list(zip(cos_SB1D.unbind(), sin_SB1D.unbind(), strict=True))
            return self._turns.pop()
        self._turns.clear()
        where_M = torch.tensor([first + place for first in firsts for place in range(length)], device=self._device)
        cos_M1D, sin_M1D = self._rotary[where_M].unbind(1)
        return cos_M1D, sin_M1D

    def _with_room(self, needed: int) -> Tensor:
        """The branches' own keys and values, with room for so many of each."""
        room = 0 if self._own is None else self._own.shape[-2]
        if self._own is None:
            shape = (len(self._layers), 2, len(self._heads.lengths_N), self._key_heads, self._wide)
            grown_room = max(64, needed + needed // 2)
            self._own = torch.zeros(*shape, grown_room, self._size, dtype=self._dtype, device=self._device)
        elif needed > room:
            self._own = F.pad(self._own, (0, 0, 0, max(64, needed + needed // 2) - room))
        return self._own


class _Desk:
    """Where words lie while they go through a layer, and every view of that: made once for all layers and words."""

    def __init__(self, decoder: BranchDecoder, length: int) -> None:
        rows, wide = len(decoder._heads.lengths_N), decoder._wide
        queries, kinds, size = decoder._query_heads, decoder._key_heads, decoder._size
        repeated, branches = queries // kinds, len(decoder._rows)

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=decoder._dtype, device=decoder._device)

        self.length = length
        self.every_MAD = empty(branches * length, queries + 2 * kinds, size)
        self.every_BLAD = self.every_MAD.view(branches, length, -1, size)
        self.projected = self.every_MAD.view(branches * length, -1)
        self.turned = self.every_MAD[:, : queries + kinds]
        """Queries and keys, which are turned to their positions."""
        shape = rows, wide, length, queries + 2 * kinds, size
        self.grid = self.every_MAD.view(shape) if decoder._dense else empty(*shape)
        """(N, W, L, A, D)"""
        of_heads = self.grid[..., :queries, :].view(rows, wide, length, kinds, repeated, size)
        self.queries = of_heads.permute(0, 3, 1, 4, 2, 5)
        self.new = self.grid[..., queries:, :].view(rows, wide, length, 2, kinds, size).permute(3, 0, 4, 1, 2, 5)
        """(2, N, K, W, L, D) keys and values."""
        # All queries of one head and key head stand together, place by place, and so does what they mix.
        self.query = empty(rows, kinds, wide, repeated, length, size)
        self.far_query = self.query.view(rows * kinds, -1, size)
        self.near_query = self.query.view(rows * kinds * wide, -1, size)
        self.far_mixed = torch.zeros_like(self.far_query)
        self.near_mixed = self.far_mixed.view(self.near_query.shape)
        self.mixed = self.far_mixed.view(self.query.shape).permute(0, 2, 4, 1, 3, 5)
        """(N, W, L, K, R, D)"""
        self.mixed_MH = empty(branches * length, queries * size)
        grid = (rows, wide) if decoder._dense else (branches,)
        self.mixed_out = self.mixed_MH.view(*grid, *self.mixed.shape[2:])
        """The same, with `mixed`'s dimensions: (N, W, L, K, R, D), or (B, L, K, R, D) where places are empty."""


class _Layer:
    """One decoder layer's arithmetic around its attention, by its own modules or by joined copies of their weights."""

    def __init__(
        self, layer: Any, query_heads: int, key_heads: int, size: int, *, join: bool, dtype: torch.dtype
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._queries, self._half = query_heads, size // 2
        self._scale: float = attention.scaling
        self._norm: _Norm | None = None
        if getattr(attention, "q_norm", None) is not None:
            # Queries and keys go through their norms in one call; the scale of scores rides on the queries' weights.
            weights = torch.cat(
                [
                    (attention.q_norm.weight * self._scale).expand(query_heads, -1),
                    attention.k_norm.weight.expand(key_heads, -1),
                ]
            )
            self._norm = _Norm(attention.q_norm, weights)
        ins = attention.q_proj, attention.k_proj, attention.v_proj
        ups = mlp.gate_proj, mlp.up_proj
        self._before, self._qkv = _normed_products(layer.input_layernorm, ins, dtype, join)
        self._after, self._gate_up = _normed_products(layer.post_attention_layernorm, ups, dtype, join)
        self._o, self._down = _Linear(attention.o_proj), _Linear(mlp.down_proj)
        self._activation = mlp.act_fn.forward

    def project(self, hidden_MH: Tensor, cos_M1D: Tensor, sin_M1D: Tensor, desk: _Desk) -> None:
        """Write scaled queries and keys, turned to their positions, and values."""
        self._qkv(self._before(hidden_MH), out=desk.projected)
        normed = self._norm(desk.turned) if self._norm else desk.turned
        torch.addcmul(normed * cos_M1D, normed.roll(self._half, -1), sin_M1D, out=desk.turned)
        if not self._norm:
            desk.turned[:, : self._queries].mul_(self._scale)

    def finish(self, hidden_MH: Tensor, mixed_MH: Tensor) -> Tensor:
        """The layer's output from what its attention mixed; takes what it is given for its own."""
        hidden_MH = self._o.added_to(hidden_MH, mixed_MH)
        gate, up = self._gate_up(self._after(hidden_MH)).chunk(2, -1)
        return self._down.added_to(hidden_MH, self._activation(gate).mul_(up))


class _Norm:
    """transformers' root-mean-square norm in fewer calls: x / √(|x|² + width·ε), times weight·√width."""

    def __init__(self, norm: Any, weight: Tensor | None = None) -> None:
        weight = (norm.weight if weight is None else weight).detach()
        width = weight.shape[-1]
        self._weight: Tensor | None = weight.float() * width**0.5
        self._floor = torch.tensor((norm.variance_epsilon * width) ** 0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        out = wide / torch.hypot(torch.linalg.vector_norm(wide, dim=-1, keepdim=True), self._floor)
        if self._weight is not None:
            out.mul_(self._weight)
        return out.to(x.dtype)

    def give_weight(self) -> Tensor:
        """What it multiplies with, which the caller does from now on."""
        given, self._weight = self._weight, None
        if given is None:
            raise ValueError("the weight was given before")
        return given


class _Linear:
    """A linear module without the cost of calling a module; anything else (an adapter) as it is."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._plain = _plain(module)
        self._turned: Tensor | None = module.weight.t() if self._plain and module.bias is None else None

    def __call__(self, rows: Tensor) -> Tensor:
        # The parameter itself, not a view of it: autocast casts a parameter once and keeps it.
        found: Tensor = F.linear(rows, self._module.weight, self._module.bias) if self._plain else self._module(rows)
        return found

    def added_to(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """The sum of both: in one call and in place, where all are of one type."""
        if self._turned is None or not hidden.dtype == rows.dtype == self._turned.dtype:
            return hidden + self(rows)
        return hidden.addmm_(rows, self._turned)


def _normed_products(
    norm: Any, linears: Sequence[Any], dtype: torch.dtype, join: bool
) -> tuple[_Norm, Callable[..., Tensor]]:
    """A norm, and the linear modules that read what it normed as one map to all their outputs side by side.

    The map writes to `out` where it is given one.
    """
    before = _Norm(norm)
    if not join or not all(_plain(linear) for linear in linears):
        apart = [_Linear(linear) for linear in linears]
        return before, lambda rows, out=None: torch.cat([linear(rows) for linear in apart], -1, out=out)
    weight = torch.cat([linear.weight for linear in linears]).to(dtype)
    if dtype == torch.float32:
        # The norm's weight rides on the copy. In 16 bits it would be rounded once more.
        weight *= before.give_weight()
    turned = weight.t()
    if linears[0].bias is None:
        return before, lambda rows, out=None: torch.mm(rows.to(dtype), turned, out=out)
    bias = torch.cat([linear.bias for linear in linears]).to(dtype)
    return before, lambda rows, out=None: torch.addmm(bias, rows.to(dtype), turned, out=out)


def _stacked(ours: Tensor, theirs: Tensor, longest: int) -> Tensor:
    """Two (…, keys, D) behind each other along the first dimension, filled up to so many keys with zeros."""
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[-2])) for part in (ours, theirs)])


def _plain(module: Any) -> bool:
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks
