"""Attention over one packed row ``prompt | branch | branch | ... | prompt | branch | ...``, without a mask of its size.

A prompt's tokens see the prompt up to themselves; a branch's tokens see the whole prompt of their group and their own
branch up to themselves. Prompts whose keys and values are there already are left out of the row and given beside it.
The function is registered with transformers as ``shared_prefix`` and set on the text config alone; without a layout it
is the stock sdpa. The layout travels as a keyword argument, since what checkpointed layers compute again going backward
runs after the forward pass has returned. Source of the merged form: partial attention joined by log-sum-exp, as in
FlashAttention (arXiv 2307.08691) and ring attention (arXiv 2310.01889); used so by us.
Not here: what stands in the row (shared_prefix.py), which queries the last layer needs (last_layer.py), decoding
(rollout.py).

Shapes: T tokens of the row, Q of them that ask, H query heads, K key heads, R = H/K, D head size; per group P prompt
tokens, S tokens of its branches; N branches of all groups, C tokens of the longest branch, M branch tokens of all
groups.
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

    own: slice
    """The prompt; empty where it is not in the row."""
    behind: slice
    """Its branches, one after the other."""
    prompt: int
    """P"""
    branches: tuple[int, ...]
    """Tokens of each branch."""

    @property
    def suffix(self) -> int:
        """S"""
        return sum(self.branches)


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """Which tokens of the row have a query, and where it stands among the queries: all of them, or the few that count.

    A prompt's last token sees what a branch's tokens see of the prompt: all of it. So it asks together with them where
    the other tokens of the prompt do not ask.
    """

    prompts: tuple[slice, ...] | None
    """Per group, the queries of its prompt's tokens, each of which sees those up to itself; None where none asks so."""
    rest: tuple[slice, ...]
    """Per group, the queries that see the whole prompt: those of its branches, and before them its last token's where
    that one asks alone."""
    branch_tokens_M: Tensor
    """The query of each branch token."""
    padded_NC: Tensor
    """Per branch, the queries of its tokens, filled up with its last one."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A packed row. `lay_out` makes one."""

    groups: tuple[Group, ...]
    method: Method
    every: Asking
    """All tokens ask: a query stands where its token stands."""
    last: Asking | None
    """Each prompt's last token and all branch tokens ask; None where there is no prompt in the row: all ask then."""
    last_rows_Q: Tensor
    """Where in the row the tokens of `last` stand."""
    real_NC: Tensor | None
    """True where a branch has a token; None where all branches are of one length."""
    flat_M: Tensor
    """Where in the flattened padded_NC each branch token stands."""


def lay_out(
    shapes: Sequence[tuple[int, Sequence[int]]], method: Method, device: torch.device, *, prompts_beside: bool = False
) -> Layout:
    """The layout of groups, given as prompt length and branch lengths, one after the other. No length may be 0.

    `prompts_beside`: the row holds the branches only.
    """
    groups: list[Group] = []
    at = 0
    for prompt, branches in shapes:
        middle = at if prompts_beside else at + prompt
        end = middle + sum(branches)
        groups.append(Group(slice(at, middle), slice(middle, end), prompt, tuple(branches)))
        at = end
    lengths_N = torch.tensor([length for group in groups for length in group.branches])
    begins_N = torch.tensor(
        [begin for group in groups for begin in itertools.accumulate(group.branches[:-1], initial=group.behind.start)]
    )
    columns_C = torch.arange(int(lengths_N.max()))
    real_NC = columns_C < lengths_N[:, None]
    padded_NC = begins_N[:, None] + torch.minimum(columns_C, lengths_N[:, None] - 1)

    def asking(prompts: tuple[slice, ...] | None, rest: tuple[slice, ...], queries_NC: Tensor) -> Asking:
        return Asking(prompts, rest, queries_NC[real_NC].to(device), queries_NC.to(device))

    owns = None if prompts_beside else tuple(group.own for group in groups)
    every = asking(owns, tuple(group.behind for group in groups), padded_NC)
    last, last_rows_Q = None, torch.arange(at)
    if not prompts_beside:
        # In the last layer all of a prompt but its last token is silent: so much further ahead its branches ask.
        silent = list(itertools.accumulate(group.prompt - 1 for group in groups))
        silent_N = torch.tensor([before for before, group in zip(silent, groups, strict=True) for _ in group.branches])
        rest = tuple(
            slice(group.behind.start - 1 - before, group.behind.stop - before)
            for before, group in zip(silent, groups, strict=True)
        )
        last = asking(None, rest, padded_NC - silent_N[:, None])
        last_rows_Q = torch.cat([torch.arange(group.behind.start - 1, group.behind.stop) for group in groups])
    return Layout(
        groups=tuple(groups),
        method=method,
        every=every,
        last=last,
        last_rows_Q=last_rows_Q.to(device),
        real_NC=None if bool(real_NC.all()) else real_NC.to(device),
        flat_M=real_NC.flatten().nonzero()[:, 0].to(device),
    )


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: Layout | None = None,
    prompt_keys: Sequence[Sequence[tuple[Tensor, Tensor]]] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, Q, D) queries, (1, K, T, D) keys and values to (1, Q, H, D).

    Fewer queries than keys are those of `Layout.last`. `prompt_keys` are the keys and values (1, K, P, D) of prompts
    beside the row, by group and layer.
    """
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
    few = shared_prefix.last if query.shape[2] < key.shape[2] else None
    asking = few or shared_prefix.every
    beside = [part[0].to(key.dtype) for layers in prompt_keys for part in layers[module.layer_idx]]
    compute = _Merged.apply if shared_prefix.method == "merged" else _joined
    found: Tensor = compute(query[0], key[0], value[0], shared_prefix, asking, scale, *beside)
    return found[None], None


AttentionInterface.register(NAME, shared_prefix_attention)
# Without a layout (decoding, plain forwards) masks are made as for the stock function.
AttentionMaskInterface.register(NAME, sdpa_mask)


def _of_prompt(number: int, group: Group, key: Tensor, value: Tensor, beside: Sequence[Tensor]) -> list[Tensor]:
    """Keys and values (K, P, D) of a group's prompt: from the row, or those given beside it, two for each group."""
    return list(beside[2 * number : 2 * number + 2]) if beside else [key[:, group.own], value[:, group.own]]


