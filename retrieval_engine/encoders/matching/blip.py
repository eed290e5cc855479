"""BLIP's image-grounded text encoder, driven with the keys and values of images computed once.

The same arithmetic as `BlipForImageTextRetrieval(use_itm_head=True)` with [ENC] as first token
(BLIP's `train_retrieval.py`), on the same modules; a test compares with the authors' logits. In
the last layer only the first token is computed: nothing else reaches the head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from retrieval_engine.encoders.matching import KeysValues


class BlipCrossEncoder:
    """See `CrossEncoder`.

    Args:
        text_encoder: transformers' `BlipTextModel` with cross-attention.
        itm_head: linear layer to two logits.
    """

    def __init__(self, text_encoder: Any, itm_head: nn.Module) -> None:
        self._embeddings = text_encoder.embeddings
        self._layers = list(text_encoder.encoder.layer)
        self._head = itm_head

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """See `CrossEncoder.keys_values`."""
        found = []
        for layer in self._layers:
            cross = layer.crossattention.self
            heads = cross.num_attention_heads
            found.append((_heads(cross.key(tokens), heads), _heads(cross.value(tokens), heads)))
        return found

    def logits(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """See `CrossEncoder.logits`."""
        states = self.first_states(seen, ids, mask)
        with torch.autocast(states.device.type, enabled=False):
            logits: Tensor = self._head(states.float())
        return logits

    def first_states(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """(i, n, w) states of each text's first token after the last layer."""
        i, n, length = ids.shape
        x = self._embeddings(input_ids=ids.view(i * n, length))  # (i n, l, w)
        keep = mask.view(i * n, 1, 1, length).bool()
        for layer, (keys, values) in zip(self._layers, seen, strict=True):
            asking = x[:, :1] if layer is self._layers[-1] else x
            x = layer.attention.output(_attend(layer.attention.self, asking, x, keep), asking)
            x = layer.crossattention.output(_look(layer.crossattention.self, x, keys, values), x)
            x = layer.output(layer.intermediate(x), x)
        states: Tensor = x.view(i, n, -1)
        return states


def _heads(x: Tensor, heads: int) -> Tensor:
    """(b, l, w) -> (b, h, l, d)."""
    b, length, w = x.shape
    return x.view(b, length, heads, w // heads).transpose(1, 2)


def _attend(attention: Any, asking: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    """Self-attention of some positions over all: (b, m, w) over (b, l, w) -> (b, m, w)."""
    heads = attention.num_attention_heads
    q, k, v = (
        _heads(project(states), heads)
        for project, states in (
            (attention.query, asking),
            (attention.key, x),
            (attention.value, x),
        )
    )
    out = scaled_dot_product_attention(q, k, v, attn_mask=keep)
    return out.transpose(1, 2).flatten(2)


def _look(attention: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Cross-attention of all the texts of an image as one long query: (i n, m, w), same shape."""
    i, heads = keys.shape[:2]
    b, m, w = x.shape
    q = _heads(attention.query(x).view(i, b // i * m, w), heads)  # (i, h, n m, d)
    out = scaled_dot_product_attention(q, keys, values)
    return out.transpose(1, 2).reshape(b, m, w)
