"""How likely BLIP's decoder would write a text of an image: a second opinion beside the ITM head.

A captioner learns from every word of a caption, a matching head from one yes or no: of a small
training set the first learns far more (Lin et al., "Revisiting the Role of Language Priors in
Vision-Language Models", ICML 2024, rank by it). Where a checkpoint's decoder shares its
cross-attention with the text encoder, the keys and values of matching serve for both.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from retrieval_engine.models.attend import keys_values_of, look, look_back
from retrieval_engine.models.matcher import KeysValues

NEVER = -30.0  # bias of a piece that the decoder has not learned to write


def decoder_states(decoder: Any, seen: KeysValues, ids: Tensor) -> Tensor:
    """States after the last layer of texts that are given.

    Padding stands behind the words and each word looks back only, so it needs no mask.

    Args:
        decoder: `BlipTextLMHeadModel`, or its modules.
        seen: (i, h, t, d) keys and values of i images, by layer.
        ids: (i, n, l) texts, [DEC] first.

    Returns:
        (i n, l, w).
    """
    i, n, length = ids.shape
    x: Tensor = decoder.bert.embeddings(input_ids=ids.reshape(i * n, length))
    for layer, (keys, values) in zip(decoder.bert.encoder.layer, seen, strict=True):
        x = layer.attention.output(look_back(layer.attention.self, x), x)
        x = layer.crossattention.output(look(layer.crossattention.self, x, keys, values), x)
        x = layer.output(layer.intermediate(x), x)
    return x


class Likelihood:
    """Mean log-likelihood of a text's pieces, the end token among them, as a decoder writes them.

    Pieces that it never learned to write tell nothing and do not count.

    Args:
        decoder: `BlipTextLMHeadModel` in evaluation mode, or its modules.
        start_id: of [DEC].
        shares: whether its cross-attention is that of the text encoder.

    Attributes:
        shares: the same.
    """

    def __init__(self, decoder: Any, start_id: int, *, shares: bool = True) -> None:
        self._decoder, self._start, self.shares = decoder, start_id, shares
        head = decoder.cls.predictions
        said = torch.nonzero(head.bias > NEVER / 2)[:, 0]
        self._weight, self._bias = head.decoder.weight[said].float(), head.bias[said].float()
        self._place = torch.full((len(head.bias),), -1, device=said.device)
        self._place[said] = torch.arange(len(said), device=said.device)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Those of (i, t, w) vision states, by layer."""
        layers = self._decoder.bert.encoder.layer
        return [keys_values_of(layer.crossattention.self, tokens) for layer in layers]

    def __call__(
        self, seen: KeysValues, ids: Tensor, mask: Tensor, *, usual: float = 0.0
    ) -> Tensor:
        """Of n texts for each of i images.

        Args:
            seen: keys and values of the images, by layer.
            ids: (i, n, l) texts; whatever their first token is, [DEC] stands in its place.
            mask: (i, n, l) 0 on padding.
            usual: is taken off each piece's.

        Returns:
            (i, n) float32 means; 0 where no piece counts.
        """
        i, n, length = ids.shape
        given = ids[..., :-1].clone()
        given[..., 0] = self._start
        states = decoder_states(self._decoder, seen, given)
        wanted = self._place[ids[..., 1:]].view(i * n, length - 1)
        counts = (wanted >= 0) & (mask[..., 1:].reshape(i * n, length - 1) != 0)
        with torch.autocast(ids.device.type, enabled=False):
            transform = self._decoder.cls.predictions.transform
            states = transform(states.to(transform.dense.weight.dtype)).float()
            logits = linear(states, self._weight, self._bias).log_softmax(-1)
        found = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] - usual
        total, count = (found * counts).sum(-1), counts.sum(-1)
        found = total / count.clamp(min=1)
        return found.view(i, n)
