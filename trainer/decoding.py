"""The text stack one word at a time: many branches behind heads whose keys are kept once, with few calls per word.

transformers' own forward rebuilds masks, rotary tables and caches for every word, and a batch of branches would need
the head's keys once per branch. Here a step is the layers' own arithmetic: queries of all branches of a head meet its
keys in one product, their own keys in another, and one softmax joins both. Weights stay where they are (adapters work);
small models get theirs joined into fewer products. Exact: tested against the stock forward. The arrangement is ours.
Not here: choosing words (sampling.py), which branches there are (rollout.py), gradients (shared_prefix.py).

Shapes: N heads (rows), P keys of a head, B branches, W branches side by side of one head (padded to the widest),
L words fed at once, S keys of a branch so far, Q query heads, K key heads, R = Q / K, D head size, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model import Screener

_JOINED = 100_000_000
"""Parameters of a text stack up to which projections are joined for a rollout: a copy of the weights, fewer calls."""


class HeadKeys:
    """What the heads left in the cache: keys and values of each layer, each head's once."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], lengths_N: Tensor, dtype: torch.dtype) -> None:
        self.layers = [(keys.to(dtype), values.to(dtype)) for keys, values in layers]
        """(N, K, P, D) each."""
        self.lengths_N = lengths_N
        self.bias_N1P = self._bias(self.layers[0][0].shape[2])

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the heads only."""
        longest = int(self.lengths_N[rows].max())
        self.layers = [(keys[rows, :, :longest], values[rows, :, :longest]) for keys, values in self.layers]
        self.lengths_N = self.lengths_N[rows]
        self.bias_N1P = self._bias(longest)

    def _bias(self, longest: int) -> Tensor | None:
        if bool((self.lengths_N == longest).all()):
            return None
        beyond_NP = torch.arange(longest, device=self.lengths_N.device) >= self.lengths_N[:, None]
        zero = torch.zeros((), dtype=self.layers[0][0].dtype, device=beyond_NP.device)
        return zero.masked_fill(beyond_NP, torch.finfo(zero.dtype).min)[:, None]


class BranchDecoder:
    """Feeds words of branches to the text stack and answers with hidden states; holds the branches' own keys.

    `rows` is each branch's head, ascending. All branches start where their head ends (`start_positions`).
    """

    def __init__(
        self, screener: Screener, heads: HeadKeys, rows: Sequence[int], start_positions: Sequence[int]
    ) -> None:
        stack = screener.model.model.language_model
        attention = stack.layers[0].self_attn
        self._stack = stack
        self._embed = screener.model.get_input_embeddings()
        self._heads = heads
        self._device = screener.device
        self._size = int(attention.head_dim)
        self._scale = float(attention.scaling)
        config = stack.config
        self._query_heads, self._key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._dtype = heads.layers[0][0].dtype
        join = sum(weight.numel() for weight in stack.parameters()) <= _JOINED
        self._layers = [_Layer(layer, join=join, dtype=self._dtype) for layer in stack.layers]
        self._kept: list[tuple[Tensor, Tensor]] = []
        """Per layer, (B, K, room, D) keys and values of the branches' own words."""
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
        if bool((lengths == longest).all()):
            words_BL = torch.tensor(words)
        else:
            words_BL = torch.tensor([[*some, *[0] * (longest - len(some))] for some in words])
        before = self._filled
        even = bool((before == before[0]).all())
        places_BL = before[:, None] + torch.arange(longest)
        cos, sin = self._tables(self._starts[:, None] + places_BL)
        self._make_room(int(before.max()) + longest)
        bias = self._own_bias(places_BL, even)
        # Even branches write one slice; uneven ones, each to its own place.
        into: slice | tuple[Tensor, Tensor]
        if even:
            into = slice(int(before[0]), int(before[0]) + longest)
            seen = int(before[0]) + longest
        else:
            into = (torch.arange(len(words))[:, None].to(self._device), places_BL.to(self._device))
            seen = int(before.max()) + longest
        hidden_BLH = self._embed(words_BL.to(self._device))
        for place, layer in enumerate(self._layers):
            hidden_BLH = self._through(place, layer, hidden_BLH, cos, sin, into, seen, bias)
        self._filled = before + lengths
        last_BH = hidden_BLH[:, -1] if even and longest == 1 else hidden_BLH[torch.arange(len(words)), lengths - 1]
        out: Tensor = self._stack.norm(last_BH)
        return out

    def keep(self, branches: Sequence[int]) -> None:
        """Go on with some of the branches only; heads without any leave once they are a quarter."""
        chosen = torch.tensor(branches)
        on_device = chosen.to(self._device)
        self._kept = [(keys[on_device], values[on_device]) for keys, values in self._kept]
        self._filled, self._starts = self._filled[chosen], self._starts[chosen]
        rows = [self._rows[branch] for branch in branches]
        needed = sorted(set(rows))
        if len(needed) <= 0.75 * len(self._heads.lengths_N):
            self._heads.keep(torch.tensor(needed, device=self._device))
            place_of = {row: place for place, row in enumerate(needed)}
            rows = [place_of[row] for row in rows]
        self._lay_out(rows)

    def _lay_out(self, rows: list[int]) -> None:
        """Where each branch stands in a grid of heads × branches side by side."""
        self._rows = rows
        heads = len(self._heads.lengths_N)
        used = [0] * heads
        slots = []
        for row in rows:
            slots.append((row, used[row]))
            used[row] += 1
        self._wide = max(used)
        dense = len(rows) == heads * self._wide
        self._slots_B = (
            None if dense else torch.tensor([row * self._wide + slot for row, slot in slots], device=self._device)
        )

    def _through(
        self,
        place: int,
        layer: _Layer,
        hidden_BLH: Tensor,
        cos: Tensor,
        sin: Tensor,
        into: slice | tuple[Tensor, Tensor],
        seen: int,
        bias: Tensor | None,
    ) -> Tensor:
        branches, length, _ = hidden_BLH.shape
        query, key, value = layer.project(hidden_BLH, self._query_heads, self._key_heads, self._size, cos, sin)
        keys, values = self._kept[place]
        if isinstance(into, slice):
            keys[:, :, into], values[:, :, into] = key.transpose(1, 2), value.transpose(1, 2)
        else:
            keys.transpose(1, 2)[into], values.transpose(1, 2)[into] = key, value
        mixed = self._attend(place, query, keys[:, :, :seen], values[:, :, :seen], bias)
        return layer.finish(hidden_BLH, mixed.reshape(branches, length, -1))

    def _attend(
        self, place: int, query_BLQD: Tensor, keys_BKSD: Tensor, values_BKSD: Tensor, bias: Tensor | None
    ) -> Tensor:
        """One softmax over the head's keys and the branch's own: (B, L, Q, D)."""
        branches, length, _, size = query_BLQD.shape
        heads, kinds = len(self._heads.lengths_N), self._key_heads
        repeated = self._query_heads // kinds
        head_keys, head_values = self._heads.layers[place]
        longest, seen, wide = head_keys.shape[2], keys_BKSD.shape[2], self._wide
        # Queries of one key head stand together: (B, K, R·L, D).
        query_BKMD = (
            query_BLQD.view(branches, length, kinds, repeated, size)
            .permute(0, 2, 3, 1, 4)
            .reshape(branches, kinds, repeated * length, size)
        )
        each = repeated * length
        gridded = self._grid(query_BKMD)
        far = gridded.view(heads, wide, kinds, each, size).transpose(1, 2).reshape(heads * kinds, wide * each, size)
        far_keys = head_keys.reshape(heads * kinds, longest, size).transpose(1, 2)
        if self._heads.bias_N1P is None:
            far_scores = torch.bmm(far, far_keys).mul_(self._scale)
        else:
            beyond = self._heads.bias_N1P.repeat_interleave(kinds, 0)
            far_scores = torch.baddbmm(beyond, far, far_keys, alpha=self._scale)
        near = query_BKMD.reshape(branches * kinds, each, size)
        near_scores = torch.bmm(near, keys_BKSD.reshape(branches * kinds, seen, size).transpose(1, 2)).mul_(self._scale)
        far_scores = self._ungrid(far_scores.view(heads, kinds, wide, each, longest).transpose(1, 2))
        scores = torch.cat([far_scores, near_scores.view(branches, kinds, each, seen)], -1)
        if bias is not None:
            scores[..., longest:] += bias.repeat(1, 1, repeated, 1)
        weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        far_weights = self._grid(weights[..., :longest])
        far_weights = far_weights.view(heads, wide, kinds, each, longest).transpose(1, 2)
        mixed = torch.bmm(
            far_weights.reshape(heads * kinds, wide * each, longest), head_values.reshape(heads * kinds, longest, size)
        )
        mixed = self._ungrid(mixed.view(heads, kinds, wide, each, size).transpose(1, 2))
        own = torch.bmm(
            weights[..., longest:].reshape(branches * kinds, each, seen),
            values_BKSD.reshape(branches * kinds, seen, size),
        )
        both = mixed + own.view(branches, kinds, each, size)
        return both.view(branches, kinds, repeated, length, size).permute(0, 3, 1, 2, 4)

    def _grid(self, part: Tensor) -> Tensor:
        """(B, …) as (N·W, …): places without a branch are zeros."""
        if self._slots_B is None:
            return part
        grid = part.new_zeros(len(self._heads.lengths_N) * self._wide, *part.shape[1:])
        return grid.index_copy_(0, self._slots_B, part)

    def _ungrid(self, grid: Tensor) -> Tensor:
        """(N, W, …) as (B, …)."""
        flat = grid.reshape(-1, *grid.shape[2:])
        return flat if self._slots_B is None else flat[self._slots_B]

    def _own_bias(self, places_BL: Tensor, even: bool) -> Tensor | None:
        """Which of its own keys each new word sees, as (B or 1, 1, L, S) to add; None: all there are."""
        length = places_BL.shape[1]
        if even and length == 1:
            return None
        seen = int(places_BL.max()) + 1
        places_BL = places_BL[:1] if even else places_BL
        hidden = torch.arange(seen) > places_BL[:, None, :, None]
        zero = torch.zeros((), dtype=self._dtype)
        return zero.masked_fill(hidden, torch.finfo(self._dtype).min).to(self._device)

    def _tables(self, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine (B, L, 1, D) at positions; computed for many words ahead."""
        last = int(positions_BL.max())
        if last >= len(self._rotary[0]):
            every = torch.arange(last + 256, device=self._device)
            # Words have one position on all three axes of a multimodal rope: one row of its tables serves.
            sample = torch.zeros((), dtype=self._dtype, device=self._device)
            cos, sin = self._stack.rotary_emb(sample, every.expand(3, 1, -1) if self._multimodal else every[None])
            half = self._size // 2
            self._rotary = cos.reshape(-1, 1, self._size), sin.reshape(-1, 1, self._size).clone()
            self._rotary[1][..., :half].neg_()
        where = positions_BL.to(self._device)
        return self._rotary[0][where], self._rotary[1][where]

    @property
    def _multimodal(self) -> bool:
        return "mrope_section" in (self._stack.config.rope_parameters or {})

    def _make_room(self, needed: int) -> None:
        room = self._kept[0][0].shape[2] if self._kept else 0
        if needed <= room:
            return
        shape = (len(self._filled), self._key_heads, max(64, needed + needed // 2), self._size)
        grown = []
        for place in range(len(self._layers)):
            # Zeros, not what happens to be in memory: weights of hidden keys are 0, and 0 × NaN is not.
            pair = tuple(torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2))
            if room:
                for new, old in zip(pair, self._kept[place], strict=True):
                    new[:, :, :room] = old
            grown.append((pair[0], pair[1]))
        self._kept = grown


class _Layer:
    """One decoder layer's arithmetic around its attention, by its own modules or by joined copies of their weights."""

    def __init__(self, layer: Any, *, join: bool, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer = layer
        self._norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        plain = all(
            type(module) is torch.nn.Linear
            for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        )
        self._qkv = _joined((attention.q_proj, attention.k_proj, attention.v_proj), dtype) if join and plain else None
        self._gate_up = _joined((mlp.gate_proj, mlp.up_proj), dtype) if join and plain else None

    def project(
        self, hidden_BLH: Tensor, query_heads: int, key_heads: int, size: int, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, L, Q, D), keys and values (B, L, K, D), turned to their positions."""
        attention = self._layer.self_attn
        hidden_BLH = _rms(self._layer.input_layernorm, hidden_BLH)
        shape = (*hidden_BLH.shape[:2], -1, size)
        if self._qkv:
            query, key, value = self._qkv(hidden_BLH).view(shape).split([query_heads, key_heads, key_heads], 2)
        else:
            query = attention.q_proj(hidden_BLH).view(shape)
            key, value = attention.k_proj(hidden_BLH).view(shape), attention.v_proj(hidden_BLH).view(shape)
        if self._norms[0] is not None:
            query, key = _rms(self._norms[0], query), _rms(self._norms[1], key)
        return _turned(query, cos, sin), _turned(key, cos, sin), value

    def finish(self, hidden_BLH: Tensor, mixed_BLH: Tensor) -> Tensor:
        """The layer's output from what its attention mixed."""
        mlp = self._layer.mlp
        hidden_BLH = hidden_BLH + self._layer.self_attn.o_proj(mixed_BLH)
        normed_BLH = _rms(self._layer.post_attention_layernorm, hidden_BLH)
        if self._gate_up:
            gate, up = self._gate_up(normed_BLH).chunk(2, -1)
            return hidden_BLH + mlp.down_proj(mlp.act_fn(gate) * up)
        out: Tensor = hidden_BLH + mlp(normed_BLH)
        return out


def _rms(norm: Any, x: Tensor) -> Tensor:
    """A root-mean-square norm of transformers in one call."""
    return F.rms_norm(x.float(), (x.shape[-1],), None, norm.variance_epsilon).to(x.dtype) * norm.weight


def _turned(x_BLHD: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    return torch.addcmul(x_BLHD * cos, x_BLHD.roll(x_BLHD.shape[-1] // 2, -1), signed_sin).to(cos.dtype)


def _joined(linears: Sequence[Any], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = torch.cat([linear.weight for linear in linears]).to(dtype)
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears]).to(dtype)
    return lambda hidden: F.linear(hidden.to(dtype), weight, bias)
