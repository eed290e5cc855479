"""BLIP with image-text retrieval heads (Li et al., ICML 2022).

Traps: the pooled state is `last_hidden_state[:, 0]` (`pooler_output` applies the final LayerNorm
twice); ITC reads the text at [CLS], ITM at [ENC] (`enc_token_id`); a missing attention mask moves
text embeddings by a third; `BlipModel` would load a random text tower from the same files.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrieval_engine.models import text
from retrieval_engine.models.blip.cross_encoder import open_cross_encoder
from retrieval_engine.models.blip.hybrid_tower import quicken
from retrieval_engine.models.blip.likelihood import Likelihood
from retrieval_engine.models.blip.plain import plain_decoder, plain_retrieval
from retrieval_engine.models.blip.settings import MAX_TOKENS, MAX_WORDS, BlipSettings
from retrieval_engine.models.checkpoint import Checkpoint, tensor_names
from retrieval_engine.models.dual_encoder import DualEncoder
from retrieval_engine.models.loading import vocabulary_digest
from retrieval_engine.models.matcher import Matcher
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.records import Feature, Modality


class BlipEncoder(DualEncoder):
    """Features of `BlipForImageTextRetrieval`: `itc` (1, d), `pooled` (h,), `tokens` (t, w).

    Args:
        checkpoint: where the files are.
        device: as in `models.open_encoder`.
        dtype: as in `models.open_encoder`.
        plain: do without transformers where that gives the same numbers, and is sooner there.

    Attributes:
        model: the model in evaluation mode, with fused attention.
        enc_token_id: first token of a text that is matched with an image.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        plain: bool = False,
    ) -> None:
        super().__init__(checkpoint, device=device, dtype=dtype)
        self._plain = plain and self.device.type == "cpu"
        found = plain_retrieval(checkpoint) if self._plain else None
        model, self.tokenizer = found or self._through_transformers()
        model.vision_proj.float()
        model.text_proj.float()
        model.itm_head.float()
        self.model: Any = model.to(self.device)
        quicken(self, model)
        self._settings = BlipSettings.of(model.config)
        self.enc_token_id = self._enc_token_id()
        self.preprocessor = read_preprocessor(checkpoint, self._settings.image_size)
        self.spec = self._settings.spec(
            checkpoint,
            self.preprocessor,
            vocabulary=vocabulary_digest(self.tokenizer),
            dtype=self.arithmetic,
        )

    def _through_transformers(self) -> tuple[Any, Any]:
        from retrieval_engine.models.blip.hybrid import load_retrieval, with_words

        return with_words(load_retrieval(self.checkpoint, dtype=self._stored), self.checkpoint)

    @property
    def _stored(self) -> torch.dtype:
        """Of weights: CPU autocast keeps float32 ones and sums, and is as fast as with others."""
        return self.dtype if self.device.type == "cuda" else torch.float32

    def _enc_token_id(self) -> int:
        """[ENC] where the tokenizer names it; BLIP always appends it as the last id."""
        known = self.tokenizer.get_vocab().get("[ENC]")
        return int(self.model.config.text_config.vocab_size - 1 if known is None else known)

    def image_features(self) -> list[Feature]:
        """Those of images."""
        return list(self._settings.features(self.spec, Modality.IMAGES).values())

    def text_features(self) -> list[Feature]:
        """Those of captions."""
        return list(self._settings.features(self.spec, Modality.CAPTIONS).values())

    def vision_tower(self, pixels: Tensor) -> Tensor:
        """See `ImageEncoder.vision_tower`."""
        states: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def of_vision_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """`pooled` is the CLS state, `itc` its projection."""
        cls = states[:, 0].float()
        found = {"pooled": cls}
        if "itc" in features:
            found["itc"] = normalize(self.model.vision_proj(cls), dim=-1)[:, None]  # (n, 1, d)
        return found

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each cleaned text, [CLS] … [SEP], at most 35 of them."""
        return text.token_ids(self.tokenizer, texts, max_words=MAX_WORDS, max_tokens=MAX_TOKENS)

    def text_tower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, h) [CLS] states, or the mean over the tokens where the checkpoint says so."""
        states: Tensor = self.model.text_encoder(
            input_ids=ids, attention_mask=mask
        ).last_hidden_state
        return text.pooled(states, mask, self._settings.pooling)

    def of_text_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """`pooled` is the text's state, `itc` its projection."""
        found = {"pooled": states}
        if "itc" in features:
            found["itc"] = normalize(self.model.text_proj(states), dim=-1)[:, None]
        return found

    def matcher(self) -> Matcher:
        """Scores of (image, text) pairs from stored `tokens`."""

        def tokenize(texts: Sequence[str]) -> list[list[int]]:
            # ITM was trained with [ENC] first: with [CLS] probabilities move by up to .27.
            return [[self.enc_token_id, *ids[1:]] for ids in self.tokenize(texts)]

        return Matcher(
            open_cross_encoder(self.model, self.model.config, self._likelihood),
            tokenize,
            pad_token_id=self.tokenizer.pad_token_id,
            device=self.device,
            dtype=self.dtype,
            pieces=self.tokenizer.convert_ids_to_tokens,
        )

    @cached_property
    def _likelihood(self) -> Likelihood | None:
        """What the decoder adds to match logits; None where the checkpoint does not ask for it."""
        match = self._settings.match
        if match is None or not match.likelihood:
            return None
        names = tensor_names(self.checkpoint.path)
        if not any(name.startswith("text_decoder.") for name in names):
            return None
        base = replace(self.checkpoint, adapter=None)  # it writes as it did before
        decoder: Any = plain_decoder(base) if self._plain else None
        if decoder is None:
            from retrieval_engine.models.blip.hybrid import load_captioning

            decoder = load_captioning(base, dtype=self._stored).text_decoder
        shares = self.checkpoint.adapter is None and not any(map(_is_own_attention, names))
        start = int(self.model.config.text_config.bos_token_id)
        return Likelihood(decoder.to(self.device).eval(), start, shares=shares)


def _is_own_attention(name: str) -> bool:
    """Whether a tensor is of a decoder's cross-attention, apart from the text encoder's."""
    return name.startswith("text_decoder.") and ".crossattention." in name


open_encoder = partial(BlipEncoder, plain=True)
