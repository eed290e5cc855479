"""The network that is trained: transformers' own BLIP modules, shared as BLIP's authors share them.

Because the modules are transformers' own, what is exported loads into its classes by construction.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipTextConfig,
    BlipVisionConfig,
)
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from retrieval_engine.train.pretrain.config import ModelSize
from retrieval_engine.train.pretrain.tokenizer import DECODE, ENCODE

if TYPE_CHECKING:
    from transformers import BertTokenizer

_LONGEST = 64
_GROUPS = 3
_EPS_VISION = 1e-6  # of the original BLIP; transformers' default is 1e-5


def blip_config(size: ModelSize, tokenizer: "BertTokenizer") -> BlipConfig:
    """The Hugging Face configuration of a model of this size.

    Traps that it closes: `initializer_range` of the vision tower is 1e-10 by default, which trains
    nothing, and the text tower's heads default to 8 whatever the width.
    """
    sep = int(tokenizer.convert_tokens_to_ids("[SEP]"))
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        encoder_hidden_size=size.width,
        intermediate_size=4 * size.width,
        projection_dim=size.embed_dim,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.heads,
        max_position_embeddings=_LONGEST,
        bos_token_id=int(tokenizer.convert_tokens_to_ids(DECODE)),
        eos_token_id=sep,
        sep_token_id=sep,
        pad_token_id=0,
    )
    vision = BlipVisionConfig(
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        projection_dim=size.embed_dim,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
        layer_norm_eps=_EPS_VISION,
        initializer_range=0.02,
    )
    return BlipConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=size.embed_dim,
        image_text_hidden_size=size.embed_dim,
    )


class PretrainModel(nn.Module):
    """A BLIP in training.

    The decoder shares the encoder's embeddings, cross-attention and feed-forward layers and has
    self-attention of its own (BLIP, Li et al. 2022, section 3.2).

    Args:
        config: of the BLIP.
        concepts: number of concepts the image state is asked for.
        regions: number of classes a patch can have, over all aspects; 0 without patch labels.
        encode_id: id of [ENC].
    """

    def __init__(self, config: BlipConfig, *, concepts: int, regions: int, encode_id: int) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.config = config
        self.encode_id = encode_id
        self.retrieval = BlipForImageTextRetrieval(config)
        self.text_decoder = BlipTextLMHeadModel(config.text_config)
        self._share()
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.concept_head = nn.Linear(width, concepts)
        self.region_head = nn.Linear(width, regions) if regions else None

    def _share(self) -> None:
        encoder, decoder = self.retrieval.text_encoder, self.text_decoder
        decoder.bert.embeddings = encoder.embeddings
        for ours, theirs in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
            ours.crossattention = theirs.crossattention
            ours.intermediate = theirs.intermediate
            ours.output = theirs.output
        output = decoder.cls.predictions
        output.decoder.weight = encoder.embeddings.word_embeddings.weight
        output.decoder.bias = output.bias

    def shipped_parameters(self) -> list[nn.Parameter]:
        """The weights of the BLIP itself, each once; not the temperature and the concept heads."""
        return list(dict.fromkeys([*self.retrieval.parameters(), *self.text_decoder.parameters()]))

    def see(self, pixels: Tensor) -> Tensor:
        """States of the pictures: (b, 3, s, s) normalised floats -> (b, 1 + patches, width)."""
        states: Tensor = self.retrieval.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def embed_images(self, states: Tensor) -> Tensor:
        """ITC vectors of pictures: (b, 1 + patches, width) -> (b, d) float32, unit length."""
        return normalize(self.retrieval.vision_proj(states[:, 0]).float(), dim=-1)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ITC vectors of captions: (t, l) -> (t, d) float32, unit length."""
        states = _by_length(ids, mask, self._first_state)
        return normalize(self.retrieval.text_proj(states).float(), dim=-1)

    def match(self, ids: Tensor, mask: Tensor, states: Tensor, image: Tensor) -> Tensor:
        """ITM logits of pairs.

        The first token is used as it comes: [ENC] as BLIP's authors do, or [CLS] as transformers.

        Args:
            ids: (p, l).
            mask: (p, l).
            states: (b, 1 + patches, width).
            image: (p,) row of `states` for each text.

        Returns:
            (p, 2) float32: no match, match.
        """

        def fused(ids: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
            return self._first_state(ids, mask, rows, states[image[rows]])

        logits: Tensor = self.retrieval.itm_head(_by_length(ids, mask, fused))
        return logits.float()

    def _first_state(
        self, ids: Tensor, mask: Tensor, rows: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        states: Tensor = self.retrieval.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen
        ).last_hidden_state
        return states[:, 0]

    def caption_logits(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        """Logits of each next token: (b, l) and (b, 1 + patches, width) -> (b, l, vocabulary)."""
        logits: Tensor = self.text_decoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states, use_cache=False
        ).logits
        return logits.float()


def _by_length(
    ids: Tensor, mask: Tensor, encode: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Run texts in groups of about equal length: most captions are half as long as the longest.

    Args:
        ids: (n, l).
        mask: (n, l); padding changes no result, so cutting it off changes none.
        encode: (k, l'), (k, l') and the k rows they are -> (k, w).

    Returns:
        (n, w), in the order of `ids`.
    """
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)
    parts = []
    for rows in order.chunk(_GROUPS):
        longest = int(lengths[rows].max())
        parts.append(encode(ids[rows, :longest], mask[rows, :longest], rows))
    return torch.cat(parts)[order.argsort()]


def build_model(
    size: ModelSize, tokenizer: "BertTokenizer", *, concepts: int, regions: int, seed: int
) -> PretrainModel:
    """A model with random weights that the seed decides; the caller's random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PretrainModel(
            blip_config(size, tokenizer),
            concepts=concepts,
            regions=regions,
            encode_id=int(tokenizer.convert_tokens_to_ids(ENCODE)),
        )
