"""How much each image token mattered to each word that BLIP's decoder wrote."""

from typing import Any

import torch
from torch import Tensor

from retrieval_engine.models.attend import image_keys_values, split_heads


def token_relevance(decoder: Any, tokens: Tensor, ids: Tensor, begun: int) -> Tensor:
    """Gradient-weighted cross-attention of each written token.

    For a token: the cross-attention where it was chosen, times the gradient of its log-probability
    with respect to that attention, positive part, mean over heads, summed over layers; the rule of
    Chefer, Gur and Wolf, "Generic Attention-model Explainability" (ICCV 2021). Attention alone
    also shows where a word did not care.

    Args:
        decoder: transformers' `BlipTextLMHeadModel`, float32.
        tokens: (1, t, w) float32 vision states.
        ids: (l,) the sentence, prompt and end token included.
        begun: number of its tokens that are the prompt.

    Returns:
        (l - begun, t) float32, at least 0.
    """
    with torch.enable_grad():
        maps: list[Tensor] = []
        x = decoder.bert.embeddings(input_ids=ids[None, :-1])
        length = x.shape[1]
        past = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for layer in decoder.bert.encoder.layer:
            own = layer.attention.self
            mixed, _ = _attend(own, x, *image_keys_values(own, x), past)
            x = layer.attention.output(mixed, x)
            cross = layer.crossattention.self
            mixed, seen = _attend(cross, x, *image_keys_values(cross, tokens), None)
            maps.append(seen)
            x = layer.crossattention.output(mixed, x)
            x = layer.output(layer.intermediate(x), x)
        chosen = ids[begun:]
        scores = decoder.cls(x)[0, begun - 1 :].log_softmax(-1)
        written = scores.gather(-1, chosen[:, None])[:, 0]
        found = []
        for number in range(len(chosen)):
            gradients = torch.autograd.grad(written[number], maps, retain_graph=True)
            place = begun - 1 + number
            useful = [
                (a[0, :, place] * g[0, :, place]).clamp(min=0).mean(0)
                for a, g in zip(maps, gradients, strict=True)
            ]
            found.append(torch.stack(useful).sum(0))
    return torch.stack(found).detach()


def _attend(
    attention: Any, x: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention whose probabilities (1, h, l, t) stay in the graph."""
    q = split_heads(attention.query(x), attention.num_attention_heads)
    scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    seen = scores.softmax(-1)
    return (seen @ values).transpose(1, 2).flatten(2), seen
