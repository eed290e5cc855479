"""Captions out: models that write about an image from its stored `tokens`.

A family that writes captions has in its `__init__.py`, beside what `family.Family` says,

    def open_captioner(checkpoint: Checkpoint, *, device: str, dtype: str) -> Captioner
    def captioner_part_of(name: str) -> str | None    # part that a tensor of a captioner decides

What word comes next is decided elsewhere (`caption/generating.py`): a captioner gives logits.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays, Encoder, open_encoder
from retrieval_engine.models.adapters import adapted, resolve, with_adapter
from retrieval_engine.models.checkpoint import read_config
from retrieval_engine.models.family import family_of, family_with
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Feature, Modality

if TYPE_CHECKING:
    import torch

DEFAULT_LENGTH = 30  # of BLIP's and LAVIS's `generate`


class DecodingState(Protocol):
    """A batch of captions under way: b sentences for each of n images, all equally long."""

    def step(self, ids: "torch.Tensor", parents: "torch.Tensor | None") -> "torch.Tensor":
        """Append one token to each sentence.

        Args:
            ids: (n, b) the token that was chosen last for each sentence.
            parents: (n, b) which of its image's sentences of the step before each one goes on
                with; None for its own. The first step may have any b; all go on with sentence 0.

        Returns:
            (n, b, v) float32 logits of the next token.
        """

    def keep(self, images: "torch.Tensor") -> None:
        """Go on with some of the images only.

        Args:
            images: (m,) positions among the n images.
        """


class Captioner(Protocol):
    """A model that writes captions; its vision tower is an encoder of `tokens`.

    Attributes:
        spec: all that decides its numbers; the part `vision` is that of a retrieval encoder with
            the same tower, whose stored `tokens` serve both.
        preprocessor: as of an `Encoder`.
        captions_at_once: sentences of a batch that suit the device.
        prompt: what it was trained to go on from.
        says_prompt: whether its files name the prompt; it is the authors' otherwise.
        end_id: token that ends a sentence.
        default_length: tokens of a sentence where nobody says, counted as `prompt_counts` says.
        repetition_penalty: where nobody says; 1 is none.
        no_repeat_ngram: where nobody says; 0 is none.
        longest: number of tokens of a sentence at most, `prompt_ids` included.
        prompt_counts: whether limits of length count `prompt_ids`, as the authors' do or do not.
        device: where it runs.
        dtype: arithmetic; float32, or half precision through autocast on a CPU.
    """

    spec: EncoderSpec
    preprocessor: ImagePreprocessor
    captions_at_once: int
    prompt: str
    says_prompt: bool
    end_id: int
    default_length: int
    repetition_penalty: float
    no_repeat_ngram: int
    longest: int
    prompt_counts: bool
    device: "torch.device"
    dtype: "torch.dtype"

    @property
    def default_batch_size(self) -> int:
        """Images per call of `encode_images` that suit the device."""

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features it can emit; `tokens` of images at least."""

    def encode_images(self, pixels: NDArray[np.uint8], features: Sequence[str]) -> Arrays:
        """Features of images; see `Encoder.encode_images`."""

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that count as the beginning of every sentence, e.g. [DEC] a picture of."""

    def text(self, ids: Sequence[int], prompt: str) -> str:
        """The words of a sentence, without the prompt, by the authors' own rule.

        Args:
            ids: what was written after `prompt_ids(prompt)`, without the end token.
            prompt: what it went on from.
        """

    def autocast(self) -> AbstractContextManager[object]:
        """The context that `begin` and all steps run in; one for a whole batch, as it caches."""

    def begin(self, tokens: "torch.Tensor", prompt: str) -> "tuple[torch.Tensor, DecodingState]":
        """Read the images and the prompt.

        Args:
            tokens: (n, t, w) vision states on the device.
            prompt: the beginning of every sentence.

        Returns:
            (n, v) float32 logits of the first token, and the state to go on with.
        """


@runtime_checkable
class ExplainingCaptioner(Protocol):
    """A captioner that can tell where it looked."""

    def relevance(
        self, tokens: "torch.Tensor", prompt: str, ids: Sequence[int]
    ) -> list[tuple[str, NDArray[np.float32]]]:
        """Where the image mattered to each word.

        Args:
            tokens: (1, t, w) vision states of the image.
            prompt: what the sentence went on from.
            ids: its tokens after the prompt, without the end token.

        Returns:
            Each word and its (g, g) map over the image, at least 0; larger mattered more.
        """


def open_captioner(
    checkpoint: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path = "",
    fast_decode: bool = False,
) -> Captioner:
    """Load a model that writes captions; arguments are those of `models.open_encoder`.

    Raises:
        CheckpointNotFound: neither a directory nor a reachable hub id.
        CheckpointInvalid: the files are no captioning model that some family knows.
        FingerprintMismatch: the adapter was trained on another base.
    """
    found = replace(resolve(checkpoint), fast_decode=fast_decode)
    if adapter:
        found = with_adapter(found, adapter)
    known = family_with(family_of(found), "open_captioner", "writes captions")
    captioner: Captioner = known.open_captioner(found, device=device, dtype=dtype)
    if found.adapter is not None:
        captioner.spec = adapted(captioner.spec, found.adapter, known.captioner_part_of)
    return captioner


def check_captioner(checkpoint: str) -> None:
    """Raise as `open_captioner` where there is no such model or it writes nothing; load nothing."""
    family_with(family_of(resolve(checkpoint)), "open_captioner", "writes captions")


def writes_captions(checkpoint: str) -> bool:
    """Whether a checkpoint's config says that it has a decoder; nothing is loaded.

    Raises:
        CheckpointNotFound: it is not there.
    """
    known = read_config(resolve(checkpoint).path).get("architectures")
    return isinstance(known, list) and any(
        str(name).endswith("ForConditionalGeneration") for name in known
    )


def open_tower(
    checkpoint: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str = "",
    fast_decode: bool = False,
) -> Encoder:
    """What encodes images alone: an encoder, or a captioner where a checkpoint is nothing else.

    A captioner has no features of captions and no matcher; for `tokens` of images it will do.
    Arguments and errors are those of `open_encoder`.
    """
    known = read_config(resolve(checkpoint).path).get("architectures")
    only_writes = known == ["BlipForConditionalGeneration"]
    opener = cast("Callable[..., Encoder]", open_captioner if only_writes else open_encoder)
    return opener(checkpoint, device=device, dtype=dtype, adapter=adapter, fast_decode=fast_decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What a checkpoint's generation_config.json says of writing.

    Attributes:
        prompt: what sentences go on from.
        says_prompt: whether the file has it; the prompt is the authors' otherwise.
        new_tokens: how long they are after it, or None.
        end_id: the token that ends them, or None.
        repetition_penalty: see `DecodingOptions`.
        no_repeat_ngram: see `DecodingOptions`.
    """

    prompt: str
    says_prompt: bool = False
    new_tokens: int | None = None
    end_id: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0


