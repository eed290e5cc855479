"""The parts of BLIP-2 checkpoints, each loaded alone: nobody pays for what is not asked for.

transformers' own classes couple them: `Blip2VisionModelWithProjection` and
`Blip2TextModelWithProjection` would hold the Q-Former twice, `Blip2ForConditionalGeneration` loads
billions of language-model parameters for an image's features. The names of the parameters are
those of the checkpoints, so that `from_pretrained` fills each part from the same files.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Blip2Config, T5EncoderModel
from transformers.models.blip_2.modeling_blip_2 import (
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    Blip2TextEmbeddings,
    Blip2VisionModel,
)

LN_VISION_EPS = 1e-5


def ln_vision_eps(config: Blip2Config) -> float:
    """The eps of the norm after the vision tower.

    Trap: LAVIS's `ln_vision` has torch's default of 1e-5, while the tower's own norms have 1e-6;
    HF's config has one field for both. An imported checkpoint says which it was trained with.
    """
    return float(getattr(config.vision_config, "post_layernorm_eps", LN_VISION_EPS))


class VisionPart(Blip2PreTrainedModel):  # type: ignore[misc]
    """The vision tower and the norm after it, in whatever precision it is loaded in."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.vision_model.post_layernorm.eps = ln_vision_eps(config)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(n, 3, s, s) normalised pixels -> (n, t, w) states after the final norm."""
        states: Tensor = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return states


class QueryPart(Blip2PreTrainedModel):  # type: ignore[misc]
    """The Q-Former and its query tokens, as every BLIP-2 checkpoint has them; float32."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()

    def query_states(self, vision_states: Tensor) -> Tensor:
        """(n, t, w) vision states -> (n, q, h) states of the queries that looked at them."""
        queries = self.query_tokens.expand(vision_states.shape[0], -1, -1)
        states: Tensor = self.qformer(
            query_embeds=queries, encoder_hidden_states=vision_states.to(queries)
        ).last_hidden_state
        return states


class RetrievalPart(QueryPart):
    """`QueryPart` with the text embeddings, projections and matching head of a retrieval model."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        width, dim = config.qformer_config.hidden_size, config.image_text_hidden_size
        self.embeddings = Blip2TextEmbeddings(config.qformer_config)
        self.vision_projection = nn.Linear(width, dim)
        self.text_projection = nn.Linear(width, dim)
        self.itm_head = nn.Linear(width, 2)
        self.post_init()

    def text_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, l) ids and mask -> (n, l, h) states of the text alone."""
        states: Tensor = self.qformer(
            query_embeds=self.embeddings(input_ids=ids), query_length=0, attention_mask=mask
        ).last_hidden_state
        return states


class LanguagePart(Blip2PreTrainedModel):  # type: ignore[misc]
    """What a language model makes of a text: T5's encoder, or OPT without its head."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.language_model: Any
        if config.text_config.model_type == "t5":
            self.language_model = T5EncoderModel(config.text_config)
        else:
            self.language_model = nn.Module()
            self.language_model.model = AutoModel.from_config(config.text_config)
        self.post_init()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, l) ids and mask -> (n, l, h) last hidden states."""
        model = getattr(self.language_model, "model", self.language_model)
        states: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states
