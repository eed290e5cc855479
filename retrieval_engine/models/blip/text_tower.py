"""BLIP's text tower (Li et al., ICML 2022) on the tensors of the checkpoint's file.

The operations of transformers' `BlipTextModel` in their order: equal to it bit by bit where torch
computes them; where NumPy does, which a search from the command line need not wait for, to about
1e-6 of its float32. Tests compare both.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import text
from retrieval_engine.models.batching import default_batch_size, in_batches, pad_tokens
from retrieval_engine.models.blip.settings import MAX_TOKENS, MAX_WORDS, BlipSettings
from retrieval_engine.models.blip.text_arithmetic import (
    Arithmetic,
    NumpyArithmetic,
    TorchArithmetic,
)
from retrieval_engine.models.checkpoint import Checkpoint, read_config, weight_files
from retrieval_engine.models.device import pick_device, pick_dtype
from retrieval_engine.models.preprocess import read_preprocessor
from retrieval_engine.models.wordpiece import WordPiece, open_wordpiece
from retrieval_engine.records import Feature, Modality

_TOWER, _LAYER = "text_encoder.embeddings.", "text_encoder.encoder.layer."


def open_text_tower(
    checkpoint: Checkpoint, spec: EncoderSpec, *, device: str
) -> "BlipTextTower | None":
    """The text side of the BLIP that a spec was recorded of, on a CPU.

    None where config.json or the tokenizer leave something to transformers, where the weights are
    no safetensors or have other names, and where the fingerprint is another one.
    """
    arithmetic = _arithmetic(spec.dtype, device)
    if arithmetic is None:
        return None
    try:
        settings = BlipSettings.stated(read_config(checkpoint.path))
        words = open_wordpiece(checkpoint.path)
        if settings is None or words is None or settings.text[2] != "gelu":
            return None
        found = BlipTextTower(checkpoint, settings, words, arithmetic, spec.dtype)
    except (CheckpointInvalid, SafetensorError, OSError, KeyError, TypeError):
        return None
    return found if found.spec.fingerprint == spec.fingerprint else None


def _arithmetic(dtype: str, device: str) -> Arithmetic | None:
    """NumPy's as long as nothing else has imported torch; None for a GPU."""
    if device in ("auto", "cpu") and "torch" not in sys.modules:
        return NumpyArithmetic()  # in float32, which half precision only comes near to
    place = pick_device(device)
    return TorchArithmetic(pick_dtype(dtype, place)) if place.type == "cpu" else None


class BlipTextTower:
    """See `TextTower`; as `families.blip.BlipEncoder` on a CPU.

    Raises:
        KeyError: a tensor is missing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: BlipSettings,
        words: WordPiece,
        arithmetic: Arithmetic,
        dtype: str,
    ) -> None:
        files = weight_files(checkpoint.path)
        self._tensors = arithmetic.tensors(files, ("text_encoder.", "text_proj."))
        self.preprocessor = read_preprocessor(checkpoint, settings.image_size)
        self.default_batch_size = default_batch_size(settings.tokens, "cpu")
        self.spec = settings.spec(
            checkpoint, self.preprocessor, vocabulary=words.digest, dtype=dtype
        )
        self._settings, self._words, self._do = settings, words, arithmetic
        starts = {name.removeprefix(_LAYER).partition(".")[0] for name in self._tensors}
        self._layers = [f"{_LAYER}{i}." for i in range(sum(start.isdigit() for start in starts))]

    def features(self, modality: Modality) -> dict[str, Feature]:
        """See `Encoder.features`."""
        return self._settings.features(self.spec, modality)

    def encode_texts(
        self, texts: Sequence[str], features: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """See `Encoder.encode_texts`."""
        cleaned = [text.pre_caption(t, MAX_WORDS) for t in texts]
        ids = self._words.ids(cleaned, MAX_TOKENS)
        padded, mask = pad_tokens(ids, MAX_TOKENS, pad=self._words.pad_token_id)
        pooled = in_batches(ids, self._states)
        projected = self._linear(self._do.array(pooled), "text_proj")
        found: dict[str, NDArray[Any]] = {
            "itc": self._do.unit(projected)[:, None],
            "pooled": pooled,
            "token_ids": padded.astype(np.int32),
            "token_mask": mask.astype(np.uint8),
        }
        return {name: found[name] for name in features}

    def _states(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(n, h) pooled states of texts of about equal length."""
        padded, given = pad_tokens(ids, max(map(len, ids)), pad=self._words.pad_token_id)
        padding = None if given.all() else self._do.array(given == 0)
        with self._do.computing():
            states = self._embedded(self._do.array(padded))
            for layer in self._layers:
                states = self._layer(layer, states, padding)
            return self._do.pooled(states, self._do.array(given), self._settings.pooling)

    def _embedded(self, ids: Any) -> Any:
        words = self._tensors[f"{_TOWER}word_embeddings.weight"][ids]
        places = self._tensors[f"{_TOWER}position_embeddings.weight"][: ids.shape[1]]
        return self._norm(words + places, f"{_TOWER}LayerNorm")

    def _layer(self, at: str, states: Any, padding: Any | None) -> Any:
        n, length, _ = states.shape
        q, k, v = (
            self._linear(states, f"{at}attention.self.{name}")
            .reshape(n, length, self._settings.text[0], -1)
            .swapaxes(1, 2)  # (n, l, w) -> (n, h, l, d)
            for name in ("query", "key", "value")
        )
        out = self._do.attention(q, k, v, padding).swapaxes(1, 2).reshape(n, length, -1)
        out = self._linear(out, f"{at}attention.output.dense")
        states = self._norm(out + states, f"{at}attention.output.LayerNorm")
        out = self._do.gelu(self._linear(states, f"{at}intermediate.dense"))
        out = self._linear(out, f"{at}output.dense")
        return self._norm(out + states, f"{at}output.LayerNorm")

    def _linear(self, x: Any, name: str) -> Any:
        return self._do.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def _norm(self, x: Any, name: str) -> Any:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return self._do.norm(x, weight, bias, self._settings.text[1])
