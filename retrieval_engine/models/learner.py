"""What a family gives to training: the checkpoint's own modules, driven from stored states.

A family that can be fine-tuned has in its `__init__.py`

    def open_learner(
        checkpoint: Checkpoint, task: Task, *, with_tower: bool, dtype: torch.dtype, quantize: str
    ) -> Learner

A learner's `model` has the checkpoint's own parameter names and holds only what the task needs;
without the tower nothing of it is loaded.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.family import family_of, family_with
from retrieval_engine.models.preprocess import ImagePreprocessor

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from retrieval_engine.models.captioner import DecodingState
    from retrieval_engine.models.matcher import CrossEncoder


class Task(StrEnum):
    """Task that a model is fine-tuned for."""

    RETRIEVAL = "retrieval"
    CAPTION = "caption"


class Learner(Protocol):
    """A model as fine-tuning drives it.

    Attributes:
        model: the modules, by the checkpoint's names.
        preprocessor: for images, with a tower.
        vision: digest of the weights of the vision tower whose states it reads.
        frozen: parameters (by the start of their names) that full fine-tuning leaves alone.
        targets: name of the preset of modules that adapters go to by default.
        width: hidden size that the default step size follows.
        pad_id: fills short texts.
    """

    model: "nn.Module"
    preprocessor: ImagePreprocessor
    vision: str
    frozen: tuple[str, ...]
    targets: str
    width: int
    pad_id: int

    def see(self, pixels: "Tensor") -> "Tensor":
        """(n, 3, s, s) normalised pixels -> (n, t, w) states after the final norm."""


@runtime_checkable
class RetrievalLearner(Learner, Protocol):
    """A learner of ITC and ITM.

    Attributes:
        momentum: whether the family's authors train with momentum copies and a queue.
        cross: scores pairs; built on the same modules.
    """

    momentum: bool
    cross: "CrossEncoder"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of cleaned texts, as the family's encoder makes them."""

    def match_ids(self, ids: "Tensor") -> "Tensor":
        """(…, l) the same texts as the matching head reads them, [ENC] first for BLIP."""

    def embed_images(self, states: "Tensor") -> "Tensor":
        """(n, t, w) -> (n, q, d) float32, unit length."""

    def embed_texts(self, ids: "Tensor", mask: "Tensor") -> "Tensor":
        """(n, l) -> (n, d) float32, unit length."""

    def copy(self) -> "RetrievalLearner":
        """A deep copy that shares nothing."""


@runtime_checkable
class CaptionLearner(Learner, Protocol):
    """A learner of captions.

    Attributes:
        prompt: what captions go on from, in training as in writing.
        end_id: token that ends a caption.
    """

    prompt: str
    end_id: int

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Ids of each caption as the decoder reads it, prompt and end included.

        Returns:
            The ids, and how many at the beginning are given rather than learned.
        """

    def read(self, states: "Tensor") -> Any:
        """What the decoder sees of (i, t, w) images; made once for all their captions."""

    def logits(self, seen: Any, ids: "Tensor", mask: "Tensor") -> "Tensor":
        """(i, n, l) ids and mask of n texts per image -> (i, n, l, v) logits of each next token."""

    def begin(self, states: "Tensor") -> "tuple[list[int], Tensor, DecodingState]":
        """Begin to write captions for (i, t, w) images, with the weights as they are now.

        Returns:
            The ids that are given, (i, v) logits of the next token, and what goes on from there.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens that were written after the prompt."""


def open_learner(
    checkpoint: Checkpoint,
    task: Task,
    *,
    with_tower: bool,
    dtype: "torch.dtype",
    quantize: str = "",
) -> Learner:
    """Load the modules of a checkpoint that a task trains.

    Args:
        checkpoint: where the files are.
        task: what to train for.
        with_tower: load the vision tower too.
        dtype: of the weights.
        quantize: `8bit` or `4bit` linear layers, for training adapters beside them.

    Raises:
        CheckpointInvalid: the checkpoint lacks what the task needs.
    """
    known = family_with(family_of(checkpoint), "open_learner", "can be fine-tuned")
    learner: Learner = known.open_learner(
        checkpoint, task, with_tower=with_tower, dtype=dtype, quantize=quantize
    )
    return learner
