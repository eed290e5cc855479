"""BLIP-2's Q-Former as a cross-encoder, driven with the keys and values of images computed once.

The same arithmetic as `Blip2ForImageTextRetrieval(use_image_text_matching_head=True)` and LAVIS's
`compute_itm`: queries and text attend to each other, the queries alone look at the image, and the
logits are averaged over the queries. No [ENC] here. In the last layer only the queries are
computed: nothing else reaches the head.
"""

from typing import Any

import torch
from torch import Tensor

from retrieval_engine.models.attend import attend, keys_values_of, look
from retrieval_engine.models.matcher import KeysValues


class Blip2CrossEncoder:
    """See `CrossEncoder`.

    Args:
        part: a module with qformer, query_tokens, embeddings and itm_head.
    """

    def __init__(self, part: Any) -> None:
        self._part = part
        self._layers = list(part.qformer.encoder.layer)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """See `CrossEncoder.keys_values`."""
        looking = [layer for layer in self._layers if layer.has_cross_attention]
        return [keys_values_of(layer.crossattention.attention, tokens) for layer in looking]

    def logits(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """See `CrossEncoder.logits`."""
        states = self.query_states(seen, ids, mask)
        head = self._part.itm_head
        with torch.autocast(states.device.type, enabled=False):
            logits: Tensor = head(states.to(head.weight.dtype)).mean(dim=-2)
        return logits

    def query_states(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """(i, n, q, h) states of the queries after the last layer."""
        i, n, length = ids.shape
        part, b = self._part, i * n
        text = part.embeddings(input_ids=ids.view(b, length))
        queries = part.query_tokens.expand(b, -1, -1)
        q = queries.shape[1]
        x = part.qformer.layernorm(torch.cat((queries, text), dim=1))  # (b, q + l, h)
        keep = torch.cat((mask.new_ones(b, q), mask.view(b, length)), dim=1).bool()
        keep = keep.view(b, 1, 1, q + length)
        images = iter(seen)
        for layer in self._layers:
            last = layer is self._layers[-1]
            asking = x[:, :q] if last else x
            x = layer.attention.output(attend(layer.attention.attention, asking, x, keep), asking)
            queries = x[:, :q]
            if layer.has_cross_attention:
                cross = layer.crossattention
                looked = look(cross.attention, queries, *next(images))
                queries = cross.output(looked, queries)
            queries = layer.feed_forward_chunk_query(queries)
            if not last:
                x = torch.cat((queries, layer.feed_forward_chunk(x[:, q:])), dim=1)
        states: Tensor = queries.view(i, n, q, -1)
        return states
