"""The last text layer for the few rows that anybody reads: all keys and values, but only those rows' queries and MLP.

Nothing above the last layer mixes rows. Of a packed row only what predicts a completion's token is read, of a prompt
that is prefilled only its last token; of all other rows the last layer's keys and values are needed, the rest is not.
Exact, forward and backward; it saves one layer's part of the prompt: a quarter with four layers, 3 % with thirty-six.
`shorten_last_layer` exchanges the class of one model's last layer; parameters, their names and what is saved stay, and
a forward that says nothing about rows is the stock one. Source: ours. Not here: attention over a packed row
(prefix_attention.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.prefix_attention import Layout, shared_prefix_attention

# Shapes: B rows of the batch, T tokens of a row, Q of them that are read, H hidden width, D head size.


class _ShortLayer:
    """A decoder layer that answers with the rows that are read where it is told which, in their order."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layout: Layout | None = kwargs.get("shared_prefix")
        ends_B: Tensor | None = kwargs.get("ends")
        if (layout is None or layout.last is None) and ends_B is None:
            stock: Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return stock
        rows_BQ = layout.last_rows_Q[None] if layout is not None else ends_B[:, None]  # type: ignore[index]
        attention = self.self_attn
        normed_BTH = self.input_layernorm(hidden_states)
        few_BQH = _rows(normed_BTH, rows_BQ)
        query, key, value = (
            project(rows).unflatten(-1, (-1, attention.head_dim))
            for project, rows in (
                (attention.q_proj, few_BQH),
                (attention.k_proj, normed_BTH),
                (attention.v_proj, normed_BTH),
            )
        )
        if getattr(attention, "q_norm", None) is not None:
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos_BTD, sin_BTD = kwargs["position_embeddings"]
        query = _turned(query, _rows(cos_BTD, rows_BQ), _rows(sin_BTD, rows_BQ)).transpose(1, 2)
        key, value = _turned(key, cos_BTD, sin_BTD).transpose(1, 2), value.transpose(1, 2)
        if kwargs.get("past_key_values") is not None:
            key, value = kwargs["past_key_values"].update(key, value, attention.layer_idx)
        if layout is not None:
            mixed, _ = shared_prefix_attention(
                attention, query, key, value, None, scaling=attention.scaling, shared_prefix=layout
            )
        else:
            mixed = _at_ends(query, key, value, kwargs.get("attention_mask"), rows_BQ, attention.scaling)
        hidden_BQH = _rows(hidden_states, rows_BQ) + attention.o_proj(mixed.flatten(2))
        out: Tensor = hidden_BQH + self.mlp(self.post_attention_layernorm(hidden_BQH))
        return out


def shorten_last_layer(model: Any) -> bool:
    """Exchange the last text layer's class, where its output is only normed; whether that was done.

    Not where the tower's features are added behind the last layer, too.
    """
    layers = model.model.language_model.layers
    levels = getattr(model.config.vision_config, "deepstack_visual_indexes", None) or []
    if len(levels) >= len(layers):
        return False
    kind = type(layers[-1])
    layers[-1].__class__ = type(f"Short{kind.__name__}", (_ShortLayer, kind), {})
    return True


def is_short(model: Any) -> bool:
    """Whether the model's last layer answers with fewer rows where it is told which."""
    return isinstance(model.model.language_model.layers[-1], _ShortLayer)


def _rows(tensor_BTH: Tensor, rows_BQ: Tensor) -> Tensor:
    """(B, Q, ·)"""
    return tensor_BTH[torch.arange(len(rows_BQ), device=rows_BQ.device)[:, None], rows_BQ]


def _turned(heads_BTHD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Rotary positions, as the stock layers apply them: halves of a head are turned together."""
    first, second = heads_BTHD.chunk(2, -1)
    across = torch.cat([-second, first], -1)
    turned: Tensor = heads_BTHD * cos_BTD[:, :, None] + across * sin_BTD[:, :, None]
    return turned


def _at_ends(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, ends_B1: Tensor, scale: float) -> Tensor:
    """(B, 1, heads, D): each row's last token sees all of its row that is real."""
    if mask is not None:
        mask = mask[torch.arange(len(ends_B1), device=ends_B1.device), :, ends_B1[:, 0]][:, :, None]
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)
