"""BLIP with image-text retrieval heads (Li et al., ICML 2022).

Traps: the pooled state is `last_hidden_state[:, 0]` (`pooler_output` applies the final LayerNorm
twice); ITC reads the text at [CLS], ITM at [ENC] (`enc_token_id`); a missing attention mask moves
text embeddings by a third; `BlipModel` would load a random text tower from the same files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertTokenizer

from retrieval_engine.models import text
from retrieval_engine.models.batching import (
    default_batch_size,
    halve_on_oom,
    in_batches,
    pad_tokens,
)
from retrieval_engine.models.blip.attention import use_fused_attention
from retrieval_engine.models.blip.cross_encoder import BlipCrossEncoder
from retrieval_engine.models.blip.hybrid import load_retrieval
from retrieval_engine.models.blip.settings import MAX_TOKENS, MAX_WORDS, BlipSettings
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.device import (
    autocast,
    forbid_tf32,
    normalized_pixels,
    pick_device,
    pick_dtype,
)
from retrieval_engine.models.loading import load_tokenizer, vocabulary_digest
from retrieval_engine.models.matcher import Matcher
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.records import Feature, Modality


class BlipEncoder:
    """Features of `BlipForImageTextRetrieval`: `itc` (1, d), `pooled` (h,), `tokens` (t, w).

    Attributes:
        model: the transformers model in evaluation mode, with fused attention.
        tokenizer: its WordPiece tokenizer.
        enc_token_id: first token of a text that is matched with an image.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto"
    ) -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        forbid_tf32(self.device, self.dtype)
        # CPU autocast keeps float32 weights and sums, and is as fast as bfloat16 weights.
        stored = self.dtype if self.device.type == "cuda" else torch.float32
        model = load_retrieval(checkpoint, dtype=stored)
        use_fused_attention(model)
        model.vision_proj.float()
        model.text_proj.float()
        model.itm_head.float()
        self.model = model.to(self.device)
        self.tokenizer = load_tokenizer(BertTokenizer, checkpoint)
        self._settings = BlipSettings.of(model.config)
        self.enc_token_id = self._enc_token_id()
        self.preprocessor = read_preprocessor(checkpoint.path, self._settings.image_size)
        self.default_batch_size = default_batch_size(self._settings.tokens, self.device.type)
        self.spec = self._settings.spec(
            checkpoint,
            self.preprocessor,
            vocabulary=vocabulary_digest(self.tokenizer),
            dtype=self.dtype,
        )

    def _enc_token_id(self) -> int:
        """[ENC] where the tokenizer names it; BLIP always appends it as the last id."""
        known = self.tokenizer.get_vocab().get("[ENC]")
        return int(self.model.config.text_config.vocab_size - 1 if known is None else known)

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features it can emit; see `Encoder.features`."""
        return self._settings.features(self.spec, modality)

    @halve_on_oom
    @torch.inference_mode()
    def encode_images(
        self, pixels: NDArray[np.uint8], features: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Features of a batch of images; see `Encoder.encode_images`."""
        return self._of_states(self.vision_states(pixels), features)

    @torch.inference_mode()
    def encode_tokens(
        self, tokens: NDArray[Any], features: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Features of images whose states are known; see `ReadsTokens.encode_tokens`."""
        return self._of_states(torch.from_numpy(tokens).to(self.device), features)

    def _of_states(self, states: Tensor, features: Sequence[str]) -> dict[str, NDArray[Any]]:
        found: dict[str, Tensor] = {}
        if "itc" in features:
            projected = self.model.vision_proj(states[:, 0].float())
            found["itc"] = normalize(projected, dim=-1)[:, None]  # (n, d) -> (n, 1, d)
        if "pooled" in features:
            found["pooled"] = states[:, 0].float()
        if "tokens" in features:
            # NumPy has no bfloat16
            found["tokens"] = states if states.dtype == torch.float16 else states.float()
        return {name: value.cpu().numpy() for name, value in found.items()}

    def vision_states(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(n, s, s, 3) uint8 pixels -> (n, t, w) states after the final LayerNorm, on the device."""
        x = normalized_pixels(pixels, self.preprocessor, self.device)
        with autocast(self.device, self.dtype):
            states: Tensor = self.model.vision_model(pixel_values=x).last_hidden_state
        return states

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each cleaned text, [CLS] … [SEP], at most 35 of them."""
        return text.token_ids(self.tokenizer, texts, max_words=MAX_WORDS, max_tokens=MAX_TOKENS)

    @torch.inference_mode()
    def encode_texts(
        self, texts: Sequence[str], features: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Features of captions or queries; see `Encoder.encode_texts`."""
        ids = self.tokenize(texts)
        found: dict[str, NDArray[Any]] = {}
        if "token_ids" in features or "token_mask" in features:
            padded, mask = pad_tokens(ids, MAX_TOKENS, pad=self.tokenizer.pad_token_id)
            found["token_ids"], found["token_mask"] = padded.astype(np.int32), mask.astype(np.uint8)
        if "itc" in features or "pooled" in features:
            pooled = found["pooled"] = in_batches(
                ids, self._text_states, width=self.model.config.text_config.hidden_size
            )
            if "itc" in features:
                projected = self.model.text_proj(torch.from_numpy(pooled).to(self.device))
                found["itc"] = normalize(projected, dim=-1)[:, None].cpu().numpy()
        return {name: found[name] for name in features}

    def _text_states(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(n, h) pooled states of texts of about equal length."""
        padded, given = pad_tokens(ids, max(map(len, ids)), pad=self.tokenizer.pad_token_id)
        mask = torch.from_numpy(given).to(self.device)
        with autocast(self.device, self.dtype):
            states = self.model.text_encoder(
                input_ids=torch.from_numpy(padded).to(self.device),
                attention_mask=mask,
            ).last_hidden_state
        pooled = text.pooled(states, mask, self._settings.pooling)
        array: NDArray[np.float32] = pooled.float().cpu().numpy()
        return array

    def matcher(self) -> Matcher:
        """Scores of (image, text) pairs from stored `tokens`."""

        def tokenize(texts: Sequence[str]) -> list[list[int]]:
            # ITM was trained with [ENC] first: with [CLS] probabilities move by up to .27.
            return [[self.enc_token_id, *ids[1:]] for ids in self.tokenize(texts)]

        return Matcher(
            BlipCrossEncoder(self.model.text_encoder, self.model.itm_head),
            tokenize,
            pad_token_id=self.tokenizer.pad_token_id,
            device=self.device,
            dtype=self.dtype,
        )
