"""Attention over one packed row ``prompt | branch | branch | ... | prompt | branch | ...``, without a mask of its size.

A prompt's tokens see the prompt up to themselves; a branch's tokens see the whole prompt of their group and their own
branch up to themselves. The function is registered with transformers as ``shared_prefix`` and set on the text config
alone; without a layout it is the stock sdpa. The layout travels as a keyword argument, since what checkpointed layers
compute again going backward runs after the forward pass has returned. Source of the merged form: partial attention
joined by log-sum-exp, as in FlashAttention (arXiv 2307.08691) and ring attention (arXiv 2310.01889); used so by us.
Not here: what stands in the row (shared_prefix.py), decoding (rollout.py).

Shapes: T tokens of the row, H query heads, K key heads, R = H/K, D head size; per group P prompt tokens, S tokens of
its branches; N branches of all groups, C tokens of the longest branch, M branch tokens of all groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "shared_prefix"

Method = Literal["merged", "joined"]
"""merged: a branch's attention to the prompt and to itself are computed apart and merged exactly; nothing is copied
per branch and nothing but queries, keys, values and the result is kept. CPU. joined: every branch gets the prompt's
keys and values in front of its own; the library's kernels do the rest. Any device."""


@dataclass(frozen=True, slots=True)
class Group:
    """Where one prompt and its branches stand in the row."""

    start: int
    prompt: int
    """P"""
    branches: tuple[int, ...]
    """Tokens of each branch."""

    @property
    def suffix(self) -> int:
        """S"""
        return sum(self.branches)

    @property
    def end(self) -> int:
        """The first token after the group."""
        return self.start + self.prompt + self.suffix


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A packed row. `lay_out` makes one."""

    groups: tuple[Group, ...]
    method: Method
    branch_tokens_M: Tensor
    """Where in the row each branch token stands."""
    padded_NC: Tensor
    """Per branch, where in the row its tokens stand, filled up with its last one."""
    real_NC: Tensor | None
    """True where a branch has a token; None where all branches are of one length."""
    flat_M: Tensor
    """Where in the flattened padded_NC each branch token stands."""


def lay_out(shapes: Sequence[tuple[int, Sequence[int]]], method: Method, device: torch.device) -> Layout:
    """The layout of groups, given as prompt length and branch lengths, one after the other. No length may be 0."""
    starts = itertools.accumulate((prompt + sum(branches) for prompt, branches in shapes), initial=0)
    groups = tuple(
        Group(start, prompt, tuple(branches)) for start, (prompt, branches) in zip(starts, shapes, strict=False)
    )
    lengths_N = torch.tensor([length for group in groups for length in group.branches])
    begins_N = torch.tensor(
        [
            begin
            for group in groups
            for begin in itertools.accumulate(group.branches[:-1], initial=group.start + group.prompt)
        ]
    )
    columns_C = torch.arange(int(lengths_N.max()))
    real_NC = columns_C < lengths_N[:, None]
    padded_NC = begins_N[:, None] + torch.minimum(columns_C, lengths_N[:, None] - 1)
    return Layout(
        groups=groups,
        method=method,
        branch_tokens_M=padded_NC[real_NC].to(device),
        padded_NC=padded_NC.to(device),
        real_NC=None if bool(real_NC.all()) else real_NC.to(device),
        flat_M=real_NC.flatten().nonzero()[:, 0].to(device),
    )


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, T, D) queries, (1, K, T, D) keys and values to (1, T, H, D)."""
    if shared_prefix is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        # Norms of queries and keys leave them in another type than the values; the kernels below take one.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if shared_prefix.method == "merged":
        merged: Tensor = _Merged.apply(query[0], key[0], value[0], shared_prefix, scale)  # type: ignore[no-untyped-call]
        return merged[None], None
    return _joined(query, key, value, shared_prefix, scale), None


AttentionInterface.register(NAME, shared_prefix_attention)
# Without a layout (decoding, plain forwards) masks are made as for the stock function.
AttentionMaskInterface.register(NAME, sdpa_mask)


def _joined(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """(1, T, H, D) by the library's attention, group by group."""
    repeats = query.shape[1] // key.shape[1]
    # Repeated before the call: with a mask and enable_gqa, CUDA falls back to its slowest kernel.
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    out: list[Tensor] = []
    for group in layout.groups:
        middle = group.start + group.prompt
        own = slice(group.start, middle)
        before = F.scaled_dot_product_attention(
            query[:, :, own], key[:, :, own], value[:, :, own], is_causal=True, scale=scale
        )
        longest = max(group.branches)

        def branches(tensor: Tensor, group: Group = group, middle: int = middle, longest: int = longest) -> Tensor:
            parts = torch.split(tensor[0, :, middle : group.end], list(group.branches), 1)
            return torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])

        count = len(group.branches)
        # Padding stands after a branch's last token, so lower-right causality hides it.
        behind = F.scaled_dot_product_attention(
            branches(query),
            torch.cat([key[:, :, own].expand(count, -1, -1, -1), branches(key)], 2),
            torch.cat([value[:, :, own].expand(count, -1, -1, -1), branches(value)], 2),
            attn_mask=causal_lower_right(longest, group.prompt + longest),
            scale=scale,
        )
        out.append(before[0])
        out.extend(behind[n, :, :length] for n, length in enumerate(group.branches))
    return torch.cat(out, 1).transpose(0, 1)[None]


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_NOWHERE = 1e30  # a log-sum-exp so large that a padded query attends to nothing