def _joined(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, asking: Asking, scale: float, *beside: Tensor
) -> Tensor:
    """(Q, H, D) by the library's attention, group by group."""
    repeats = query.shape[0] // key.shape[0]
    out: list[Tensor] = []
    for number, (group, rest) in enumerate(zip(layout.groups, asking.rest, strict=True)):
        # Repeated before the call: with a mask and enable_gqa, CUDA falls back to its slowest kernel.
        keys, values = (part.repeat_interleave(repeats, 0) for part in _of_prompt(number, group, key, value, beside))
        branch_keys, branch_values = (part[:, group.behind].repeat_interleave(repeats, 0) for part in (key, value))
        first = rest.stop - group.suffix
        if asking.prompts is not None:
            asked = query[None, :, asking.prompts[number]]
            out.append(F.scaled_dot_product_attention(asked, keys[None], values[None], is_causal=True, scale=scale)[0])
        elif first > rest.start:
            asked = query[None, :, rest.start : first]
            out.append(F.scaled_dot_product_attention(asked, keys[None], values[None], scale=scale)[0])
        longest, count = max(group.branches), len(group.branches)

        def branches(tensor: Tensor, group: Group = group, longest: int = longest) -> Tensor:
            parts = torch.split(tensor, list(group.branches), 1)
            return torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])

        # Padding stands after a branch's last token, so lower-right causality hides it.
        found = F.scaled_dot_product_attention(
            branches(query[:, first : rest.stop]),
            torch.cat([keys.expand(count, -1, -1, -1), branches(branch_keys)], 2),
            torch.cat([values.expand(count, -1, -1, -1), branches(branch_values)], 2),
            attn_mask=causal_lower_right(longest, group.prompt + longest),
            scale=scale,
        )
        out.extend(found[n, :, :length] for n, length in enumerate(group.branches))
    return torch.cat(out, 1).transpose(0, 1)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_NOWHERE = 1e30  # a log-sum-exp so large that a padded query attends to nothing


