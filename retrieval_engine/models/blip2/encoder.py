"""BLIP-2 (Li et al., ICML 2023): retrieval checkpoints, and those with a language model.

Traps: an image's ITC embedding is 32 vectors, and its score with a text the maximum over them, not
a mean; the text embedding is that of [CLS], with no [ENC] anywhere; LAVIS cuts captions at 50 words
where BLIP cuts at 30; bfloat16 through `from_pretrained` would take the Q-Former along, which is
meant to stay in float32.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertTokenizer, Blip2Config

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models import text
from retrieval_engine.models.blip2 import part_of
from retrieval_engine.models.blip2.cross_encoder import Blip2CrossEncoder
from retrieval_engine.models.blip2.image_side import Blip2Images
from retrieval_engine.models.blip2.language import Blip2LanguageEncoder
from retrieval_engine.models.blip2.parts import RetrievalPart
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.dual_encoder import DualEncoder
from retrieval_engine.models.loading import load_config, load_tokenizer
from retrieval_engine.models.matcher import Matcher
from retrieval_engine.records import Feature

MAX_WORDS = 50  # LAVIS's BlipCaptionProcessor
MAX_TOKENS = 35  # LAVIS's retrieval evaluation


def open_encoder(
    checkpoint: Checkpoint, *, device: str, dtype: str
) -> "Blip2Encoder | Blip2LanguageEncoder":
    """Load a `Blip2ForImageTextRetrieval` or the features of a `Blip2ForConditionalGeneration`.

    See `models.open_encoder`.
    """
    config = load_config(Blip2Config, checkpoint)
    if {"Blip2ForConditionalGeneration", "Blip2Model"} & set(config.architectures or ()):
        return Blip2LanguageEncoder(checkpoint, config, device=device, dtype=dtype)
    return Blip2Encoder(checkpoint, config, device=device, dtype=dtype)


class Blip2Encoder(Blip2Images, DualEncoder):
    """Features of `Blip2ForImageTextRetrieval`: `itc` (q, d) of images and (1, d) of texts.

    Attributes:
        tokenizer: its WordPiece tokenizer.
    """

    queries_kind = RetrievalPart

    def __init__(
        self, checkpoint: Checkpoint, config: Blip2Config, *, device: str, dtype: str
    ) -> None:
        super().__init__(checkpoint, config, device=device, dtype=dtype)
        if not config.qformer_config.use_qformer_text_input:
            raise CheckpointInvalid(
                f"{checkpoint.name}: use_qformer_text_input is false in config.json, so its "
                "Q-Former reads no text",
                hint="use a retrieval (ITM) checkpoint such as Salesforce/blip2-itm-vit-g",
            )
        # Both sides need it: fail now, not at the first image.
        self.queries: RetrievalPart
        _ = self.queries
        self.tokenizer = load_tokenizer(
            BertTokenizer, checkpoint, rows=config.qformer_config.vocab_size
        )
        settings = {"vision": self.tower_settings(), "shared": self.qformer_settings()}
        settings |= {"image": [], "text": [], "itm": []}
        self.spec = self.spec_of(
            "blip2",
            part_of,
            settings,
            text_normaliser=f"{text.VERSION}({MAX_WORDS})",
            text_length=MAX_TOKENS,
            pooling="mean of queries, cls of texts",
        )

    def image_features(self) -> list[Feature]:
        """Those of images."""
        shape = (self.config.num_query_tokens, self.config.image_text_hidden_size)
        itc = self.form("itc", shape, "vision", "shared", "image")
        return [itc, *super().image_features()]

    def text_features(self) -> list[Feature]:
        """Those of captions."""
        dim, width = self.config.image_text_hidden_size, self.config.qformer_config.hidden_size
        return [
            self.form("itc", (1, dim), "shared", "text"),
            self.form("pooled", (width,), "shared", "text"),
            self.form("token_ids", (MAX_TOKENS,), "shared", "text", dtype="int32"),
            self.form("token_mask", (MAX_TOKENS,), "shared", "text", dtype="uint8"),
        ]

    def of_queries(self, states: Tensor) -> dict[str, Tensor]:
        """Features made of (n, q, h) query states, by name."""
        itc = normalize(self.queries.vision_projection(states), dim=-1)
        return {"itc": itc, **super().of_queries(states)}

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each cleaned text, [CLS] … [SEP], at most 35 of them."""
        return text.token_ids(self.tokenizer, texts, max_words=MAX_WORDS, max_tokens=MAX_TOKENS)

    def text_tower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, h) [CLS] states."""
        return self.queries.text_states(ids, mask)[:, 0]

    def of_text_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """`pooled` is the CLS state, `itc` its projection."""
        projected = self.queries.text_projection(states)
        return {"pooled": states, "itc": normalize(projected, dim=-1)[:, None]}

    def matcher(self) -> Matcher:
        """Scores of (image, text) pairs from stored `tokens`."""
        part = self.queries
        if self.device.type == "cuda" and self.dtype != torch.float32:
            # Features keep the float32 one; a Tensor Core is idle in float32.
            part = copy.deepcopy(part).to(self.dtype)
        return Matcher(
            Blip2CrossEncoder(part),
            self.tokenize,
            pad_token_id=self.tokenizer.pad_token_id,
            device=self.device,
            dtype=self.dtype,
        )