class _Merged(torch.autograd.Function):
    """(H, T, D) queries, (K, T, D) keys and values to (T, H, D).

    Going backward, each part of the attention is given the whole result and the whole log-sum-exp: then its gradients
    are its share of the whole's, and the shares add up.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        heads, tokens, size = query.shape
        repeats = heads // key.shape[0]
        out_THD = query.new_empty(tokens, heads, size)
        sums_HT = torch.empty(heads, tokens, dtype=torch.float32, device=query.device)
        for group in layout.groups:
            own, rest = _spans(group)
            found, sums = _flash(
                query[None, :, own],
                _repeat(key[None, :, own], repeats),
                _repeat(value[None, :, own], repeats),
                0.0,
                True,
                scale=scale,
            )
            out_THD[own], sums_HT[:, own] = found[0].transpose(0, 1), sums[0]
            # Every query of every branch sees the whole prompt: the heads that share a key become more queries of it.
            found, sums = _flash(
                _fold(query[:, rest], repeats), key[None, :, own], value[None, :, own], 0.0, False, scale=scale
            )
            out_THD[rest] = found.reshape(heads, -1, size).transpose(0, 1)
            sums_HT[:, rest] = sums.reshape(heads, -1)
        found, sums = _flash(
            _branches(query, layout),
            _repeat(_branches(key, layout), repeats),
            _repeat(_branches(value, layout), repeats),
            0.0,
            True,
            scale=scale,
        )
        own_MHD = found.transpose(1, 2).flatten(0, 1)[layout.flat_M]
        own_HM = sums.transpose(0, 1).flatten(1)[:, layout.flat_M]
        prompt_HM = sums_HT[:, layout.branch_tokens_M]
        all_HM = torch.logaddexp(prompt_HM, own_HM)
        sums_HT[:, layout.branch_tokens_M] = all_HM
        share_MH1 = (own_HM - all_HM).exp().transpose(0, 1)[..., None].to(query.dtype)
        prompt_MHD = out_THD[layout.branch_tokens_M]
        out_THD[layout.branch_tokens_M] = torch.lerp(prompt_MHD, own_MHD, share_MH1.expand_as(own_MHD))
        ctx.save_for_backward(query, key, value, out_THD, sums_HT)
        ctx.layout, ctx.scale = layout, scale
        return out_THD

    @staticmethod
    def backward(ctx: Any, gradient_THD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out_THD, sums_HT = ctx.saved_tensors
        layout: Layout = ctx.layout
        scale: float = ctx.scale
        heads, _, size = query.shape
        repeats = heads // key.shape[0]
        gradient, out = gradient_THD.transpose(0, 1), out_THD.transpose(0, 1)
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for group in layout.groups:
            own, rest = _spans(group)
            first = _flash_backward(
                gradient[None, :, own],
                query[None, :, own],
                _repeat(key[None, :, own], repeats),
                _repeat(value[None, :, own], repeats),
                out[None, :, own],
                sums_HT[None, :, own],
                0.0,
                True,
                scale=scale,
            )
            second = _flash_backward(
                _fold(gradient[:, rest], repeats),
                _fold(query[:, rest], repeats),
                key[None, :, own],
                value[None, :, own],
                _fold(out[:, rest], repeats),
                sums_HT[:, rest].reshape(1, heads // repeats, -1),
                0.0,
                False,
                scale=scale,
            )
            of_query[:, own] = first[0][0]
            of_query[:, rest] = second[0].reshape(heads, -1, size)
            of_key[:, own] = _sum_repeats(first[1], repeats)[0] + second[1][0]
            of_value[:, own] = _sum_repeats(first[2], repeats)[0] + second[2][0]
        gradient_NHCD, sums_NHC = _branches(gradient, layout), sums_HT[:, layout.padded_NC].transpose(0, 1)
        if layout.real_NC is not None:
            hidden_N1C = ~layout.real_NC[:, None]
            gradient_NHCD = gradient_NHCD.masked_fill(hidden_N1C[..., None], 0)
            sums_NHC = sums_NHC.masked_fill(hidden_N1C, _NOWHERE)
        third = _flash_backward(
            gradient_NHCD,
            _branches(query, layout),
            _repeat(_branches(key, layout), repeats),
            _repeat(_branches(value, layout), repeats),
            _branches(out, layout),
            sums_NHC,
            0.0,
            True,
            scale=scale,
        )
        of_query[:, layout.branch_tokens_M] += _in_row(third[0], layout)
        of_key[:, layout.branch_tokens_M] = _in_row(_sum_repeats(third[1], repeats), layout)
        of_value[:, layout.branch_tokens_M] = _in_row(_sum_repeats(third[2], repeats), layout)
        return of_query, of_key, of_value, None, None


def _spans(group: Group) -> tuple[slice, slice]:
    middle = group.start + group.prompt
    return slice(group.start, middle), slice(middle, group.end)


def _repeat(tensor: Tensor, repeats: int) -> Tensor:
    """(., K, ...) to (., H, ...)."""
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 1)


def _sum_repeats(tensor: Tensor, repeats: int) -> Tensor:
    """(., H, L, D) gradients of repeated heads to (., K, L, D)."""
    batch, heads, tokens, size = tensor.shape
    return tensor if repeats == 1 else tensor.reshape(batch, heads // repeats, repeats, tokens, size).sum(2)


def _fold(tensor: Tensor, repeats: int) -> Tensor:
    """(H, S, D) to (1, K, R·S, D)."""
    heads, tokens, size = tensor.shape
    return tensor.reshape(1, heads // repeats, repeats * tokens, size)


def _branches(tensor: Tensor, layout: Layout) -> Tensor:
    """(., T, D) to (N, ., C, D)."""
    return tensor[:, layout.padded_NC].transpose(0, 1)


def _in_row(tensor: Tensor, layout: Layout) -> Tensor:
    """(N, ., C, D) to (., M, D)."""
    return tensor.transpose(0, 1).flatten(1, 2)[:, layout.flat_M]
