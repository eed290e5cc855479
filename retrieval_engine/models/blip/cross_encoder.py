"""BLIP's image-grounded text encoder, driven with the keys and values of images computed once.

The same arithmetic as `BlipForImageTextRetrieval(use_itm_head=True)` with [ENC] as first token
(BLIP's `train_retrieval.py`), on the same modules; a test compares with the authors' logits. In
the last layer only the first token is computed: nothing else reaches the head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from retrieval_engine.models import text
from retrieval_engine.models.attend import attend, attend_openly, keys_values_of, look
from retrieval_engine.models.blip.likelihood import Likelihood
from retrieval_engine.models.blip.settings import MatchStart, stated
from retrieval_engine.models.matcher import KeysValues

_FAR_FROM_ZERO = 256.0  # half precision would lose the smallest slopes


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
        return [keys_values_of(layer.crossattention.self, tokens) for layer in self._layers]

    def logits(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """See `CrossEncoder.logits`."""
        i, n, length = ids.shape
        x = self._embeddings(input_ids=ids.view(i * n, length))  # (i n, l, w)
        keep = mask.view(i * n, 1, 1, length).bool()
        for layer, (keys, values) in zip(self._layers, seen, strict=True):
            asking = x[:, :1] if layer is self._layers[-1] else x
            x = layer.attention.output(attend(layer.attention.self, asking, x, keep), asking)
            x = layer.crossattention.output(look(layer.crossattention.self, x, keys, values), x)
            x = layer.output(layer.intermediate(x), x)
        # (i n, 1, w) -> (i, n, w): states of each text's first token after the last layer
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self._head(x.view(i, n, -1).float())
        return logits

    def relevance(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """See `ExplainingCrossEncoder.relevance`.

        The cross-attention of each layer times the gradient of the match logit with respect to
        it, positive part, mean over heads, summed over layers (Chefer, Gur and Wolf, ICCV 2021);
        ALBEF (Li et al., NeurIPS 2021) and BLIP's demonstrations show one layer of it.
        """
        with torch.enable_grad():
            maps: list[Tensor] = []
            x = self._embeddings(input_ids=ids[None]).detach().requires_grad_()
            for layer in self._layers:
                own, cross = layer.attention.self, layer.crossattention.self
                mixed, _ = attend_openly(own, x, *keys_values_of(own, x))
                x = layer.attention.output(mixed, x)
                mixed, seen = attend_openly(cross, x, *keys_values_of(cross, tokens))
                maps.append(seen)
                x = layer.crossattention.output(mixed, x)
                x = layer.output(layer.intermediate(x), x)
            logit = _FAR_FROM_ZERO * self._head(x[0, 0].to(self._head.weight.dtype))[1].float()
            slopes = torch.autograd.grad(logit, maps)
        useful = [
            (seen * slope)[0].clamp(min=0).mean(0) for seen, slope in zip(maps, slopes, strict=True)
        ]
        found: Tensor = torch.stack(useful).sum(0).detach().float()
        return found


class StartedCrossEncoder(BlipCrossEncoder):
    """A cross-encoder whose match logit starts at the similarity that ITC finds.

    `itm_head(...)[1] + scale * cosine - offset`. Comparing a text with an image takes BLIP's
    cross-attention many millions of pairs to learn; a small model that has seen few of them knows
    from the first step what its ITC knows, and learns the difference. Trap: the text is read
    twice, once alone with [CLS] first.

    Args:
        model: with `text_encoder`, `itm_head`, `vision_proj` and `text_proj`.
        start: scale and offset, numbers or parameters, and the id of [CLS].
        pooling: of texts; see `text.pooled`.
    """

    def __init__(self, model: Any, start: MatchStart, pooling: str) -> None:
        super().__init__(model.text_encoder, model.itm_head)
        self._model, self._start, self._pooling = model, start, pooling

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """As BLIP's, and the images' ITC vectors behind them."""
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            states = tokens[:, 0].to(self._model.vision_proj.weight.dtype)
            vectors = normalize(self._model.vision_proj(states).float(), dim=-1)
        return [*super().keys_values(tokens), (vectors, vectors)]

    def logits(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """See `CrossEncoder.logits`."""
        found = super().logits(seen[: len(self._layers)], ids, mask)
        cosine = torch.einsum("id,ind->in", seen[-1][0], self._vectors(ids, mask))
        more = self._start.scale * cosine - self._start.offset
        return torch.stack([found[..., 0], found[..., 1] + more], dim=-1)

    @torch.no_grad()
    def _vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(i, n, d) ITC vectors of texts that begin with [ENC]."""
        i, n, length = ids.shape
        alone = ids.reshape(i * n, length).clone()
        alone[:, 0] = self._start.cls_token_id
        flat = mask.reshape(i * n, length)
        x = self._embeddings(input_ids=alone)
        for layer in self._layers:
            looked = attend(layer.attention.self, x, x, flat[:, None, None].bool())
            x = layer.attention.output(looked, x)
            x = layer.output(layer.intermediate(x), x)
        pooled = text.pooled(x, flat, self._pooling)
        with torch.autocast(ids.device.type, enabled=False):
            projected = self._model.text_proj(pooled.to(self._model.text_proj.weight.dtype))
            return normalize(projected.float(), dim=-1).view(i, n, -1)


class TellingCrossEncoder(StartedCrossEncoder):
    """One that orders the images of a text by how likely the decoder would write it, too.

    See `likelihood.py`. Of one image's texts this says little: some are likelier whatever is seen.

    Args:
        model: as above.
        start: the same; its `likelihood` is the weight.
        pooling: the same.
        likelihood: by the decoder.
    """

    def __init__(self, model: Any, start: MatchStart, pooling: str, likelihood: Likelihood) -> None:
        super().__init__(model, start, pooling)
        self._likelihood = likelihood

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """As above, and in front of the vectors those of a decoder that has its own."""
        *own, vectors = super().keys_values(tokens)
        told = [] if self._likelihood.shares else self._likelihood.keys_values(tokens)
        return [*own, *told, vectors]

    def order(self, seen: KeysValues, ids: Tensor, mask: Tensor) -> Tensor:
        """See `OrderingCrossEncoder.order`."""
        told = seen[-1 - len(self._layers) : -1]
        return self._start.likelihood * self._likelihood(told, ids, mask, usual=self._start.usual)


def open_cross_encoder(
    model: Any, config: Any, likelihood: Likelihood | None = None
) -> BlipCrossEncoder:
    """The cross-encoder of a retrieval model.

    Args:
        model: with `text_encoder`, `itm_head`, `vision_proj` and `text_proj`.
        config: its `BlipConfig`; `match_start` in it asks for one that starts at ITC.
        likelihood: by which it orders images besides; None where it does not.
    """
    start = MatchStart.of(config)
    if start is None:
        return BlipCrossEncoder(model.text_encoder, model.itm_head)
    pooling = stated(config.text_config, "pooling") or "cls"
    if likelihood is None:
        return StartedCrossEncoder(model, start, pooling)
    return TellingCrossEncoder(model, start, pooling, likelihood)
