"""The text stack one word at a time: many branches behind heads whose keys are kept once, with few calls per word.

transformers' own forward rebuilds masks, rotary tables and caches for every word, and a batch of branches would need
the head's keys once per branch. Here a step is the layers' own arithmetic: queries of all branches of a head meet its
keys in one product, their own keys in another, and one softmax joins both. Weights stay where they are (adapters work);
small models get theirs joined into fewer products. Exact: tested against the stock forward. The arrangement is ours.
Not here: choosing words (sampling.py), which branches there are (rollout.py), gradients (shared_prefix.py).

Shapes: N heads, P keys of a head, B branches, W places of a head side by side (as many as its widest has branches; a
place without a branch computes something that nobody reads), L words fed at once, S keys of a branch so far, Q query
heads of a layer, K key heads, R = Q / K, D head size, H hidden width, M = B·L words fed.
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
        self._own: list[tuple[Tensor, Tensor]] = []
        """Per layer, (N, K, W, room, D) keys and values of the branches' own words."""
        self._filled = torch.zeros(len(rows), dtype=torch.long)
        """(B,) on the CPU: words fed so far."""
        self._starts = torch.tensor(list(start_positions))
        self._rotary = torch.zeros(0), torch.zeros(0)
        self._lay_out(list(rows))

    def feed(self, words: Sequence[Sequence[int]]) -> Tensor:
        """Append each branch's next words; (B, H) hidden states of the last of each.

        Lists of different lengths are padded on the right: padding is overwritten by what comes next.
        """
        lengths = torch.tensor([len(some) for some in words])
        longest = int(lengths.max())
        ragged = not bool((lengths == longest).all())
        words_BL = torch.tensor([[*some, *[0] * (longest - len(some))] for some in words] if ragged else words)
        places_BL = self._filled[:, None] + torch.arange(longest)
        even = bool((self._filled == self._filled[0]).all())
        seen = int(places_BL.max()) + 1
        self._make_room(seen)
        # Even branches write one slice; uneven ones, each into its own place.
        into = slice(seen - longest, seen) if even else places_BL.to(self._device)
        cos, sin = self._tables(self._starts[:, None] + places_BL)
        bias = None if even and longest == 1 else self._own_bias(places_BL, seen)
        # Every word a row: products of two dimensions take fewer calls than of three.
        hidden_MH = self._embed(words_BL.to(self._device)).flatten(0, 1)
        for layer, own, head in zip(self._layers, self._own, self._heads.flat, strict=True):
            query, key, value = layer.project(hidden_MH, cos, sin)
            self._write(own, key, value, into)
            mixed_BLH = self._attend(head, own, query, seen, bias)
            hidden_MH = layer.finish(hidden_MH, mixed_BLH.flatten(0, 1))
        self._filled = self._filled + lengths
        if longest > 1:
            hidden_MH = hidden_MH[torch.arange(len(words)) * longest + lengths - 1]
        return self._norm(hidden_MH)

    def keep(self, branches: Sequence[int]) -> None:
        """Go on with some of the branches only; heads without any leave once they are a quarter."""
        chosen = torch.tensor(branches)
        own = self._of_branches(chosen)
        self._filled, self._starts = self._filled[chosen], self._starts[chosen]
        kept = [self._rows[branch] for branch in branches]
        needed = sorted(set(kept))
        if len(needed) <= 0.75 * len(self._heads.lengths_N):
            self._heads.keep(torch.tensor(needed, device=self._device))
            place_of = {row: place for place, row in enumerate(needed)}
            kept = [place_of[row] for row in kept]
        self._lay_out(kept)
        self._own = [(self._in_places(keys), self._in_places(values)) for keys, values in own]

    def take_in(self, other: BranchDecoder) -> None:
        """Go on with another batch's heads and branches behind ours."""
        ours, theirs = (part._of_branches(torch.arange(len(part._rows))) for part in (self, other))
        if not (ours and theirs):
            # A side that was fed nothing yet has no keys of its own.
            room = (ours or theirs)[0][0].shape[2] if ours or theirs else 0
            ours, theirs = (
                own or [part._no_keys(len(part._rows), room) for _ in self._layers]
                for own, part in ((ours, self), (theirs, other))
            )
        behind = len(self._heads.lengths_N)
        self._heads.take_in(other._heads)
        self._filled = torch.cat([self._filled, other._filled])
        self._starts = torch.cat([self._starts, other._starts])
        self._lay_out([*self._rows, *(behind + row for row in other._rows)])
        room = max(ours[0][0].shape[2], theirs[0][0].shape[2])
        self._own = [
            (self._in_places(_stacked(a[0], b[0], room)), self._in_places(_stacked(a[1], b[1], room)))
            for a, b in zip(ours, theirs, strict=True)
            if room
        ]

    def _of_branches(self, chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per layer, (B, K, room, D) keys and values of some branches."""
        chosen = chosen.to(self._device)
        rows, slots = self._rows_B[chosen], self._slots_B[chosen]
        return [(keys[rows, :, slots], values[rows, :, slots]) for keys, values in self._own]

    def _no_keys(self, branches: int, room: int) -> tuple[Tensor, Tensor]:
        shape = (branches, self._key_heads, room, self._size)
        return torch.zeros(shape, dtype=self._dtype, device=self._device), torch.zeros(
            shape, dtype=self._dtype, device=self._device
        )

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

    def _in_places(self, kept_BKSD: Tensor) -> Tensor:
        """(B, K, room, D) as (N, K, W, room, D); zeros where no branch stands: never NaN, whose product is not 0."""
        _, kinds, room, size = kept_BKSD.shape
        placed = kept_BKSD.new_zeros(len(self._heads.lengths_N), self._wide, kinds, room, size)
        placed[self._rows_B, self._slots_B] = kept_BKSD
        return placed.transpose(1, 2).contiguous()

    def _grid(self, part: Tensor) -> Tensor:
        """(B, …) as (N, W, …)."""
        if self._dense:
            return part.view(-1, self._wide, *part.shape[1:])
        grid = part.new_zeros(len(self._heads.lengths_N), self._wide, *part.shape[1:])
        grid[self._rows_B, self._slots_B] = part
        return grid

    def _write(self, own: tuple[Tensor, Tensor], key_BLKD: Tensor, value_BLKD: Tensor, into: slice | Tensor) -> None:
        for kept, new in zip(own, (key_BLKD, value_BLKD), strict=True):
            if isinstance(into, slice):
                kept[:, :, :, into] = self._grid(new).permute(0, 3, 1, 2, 4)
            else:
                kept[self._rows_B[:, None], :, self._slots_B[:, None], into] = new.to(kept.dtype)

    def _attend(
        self,
        head: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        query_BLQD: Tensor,
        seen: int,
        bias: Tensor | None,
    ) -> Tensor:
        """One softmax over the head's keys and the branch's own: (B, L, Q·D)."""
        branches, length, queries, size = query_BLQD.shape
        kinds, wide = self._key_heads, self._wide
        repeated = queries // kinds
        head_keys, head_values = head
        longest = head_keys.shape[2]
        # All queries of one head and key head stand together, place by place: (N·K, W·R·L, D).
        grid = self._grid(query_BLQD).view(-1, wide, length, kinds, repeated, size)
        query = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, wide * repeated * length, size)
        if self._heads.bias is None:
            far = torch.bmm(query, head_keys)
        else:
            far = torch.baddbmm(self._heads.bias, query, head_keys)
        near_keys = own[0][:, :, :, :seen].flatten(0, 2)
        near = torch.bmm(query.view(len(near_keys), -1, size), near_keys.mT)
        if bias is not None:
            near = near.view(-1, kinds, wide, repeated, length, seen).add_(bias)
        scores = torch.cat([far, near.view(*far.shape[:2], seen)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        mixed = torch.bmm(weights[..., :longest], head_values)
        near_weights = weights[..., longest:].view(len(near_keys), -1, seen)
        mixed += torch.bmm(near_weights, own[1][:, :, :, :seen].flatten(0, 2)).view(mixed.shape)
        grid = mixed.view(-1, kinds, wide, repeated, length, size).permute(0, 2, 4, 1, 3, 5)
        if self._dense:
            return grid.reshape(branches, length, queries * size)
        return grid[self._rows_B, self._slots_B].reshape(branches, length, queries * size)

    def _own_bias(self, places_BL: Tensor, seen: int) -> Tensor:
        """What each new word must not see of its branch's keys: (N, 1, W, 1, L, S) to add."""
        hidden_BLS = torch.arange(seen) > places_BL[:, :, None]
        bias_BLS = torch.zeros(hidden_BLS.shape, dtype=self._dtype)
        bias_BLS.masked_fill_(hidden_BLS, torch.finfo(self._dtype).min)
        return self._grid(bias_BLS.to(self._device))[:, None, :, None]

    def _tables(self, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine (B, L, 1, D) at positions; computed for many words ahead."""
        last = int(positions_BL.max())
        if last >= len(self._rotary[0]):
            every = torch.arange(last + 256, device=self._device)
            # Words have one position on all three axes of a multimodal rope: any of its tables serves.
            multimodal = "mrope_section" in (self._stack.config.rope_parameters or {})
            sample = torch.zeros((), dtype=self._dtype, device=self._device)
            cos, sin = self._stack.rotary_emb(sample, every.expand(3, 1, -1) if multimodal else every[None])
            signed = torch.cat([-sin[..., : self._size // 2], sin[..., self._size // 2 :]], -1)
            self._rotary = cos.reshape(-1, 1, self._size), signed.reshape(-1, 1, self._size)
        where = positions_BL.to(self._device)
        return self._rotary[0][where], self._rotary[1][where]

    def _make_room(self, needed: int) -> None:
        room = self._own[0][0].shape[3] if self._own else 0
        if needed <= room:
            return
        grown_room = max(64, needed + needed // 2)
        if not room:
            shape = (len(self._heads.lengths_N), self._key_heads, self._wide, grown_room, self._size)
            for _ in self._layers:
                empty = [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2)]
                self._own.append((empty[0], empty[1]))
            return
        more = (0, 0, 0, grown_room - room)
        self._own = [(F.pad(keys, more), F.pad(values, more)) for keys, values in self._own]


class _Layer:
    """One decoder layer's arithmetic around its attention, by its own modules or by joined copies of their weights."""

    def __init__(
        self, layer: Any, query_heads: int, key_heads: int, size: int, *, join: bool, dtype: torch.dtype
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._heads = query_heads, key_heads
        self._size = size
        self._before, self._after = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
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
        self._q, self._k, self._v, self._o = (
            _linear(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        )
        self._mlp, self._activation, self._down = mlp, mlp.act_fn, _linear(mlp.down_proj)
        ins = attention.q_proj, attention.k_proj, attention.v_proj
        ups = mlp.gate_proj, mlp.up_proj
        self._qkv = _joined(ins, dtype) if join else None
        self._gate_up = _joined(ups, dtype) if join else None

    def project(self, hidden_MH: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries (B, L, Q, D), keys and values (B, L, K, D), turned to their positions."""
        queries, keys = self._heads
        hidden_MH = self._before(hidden_MH)
        shape = (*cos.shape[:2], -1, self._size)
        if self._qkv:
            every = self._qkv(hidden_MH).view(shape)
            both, value = every[:, :, : queries + keys], every[:, :, queries + keys :]
        else:
            both = torch.cat([self._q(hidden_MH).view(shape), self._k(hidden_MH).view(shape)], 2)
            value = self._v(hidden_MH).view(shape)
        if self._norm:
            both = self._norm(both)
        turned = torch.addcmul(both * cos, both.roll(self._size // 2, -1), sin).to(cos.dtype)
        query = turned[:, :, :queries]
        return query if self._norm else query * self._scale, turned[:, :, queries:], value.to(cos.dtype)

    def finish(self, hidden_MH: Tensor, mixed_MH: Tensor) -> Tensor:
        """The layer's output from what its attention mixed."""
        hidden_MH = hidden_MH + self._o(mixed_MH)
        normed_MH = self._after(hidden_MH)
        if self._gate_up:
            gate, up = self._gate_up(normed_MH).chunk(2, -1)
            return hidden_MH + self._down(self._activation(gate) * up)
        out: Tensor = hidden_MH + self._mlp(normed_MH)
        return out


class _Norm:
    """transformers' root-mean-square norm in fewer calls: x / √(|x|² + width·ε), times weight·√width."""

    def __init__(self, norm: Any, weight: Tensor | None = None) -> None:
        weight = (norm.weight if weight is None else weight).detach()
        width = weight.shape[-1]
        self._weight = weight.float() * width**0.5
        self._floor = torch.tensor((norm.variance_epsilon * width) ** 0.5, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        out: Tensor = (wide / torch.hypot(length, self._floor) * self._weight).to(x.dtype)
        return out


def _stacked(ours: Tensor, theirs: Tensor, longest: int) -> Tensor:
    """Two (…, …, keys, D) behind each other along the first dimension, filled up to so many keys with zeros."""
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in (ours, theirs)])


def _plain(module: Any) -> bool:
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks


def _linear(module: Any) -> Callable[[Tensor], Tensor]:
    """A linear module without the cost of calling a module; anything else (an adapter) as it is."""
    if not _plain(module):
        called: Callable[[Tensor], Tensor] = module
        return called
    return _product(module.weight, module.bias)


def _joined(linears: Sequence[Any], dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """Linear modules with one input as one product; None where one of them is something else."""
    if not all(_plain(linear) for linear in linears):
        return None
    weight = torch.cat([linear.weight for linear in linears]).to(dtype)
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears]).to(dtype)
    product = _product(weight, bias)
    return lambda hidden: product(hidden.to(dtype))


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear map of rows in one call."""
    turned = weight.t()
    if bias is None:
        return lambda rows: torch.mm(rows, turned)
    return lambda rows: torch.addmm(bias, rows, turned)
