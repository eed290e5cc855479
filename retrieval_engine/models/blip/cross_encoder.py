"""BLIP's image-grounded text encoder, driven with the keys and values of images computed once.

The same arithmetic as `BlipForImageTextRetrieval(use_itm_head=True)` with [ENC] as first token
(BLIP's `train_retrieval.py`), on the same modules; a test compares with the authors' logits. In
the last layer only the first token is computed: nothing else reaches the head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from retrieval_engine.models.attend import attend, image_keys_values, look
from retrieval_engine.models.matcher import KeysValues


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
        return [image_keys_values(layer.crossattention.self, tokens) for layer in self._layers]

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
            x = layer.attention.output(attend(layer.attention.self, asking, x, keep), asking)
            x = layer.crossattention.output(look(layer.crossattention.self, x, keys, values), x)
            x = layer.output(layer.intermediate(x), x)
        states: Tensor = x.view(i, n, -1)
        return states
