"""Modules of BLIP's towers without transformers, for inference; `plain.py` puts them together.

Names, operations and their order are those of transformers with our fused attention.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from retrieval_engine.models.attend import keys_values_of, split_heads
from retrieval_engine.models.blip.hybrid_tower import HybridTower


class Seen(NamedTuple):
    """What transformers' towers return, as far as it is read."""

    last_hidden_state: Tensor


# The vision tower


class VisionAttention(nn.Module):
    """Self-attention of an image's tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, w) -> (b, t, w)."""
        b, t, w = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, t, 3, h, d) -> 3 x (b, h, t, d)
        out = scaled_dot_product_attention(q, k, v)
        found: Tensor = self.projection(out.transpose(1, 2).reshape(b, t, w))
        return found


class VisionLayer(nn.Module):
    """Attention and a feed-forward network, each after a LayerNorm and beside a residual."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, config.intermediate_size),
                "fc2": nn.Linear(config.intermediate_size, width),
            }
        )
        self.layer_norm2 = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, w) -> (b, t, w)."""
        x = self.self_attn(self.layer_norm1(x)) + x
        wide = nn.functional.gelu(self.mlp["fc1"](self.layer_norm2(x)))
        found: Tensor = self.mlp["fc2"](wide) + x
        return found


class VisionLayers(nn.Module):
    """The layers in their order."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, inputs_embeds: Tensor) -> Seen:
        """(b, t, w) -> (b, t, w)."""
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return Seen(inputs_embeds)


class Patches(nn.Module):
    """Pixels to tokens, CLS first."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, size = config.hidden_size, config.patch_size
        places = (config.image_size // size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=size, stride=size)
        self.position_embedding = nn.Parameter(torch.empty(1, places + 1, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, s, s) -> (b, 1 + p, w)."""
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(pixels.to(dtype=dtype)).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1).to(dtype)
        return torch.cat([first, patches], dim=1) + self.position_embedding.to(dtype)


class VisionTower(nn.Module):
    """`BlipVisionModel`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = Patches(config)
        self.encoder = VisionLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Seen:
        """(b, 3, s, s) normalised pixels -> (b, 1 + p, w)."""
        states = self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state
        return Seen(self.post_layernorm(states))


class PlainHybridTower(HybridTower):
    """`HybridVisionModel`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.add_parts(config, VisionLayers(config))

    def forward(self, pixel_values: Tensor) -> Seen:
        """(b, 3, s, s) normalised pixels -> (b, 1 + p, w)."""
        return Seen(self.states_of(pixel_values))


# The text towers


class Words(nn.Module):
    """Token ids to states."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = _embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, past_key_values_length: int = 0) -> Tensor:
        """(b, l) -> (b, l, w); so many tokens were read before."""
        end = past_key_values_length + input_ids.shape[1]
        places = self.position_embeddings.weight[past_key_values_length:end]
        found: Tensor = self.LayerNorm(self.word_embeddings(input_ids) + places)
        return found


def _embedding(rows: int, width: int) -> nn.Embedding:
    """One without random numbers: to draw some without memory torch imports its compiler."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class TextAttention(nn.Module):
    """Weights of an attention; how they are used is told where they are (`models/attend.py`)."""

    def __init__(self, config: Any, seen: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(seen, width), nn.Linear(seen, width)


class Joined(nn.Module):
    """A linear layer, then a LayerNorm of its sum with the residual."""

    def __init__(self, config: Any, inside: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inside, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(b, l, i) and (b, l, w) -> (b, l, w)."""
        found: Tensor = self.LayerNorm(self.dense(x) + residual)
        return found


class Widened(nn.Module):
    """A linear layer and GELU."""

    def __init__(self, config: Any, outside: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, outside)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, w) -> (b, l, o)."""
        return nn.functional.gelu(self.dense(x))


class Looking(nn.Module):
    """An attention and what joins its result with the residual."""

    def __init__(self, config: Any, seen: int) -> None:
        super().__init__()
        self.self = TextAttention(config, seen)
        self.output = Joined(config, config.hidden_size)


class TextLayer(nn.Module):
    """A layer; with images `cross_encoder.py` and `captioner.py` put its parts together."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = Looking(config, config.hidden_size)
        self.crossattention = Looking(config, config.encoder_hidden_size)
        self.intermediate = Widened(config, config.intermediate_size)
        self.output = Joined(config, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(b, l, w) of texts alone -> (b, l, w); the mask is added to the scores."""
        own = self.attention.self
        q = split_heads(own.query(x), own.num_attention_heads)
        if mask is not None:
            mask = mask.to(q).clamp(min=torch.finfo(q.dtype).min)
        out = scaled_dot_product_attention(q, *keys_values_of(own, x), attn_mask=mask)
        x = self.attention.output(out.transpose(1, 2).flatten(2), x)
        found: Tensor = self.output(self.intermediate(x), x)
        return found


class TextLayers(nn.Module):
    """The layers in their order."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TextLayer(config) for _ in range(config.num_hidden_layers))


class TextTower(nn.Module):
    """`BlipTextModel` without a pooler."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = Words(config)
        self.encoder = TextLayers(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Seen:
        """(b, l) ids and mask -> (b, l, w)."""
        x = self.embeddings(input_ids)
        n, length = input_ids.shape
        mask = None  # with nothing padded it must be left out, or another kernel rounds otherwise
        if torch.compiler.is_exporting() or not attention_mask.all():
            lowest = torch.finfo(x.dtype).min
            mask = x.new_zeros(n, 1, length, length)
            mask = mask.masked_fill(attention_mask[:, None, None] == 0, lowest)
        for layer in self.encoder.layer:
            x = layer(x, mask)
        return Seen(x)


class Transform(nn.Module):
    """Of states before they become logits."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, w) -> (b, l, w)."""
        found: Tensor = self.LayerNorm(nn.functional.gelu(self.dense(x)))
        return found


class Predictions(nn.Module):
    """States to logits."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))  # the decoder's by its other name

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, w) -> (b, l, v)."""
        found: Tensor = self.decoder(self.transform(x))
        return found


class Head(nn.Module):
    """`BlipTextOnlyMLMHead`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, w) -> (b, l, v)."""
        found: Tensor = self.predictions(x)
        return found


class TextDecoder(nn.Module):
    """`BlipTextLMHeadModel`; `captioner.py` puts its parts together."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bert = TextTower(config)
        self.cls = Head(config)