class _Merged(torch.autograd.Function):
    """(H, Q, D) queries, (K, T, D) keys and values to (Q, H, D).

    Going backward, each part of the attention is given the whole result and the whole log-sum-exp: then its gradients
    are its share of the whole's, and the shares add up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        asking: Asking,
        scale: float,
        *beside: Tensor,
    ) -> Tensor:
        heads, queries, size = query.shape
        repeats = heads // key.shape[0]
        out_QHD = query.new_empty(queries, heads, size)
        sums_HQ = torch.empty(heads, queries, dtype=torch.float32, device=query.device)
        for number, (group, rest) in enumerate(zip(layout.groups, asking.rest, strict=True)):
            keys, values = _of_prompt(number, group, key, value, beside)
            if asking.prompts is not None:
                asked = asking.prompts[number]
                found, sums = _flash(
                    query[None, :, asked],
                    _repeat(keys[None], repeats),
                    _repeat(values[None], repeats),
                    0.0,
                    True,
                    scale=scale,
                )
                out_QHD[asked], sums_HQ[:, asked] = found[0].transpose(0, 1), sums[0]
            # All these queries see the whole prompt: the heads that share a key become more queries of it.
            found, sums = _flash(_fold(query[:, rest], repeats), keys[None], values[None], 0.0, False, scale=scale)
            out_QHD[rest] = found.reshape(heads, -1, size).transpose(0, 1)
            sums_HQ[:, rest] = sums.reshape(heads, -1)
        found, sums = _flash(
            _branches(query, asking),
            _repeat(_branches(key, layout.every), repeats),
            _repeat(_branches(value, layout.every), repeats),
            0.0,
            True,
            scale=scale,
        )
        own_MHD = _in_row(found, layout)
        own_HM = sums.transpose(0, 1).flatten(1).index_select(1, layout.flat_M)
        prompt_HM = sums_HQ.index_select(1, asking.branch_tokens_M)
        all_HM = torch.logaddexp(prompt_HM, own_HM)
        sums_HQ.index_copy_(1, asking.branch_tokens_M, all_HM)
        share_MH1 = (own_HM - all_HM).exp().transpose(0, 1)[..., None].to(query.dtype)
        prompt_MHD = out_QHD.index_select(0, asking.branch_tokens_M)
        merged_MHD = torch.lerp(prompt_MHD, own_MHD, share_MH1.expand_as(own_MHD))
        out_QHD.index_copy_(0, asking.branch_tokens_M, merged_MHD)
        ctx.save_for_backward(query, key, value, out_QHD, sums_HQ, *beside)
        ctx.layout, ctx.asking, ctx.scale = layout, asking, scale
        return out_QHD

    @staticmethod
    def backward(ctx: Any, gradient_QHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out_QHD, sums_HQ, *beside = ctx.saved_tensors
        layout: Layout = ctx.layout
        asking: Asking = ctx.asking
        scale: float = ctx.scale
        heads, _, size = query.shape
        repeats = heads // key.shape[0]
        gradient, out = gradient_QHD.transpose(0, 1), out_QHD.transpose(0, 1)
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        of_beside: list[Tensor] = []
        for number, (group, rest) in enumerate(zip(layout.groups, asking.rest, strict=True)):
            keys, values = _of_prompt(number, group, key, value, beside)
            second = _flash_backward(
                _fold(gradient[:, rest], repeats),
                _fold(query[:, rest], repeats),
                keys[None],
                values[None],
                _fold(out[:, rest], repeats),
                sums_HQ[:, rest].reshape(1, heads // repeats, -1),
                0.0,
                False,
                scale=scale,
            )
            of_query[:, rest] = second[0].reshape(heads, -1, size)
            if beside:
                of_beside += [second[1][0], second[2][0]]
                continue
            of_key[:, group.own], of_value[:, group.own] = second[1][0], second[2][0]
            if asking.prompts is None:
                continue
            asked = asking.prompts[number]
            first = _flash_backward(
                gradient[None, :, asked],
                query[None, :, asked],
                _repeat(keys[None], repeats),
                _repeat(values[None], repeats),
                out[None, :, asked],
                sums_HQ[None, :, asked],
                0.0,
                True,
                scale=scale,
            )
            of_query[:, asked] = first[0][0]
            of_key[:, group.own] += _sum_repeats(first[1], repeats)[0]
            of_value[:, group.own] += _sum_repeats(first[2], repeats)[0]
        gradient_NHCD, sums_NHC = _branches(gradient, asking), sums_HQ[:, asking.padded_NC].transpose(0, 1)
        if layout.real_NC is not None:
            hidden_N1C = ~layout.real_NC[:, None]
            gradient_NHCD = gradient_NHCD.masked_fill(hidden_N1C[..., None], 0)
            sums_NHC = sums_NHC.masked_fill(hidden_N1C, _NOWHERE)
        third = _flash_backward(
            gradient_NHCD,
            _branches(query, asking),
            _repeat(_branches(key, layout.every), repeats),
            _repeat(_branches(value, layout.every), repeats),
            _branches(out, asking),
            sums_NHC,
            0.0,
            True,
            scale=scale,
        )
        of_query.transpose(0, 1).index_add_(0, asking.branch_tokens_M, _in_row(third[0], layout))
        for of_part, found in ((of_key, third[1]), (of_value, third[2])):
            own_MKD = _in_row(_sum_repeats(found, repeats), layout)
            of_part.transpose(0, 1).index_copy_(0, layout.every.branch_tokens_M, own_MKD)
        return of_query, of_key, of_value, None, None, None, *of_beside


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


def _branches(tensor: Tensor, asking: Asking) -> Tensor:
    """(., Q, D) to (N, ., C, D)."""
    # Whole tokens are moved: along a dimension that is not the first in memory this takes five times as long.
    rows = tensor.transpose(0, 1).contiguous().index_select(0, asking.padded_NC.flatten())
    return rows.view(*asking.padded_NC.shape, *rows.shape[1:]).transpose(1, 2)


def _in_row(tensor: Tensor, layout: Layout) -> Tensor:
    """(N, ., C, D) to (M, ., D)."""
    return tensor.transpose(1, 2).flatten(0, 1).index_select(0, layout.flat_M)