def generation_defaults(path: Path, prompt: str) -> GenerationDefaults:
    """Read `prompt`, `max_new_tokens`, `eos_token_id` and the rules against repeating.

    Args:
        path: its directory.
        prompt: where the file names none.

    Raises:
        CheckpointInvalid: the file is no JSON object, or names several end tokens.
    """
    file = path / "generation_config.json"
    if not file.is_file():
        return GenerationDefaults(prompt=prompt)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        length = said.get("max_new_tokens")
        return GenerationDefaults(
            prompt=str(said.get("prompt", prompt)),
            says_prompt="prompt" in said,
            new_tokens=None if length is None else int(length),
            end_id=single_end(said.get("eos_token_id")),
            repetition_penalty=float(said.get("repetition_penalty") or 1.0),
            no_repeat_ngram=int(said.get("no_repeat_ngram_size") or 0),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointInvalid(f"{file} cannot be read: {error}") from error


def single_end(said: object) -> int | None:
    """The one token that ends a sentence, of `eos_token_id` as files have it: a number or a list.

    Raises:
        ValueError: there are several; a sentence would end at the first of them only.
    """
    ends = sorted(
        {int(str(end)) for end in (said if isinstance(said, list) else [said]) if end is not None}
    )
    if len(ends) > 1:
        raise ValueError(f"several end tokens, {ends}: a sentence ends at one here")
    return ends[0] if ends else None


def rows_of(
    ids: "torch.Tensor", parents: "torch.Tensor | None", sentences: int
) -> "torch.Tensor | None":
    """(n b,) rows of the step before that each sentence goes on with; None when all stay.

    The b sentences of an image lie side by side.

    Args:
        ids: (n, b) the tokens chosen.
        parents: see `DecodingState.step`.
        sentences: b of the step before.
    """
    import torch

    n, b = ids.shape
    if parents is None and b == sentences:
        return None
    chosen = torch.zeros_like(ids) if parents is None else parents
    first = torch.arange(n, device=ids.device)[:, None] * sentences
    return (first + chosen).view(-1)


def rows_of_images(images: "torch.Tensor", sentences: int) -> "torch.Tensor":
    """(m b,) rows of all sentences of some images."""
    import torch

    own = torch.arange(sentences, device=images.device)
    return (images[:, None] * sentences + own).view(-1)
