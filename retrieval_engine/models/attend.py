"""Attention of texts with an image whose keys and values are known already."""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, l, w) -> (b, h, l, d)."""
    b, length, w = x.shape
    return x.view(b, length, heads, w // heads).transpose(1, 2)


def keys_values_of(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """(b, h, l, d) keys and values that an attention makes of (b, l, w) states, image or text."""
    heads = attention.num_attention_heads
    return split_heads(attention.key(states), heads), split_heads(attention.value(states), heads)


def attend(attention: Any, asking: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    """Self-attention of some positions over all: (b, m, w) over (b, l, w) -> (b, m, w).

    Args:
        attention: a module with query, key, value and num_attention_heads.
        asking: (b, m, w) states of the positions that are wanted.
        x: (b, l, w) states of all.
        keep: (b, 1, 1, l) bool, False on padding.
    """
    q = split_heads(attention.query(asking), attention.num_attention_heads)
    out = scaled_dot_product_attention(q, *keys_values_of(attention, x), attn_mask=keep)
    return out.transpose(1, 2).flatten(2)


def look_back(attention: Any, x: Tensor) -> Tensor:
    """Causal self-attention, (b, l, w) -> (b, l, w)."""
    q = split_heads(attention.query(x), attention.num_attention_heads)
    out = scaled_dot_product_attention(q, *keys_values_of(attention, x), is_causal=True)
    return out.transpose(1, 2).flatten(2)


def look(attention: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Cross-attention of all the texts of an image as one long query.

    Args:
        attention: a module with query and num_attention_heads.
        x: (i n, m, w) states of n texts for each of i images.
        keys: (i, h, t, d).
        values: (i, h, t, d).

    Returns:
        (i n, m, w).
    """
    i, heads = keys.shape[:2]
    b, m, w = x.shape
    q = split_heads(attention.query(x).view(i, b // i * m, w), heads)  # (i, h, n m, d)
    out = scaled_dot_product_attention(q, keys, values)
    return out.transpose(1, 2).reshape(b, m, w)


def attend_openly(
    attention: Any, x: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of (b, m, w) states, and its probabilities (b, h, m, t), which stay in the graph.

    Args:
        attention: a module with query and num_attention_heads.
        x: the states that ask.
        keys: (b, h, t, d).
        values: (b, h, t, d).
        allowed: (m, t) bool, False where nothing is to be seen; None sees all.
    """
    q = split_heads(attention.query(x), attention.num_attention_heads)
    scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    seen = scores.softmax(-1)
    return (seen @ values).transpose(1, 2).flatten(2), seen
