"""What every encoder does: a device, an arithmetic, checked features, batches that fit.

A family adds what its model computes: states of images and of texts, and the features made of
them. A dual encoder without more to say is four methods and its settings; `CONTRIBUTING.md` shows
one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.batching import (
    default_batch_size,
    in_batches,
    pad_tokens,
    piece_size,
)
from retrieval_engine.models.checkpoint import Checkpoint, weight_digests
from retrieval_engine.models.device import (
    Collected,
    autocast,
    forbid_tf32,
    normalized_pixels,
    on_device,
    pick_device,
    pick_dtype,
)
from retrieval_engine.models.encoder import Arrays, unknown_features
from retrieval_engine.models.float8 import FLOAT8, to_float8
from retrieval_engine.models.int8 import INT8, to_int8
from retrieval_engine.models.lanes import TOKENIZING, lanes_on
from retrieval_engine.models.loading import vocabulary_digest
from retrieval_engine.models.matcher import Matcher
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Modality

Tower = TypeVar("Tower", bound=nn.Module)
_ROUNDED = {INT8: to_int8, FLOAT8: to_float8}


class ImageEncoder(ABC):
    """What encoders and captioners share: a vision tower and the features made of its states.

    A subclass sets `preprocessor`, `tokenizer` and `spec` in its `__init__`, after this one's.

    Args:
        checkpoint: where the files are.
        device: as in `models.open_encoder`.
        dtype: as in `models.open_encoder`.

    Attributes:
        checkpoint: as given.
        device: where it runs.
        dtype: arithmetic of the towers.
        arithmetic: its name; of `int8` and `float8`, `dtype` is that of all but linear layers.
        most_images: that go through the vision tower at once: what fitted so far.
    """

    spec: EncoderSpec
    preprocessor: ImagePreprocessor
    tokenizer: Any

    def __init__(self, checkpoint: Checkpoint, *, device: str, dtype: str) -> None:
        self.checkpoint = checkpoint
        self.device = pick_device(device, dtype)
        self.dtype = pick_dtype(dtype, self.device)
        self.arithmetic = dtype if dtype in _ROUNDED else str(self.dtype).removeprefix("torch.")
        forbid_tf32(self.device, self.dtype)
        self.most_images = 1 if dtype == INT8 else 1 << 30  # see `int8`

    # What a family says

    @abstractmethod
    def image_features(self) -> list[Feature]:
        """The features of images; `tokens` among them tells how large a batch may be."""

    @abstractmethod
    def vision_tower(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) float32 normalised pixels -> (n, t, w) states after the final norm."""

    def text_features(self) -> list[Feature]:
        """The features of captions; none here."""
        return []

    def of_vision_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """(n, t, w) states -> the features of images but `tokens`, by name; all of those named."""
        return {}

    def autocast(self) -> AbstractContextManager[object]:
        """The context that the towers run in."""
        return autocast(self.device, self.dtype)

    def hint(self, unknown: Sequence[str]) -> str:
        """What to do about features that it does not emit."""
        return ""

    # What all do

    def spec_of(
        self,
        family: str,
        part_of: Callable[[str], str | None],
        settings: Mapping[str, object],
        **texts: Any,
    ) -> EncoderSpec:
        """A spec with what is known of every model here: files, tokenizer, pixels, arithmetic.

        Args:
            family: its name.
            part_of: part that a tensor of this name decides.
            settings: by part, what decides its numbers besides the tensors.
            **texts: fields of the spec about the text side and pooling.
        """
        return EncoderSpec(
            family=family,
            checkpoint=self.checkpoint.name,
            revision=self.checkpoint.revision,
            weights=weight_digests(self.checkpoint.path, part_of, settings),
            vocabulary=vocabulary_digest(self.tokenizer),
            image_size=self.preprocessor.image_size,
            preprocessing=self.preprocessor.name,
            dtype=self.arithmetic,
            **texts,
        )

    def in_arithmetic(self, tower: Tower) -> Tower:
        """A vision tower as the arithmetic wants it, from one in `dtype`."""
        if self.arithmetic in _ROUNDED:
            _ROUNDED[self.arithmetic](tower)
        return tower

    def form(
        self, name: str, shape: tuple[int, ...], *parts: str, dtype: str = "float32"
    ) -> Feature:
        """A feature of this shape, which these parts of the encoder decide."""
        return Feature(name=name, shape=shape, dtype=dtype, fingerprint=self.spec.part(*parts))

    @property
    def default_batch_size(self) -> int:
        """Images per call that suit the device."""
        return default_batch_size(self.tokens_per_image, self.device.type)

    @property
    def batches_at_once(self) -> int:
        """Threads that may encode at the same time, a batch each, and gain by it; 1 on a GPU."""
        return lanes_on(self.device)

    @property
    def tokens_per_image(self) -> int:
        """States of the vision tower for an image."""
        shapes = {feature.name: feature.shape for feature in self.image_features()}
        return shapes["tokens"][0]

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features it can emit; see `Encoder.features`."""
        found = self.image_features() if modality is Modality.IMAGES else self.text_features()
        return {feature.name: feature for feature in found}

    def require(self, features: Sequence[str], modality: Modality) -> None:
        """Check that features can be emitted.

        Raises:
            UsageError: one cannot; the message lists those that can.
        """
        known = self.features(modality)
        if unknown := [name for name in features if name not in known]:
            hint = self.hint(unknown)
            raise unknown_features(self.checkpoint.name, unknown, known, modality, hint)

    @torch.inference_mode()
    def encode_images(self, pixels: NDArray[np.uint8], features: Sequence[str]) -> Arrays:
        """Features of a batch of images, in pieces where it does not fit into the device's memory.

        What did not fit once is halved from then on. See `Encoder.encode_images`.
        """
        self.require(features, Modality.IMAGES)
        found = Collected(len(pixels))
        done, piece = 0, piece_size(self.tokens_per_image, self.device.type) or len(pixels)
        left = True
        while left:
            some = pixels[done : done + min(piece, self.most_images)]
            try:
                x = normalized_pixels(some, self.preprocessor, self.device)
                with self.autocast():
                    states = self.vision_tower(x)
                found.add(self._of_states(states, features), len(some))
                done += len(some)
                left = done < len(pixels)
                continue
            except torch.OutOfMemoryError:
                if len(some) <= 1:
                    raise
            self.most_images = len(some) // 2
            torch.cuda.empty_cache()
        return found.arrays()

    @torch.inference_mode()
    def encode_tokens(self, tokens: NDArray[Any], features: Sequence[str]) -> Arrays:
        """Features of images whose states are known; see `ReadsTokens.encode_tokens`."""
        self.require(features, Modality.IMAGES)
        found = self._of_states(on_device(tokens, self.device), features)
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def _of_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if made := [name for name in features if name != "tokens"]:
            found = self.of_vision_states(states, made)
        if "tokens" in features:
            # NumPy knows float16, but no bfloat16.
            found["tokens"] = states if states.dtype == torch.float16 else states.float()
        return {name: found[name] for name in features}


class DualEncoder(ImageEncoder):
    """An encoder of images and texts, each in a tower of its own; see `Encoder`.

    Its `tokenizer` has a `pad_token_id`.
    """

    # What a family says

    @abstractmethod
    def text_features(self) -> list[Feature]:
        """The features of captions."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cleaned and cut as the checkpoint's authors do."""

    @abstractmethod
    def text_tower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(n, l) ids and mask -> (n, h) one state a text; float32 or what autocast makes of it."""

    @abstractmethod
    def of_text_states(self, states: Tensor, features: Sequence[str]) -> dict[str, Tensor]:
        """(n, h) float32 states -> the features of texts, by name; all of those named."""

    def matcher(self) -> Matcher:
        """See `Encoder.matcher`.

        Raises:
            UsageError: it has none; a family with one overrides this.
        """
        raise UsageError(
            f"{self.checkpoint.name} has no matching head: it cannot score pairs",
            hint="a BLIP or BLIP-2 retrieval checkpoint can, such as Salesforce/blip-itm-base-coco",
        )

    # What all do

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], features: Sequence[str]) -> Arrays:
        """Features of captions or queries; see `Encoder.encode_texts`."""
        self.require(features, Modality.CAPTIONS)
        if not texts:
            forms = self.features(Modality.CAPTIONS)
            return {n: np.empty((0, *forms[n].shape), forms[n].dtype) for n in features}
        with TOKENIZING:
            ids = self.tokenize(texts)
        found: Arrays = {}
        if {"token_ids", "token_mask"} & set(features):
            padded, mask = pad_tokens(ids, self.spec.text_length, pad=self.tokenizer.pad_token_id)
            found = {"token_ids": padded.astype(np.int32), "token_mask": mask.astype(np.uint8)}
        if made := [name for name in features if name not in found]:
            states = in_batches(ids, self._text_states, self.device.type)
            tensors = self.of_text_states(torch.from_numpy(states).to(self.device), made)
            found |= {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        return {name: found[name] for name in features}

    def _text_states(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """(n, h) states of texts of about equal length."""
        padded, mask = pad_tokens(ids, max(map(len, ids)), pad=self.tokenizer.pad_token_id)
        with self.autocast():
            states = self.text_tower(
                torch.from_numpy(padded).to(self.device), torch.from_numpy(mask).to(self.device)
            )
        array: NDArray[np.float32] = states.float().cpu().numpy()
        return array
