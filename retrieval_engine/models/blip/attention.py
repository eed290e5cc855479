"""Fused attention for BLIP, which transformers ships as eager only.

The vision and text attention modules of a built model get a subclass whose forward calls
`scaled_dot_product_attention`; weights, names and results stay the same (a test compares). Trap:
the probabilities are never formed, so `output_attentions=True` gives None under this; take it off
again with `use_eager_attention` where maps are wanted.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention


class FusedBlipAttention(BlipAttention):  # type: ignore[misc]
    """BLIP's vision self-attention through the fused kernel."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """Attend over all tokens.

        Args:
            hidden_states: (b, t, w).
            **kwargs: what transformers passes along; nothing in it matters here.

        Returns:
            (b, t, w) states, and None in place of the probabilities.
        """
        b, t, w = hidden_states.shape
        qkv = self.qkv(hidden_states).view(b, t, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, t, 3, h, d) -> 3 x (b, h, t, d)
        dropout = self.dropout.p if self.training else 0.0
        out = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.projection(out.transpose(1, 2).reshape(b, t, w)), None


class FusedBlipTextSelfAttention(BlipTextSelfAttention):  # type: ignore[misc]
    """BLIP's text self- and cross-attention through the fused kernel."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend over the text, or over the image where `encoder_hidden_states` is given.

        Args:
            hidden_states: (b, t, w) text states.
            attention_mask: (b, 1, t, t) added to the scores, or None.
            encoder_hidden_states: (b, s, v) image states for cross-attention, or None.
            encoder_attention_mask: (b, 1, t, s) added to the scores, or None.
            past_key_values: keys and values of earlier tokens while generating.
            **kwargs: what transformers passes along; nothing in it matters here.

        Returns:
            (b, t, w) states, and None in place of the probabilities.
        """
        crossing = encoder_hidden_states is not None
        mask = encoder_attention_mask if crossing else attention_mask
        q = self._heads(self.query(hidden_states))
        k, v = self._keys_values(
            hidden_states if encoder_hidden_states is None else encoder_hidden_states,
            past_key_values,
            crossing=crossing,
        )
        if mask is not None:
            # float32's lowest value would become -inf in half precision
            mask = mask.to(q).clamp(min=torch.finfo(q.dtype).min)
        dropout = self.dropout.p if self.training else 0.0
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2), None  # (b, h, t, d) -> (b, t, w)

    def _heads(self, states: Tensor) -> Tensor:
        b, t, _ = states.shape
        return states.view(b, t, self.num_attention_heads, -1).transpose(1, 2)

    def _keys_values(
        self, states: Tensor, past: Cache | None, *, crossing: bool
    ) -> tuple[Tensor, Tensor]:
        cache: Any = past
        if isinstance(past, EncoderDecoderCache):
            cache = past.cross_attention_cache if crossing else past.self_attention_cache
            if crossing and past.is_updated.get(self.layer_idx):
                layer: Any = cache.layers[self.layer_idx]
                return layer.keys, layer.values
        k, v = self._heads(self.key(states)), self._heads(self.value(states))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
            if crossing and isinstance(past, EncoderDecoderCache):
                past.is_updated[self.layer_idx] = True
        return k, v


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: FusedBlipAttention,
    BlipTextSelfAttention: FusedBlipTextSelfAttention,
}


def use_fused_attention(model: nn.Module) -> None:
    """Give every BLIP attention module of a model the fused forward, in place."""
    _swap(model, _FUSED)


def use_eager_attention(model: nn.Module) -> None:
    """Undo `use_fused_attention`, so that attention maps can be recorded again."""
    _swap(model, {fused: eager for eager, fused in _FUSED.items()})


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
