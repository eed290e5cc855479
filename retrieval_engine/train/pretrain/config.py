"""What decides a pretraining: the size of the model and the recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from retrieval_engine.errors import UsageError
from retrieval_engine.train.pretrain.run_config import RunConfig, at_least, below_one, one_of

PROMPT = "a picture of "
OBJECTIVES = ("itc+itm+lm+concepts", "itc+itm+lm", "itc+lm")
OPTIMIZERS = ("muon", "adamw")
_LONGEST_CAPTION = 60  # with the prompt before it a sentence has 64 tokens at most


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Shape of a BLIP: one vision tower, a text encoder and a decoder that shares most of it.

    Attributes:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels; divides `image_size`.
        width: hidden size of all three towers.
        heads: attention heads of all three.
        vision_layers: blocks of the vision tower.
        text_layers: blocks of the text encoder and of the decoder.
        embed_dim: length of the `itc` vectors.
        vocabulary: upper limit of the tokenizer's pieces when one is trained.
        text_length: longest caption in tokens, [CLS] and [SEP] included.
    """

    image_size: int
    patch_size: int
    width: int
    heads: int
    vision_layers: int
    text_layers: int
    embed_dim: int
    vocabulary: int
    text_length: int = 35

    @property
    def patches(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size


PRESETS: Mapping[str, ModelSize] = MappingProxyType(
    {
        "micro": ModelSize(
            image_size=32,
            patch_size=8,
            width=32,
            heads=2,
            vision_layers=2,
            text_layers=1,
            embed_dim=32,
            vocabulary=1000,
        ),
        "tiny": ModelSize(
            image_size=64,
            patch_size=8,
            width=128,
            heads=4,
            vision_layers=6,
            text_layers=3,
            embed_dim=128,
            vocabulary=2000,
        ),
        "small": ModelSize(
            image_size=128,
            patch_size=16,
            width=256,
            heads=4,
            vision_layers=8,
            text_layers=4,
            embed_dim=256,
            vocabulary=8000,
        ),
        "base": ModelSize(
            image_size=224,
            patch_size=16,
            width=768,
            heads=12,
            vision_layers=12,
            text_layers=12,
            embed_dim=256,
            vocabulary=30522,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig(RunConfig):
    """One pretraining from scratch, besides what `RunConfig` says.

    Attributes:
        preset: name in `PRESETS`.
        image_size: side of the input in pixels; 0 is the preset's, as of the three below.
        width: hidden size of all towers.
        layers: blocks of the vision tower, and as many of the text side.
        caption_length: longest caption in tokens.
        limit: train on the first so many pictures; 0 takes all. Those to select on stay as they are.
        max_captions: of a picture, the first so many; 0 takes all.
        objective: the losses. `concepts` are what is in the picture, in a stage of their own and
            beside the others; without them, and without `itm`, a decoder that is trained from
            scratch learns the commonest sentence and does not look (benchmarks/LOG.md).
        optimizer: `muon` on matrices and AdamW on the rest, or `adamw` on everything.
        epochs: passes over the pictures in place of `steps`; 0 leaves it at `steps`.
        concept_share: part of the steps spent on the vision tower alone, learning to name what is
            in the picture, before text comes in.
        texts_per_image: captions of each picture in the contrastive loss.
        itm_share: part of the batch that the matching loss is computed on.
        matrix_lr: peak step on the encoders' matrices in the joint stage; None is 4e-3 for Muon,
            where the vision tower takes half of it, and 1e-3 for AdamW, where all weights take it.
        concept_lr: peak step of Muon in the concept stage.
        other_lr: peak step of AdamW on everything else.
        concept_weight: weight of the concept loss beside the others in the joint stage.
        caption_weight: weight of the caption loss.
        patience: validations without a better mean recall before stopping; 0 never stops early.
        tokenizer: directory of a BERT tokenizer; empty trains one on the captions.
    """

    APART: ClassVar[tuple[str, ...]] = (*RunConfig.APART, "patience")

    preset: str = "tiny"
    image_size: int = 0
    width: int = 0
    layers: int = 0
    caption_length: int = 0
    limit: int = 0
    max_captions: int = 0
    objective: str = OBJECTIVES[0]
    optimizer: str = OPTIMIZERS[0]
    epochs: int = 0
    concept_share: float = 0.25
    texts_per_image: int = 2
    itm_share: float = 0.5
    matrix_lr: float | None = None
    concept_lr: float = 1e-2
    other_lr: float = 1e-3
    concept_weight: float = 0.5
    caption_weight: float = 1.0
    patience: int = 0
    tokenizer: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            UsageError: a value is out of range; the message names it and what is allowed.
        """
        RunConfig.__post_init__(self)
        if self.preset not in PRESETS:
            raise UsageError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        at_least(self, 0, "image_size", "width", "layers", "limit", "max_captions", "epochs")
        at_least(self, 0, "patience", "concept_lr", "other_lr", "concept_weight", "caption_weight")
        if self.matrix_lr is not None:
            at_least(self, 0, "matrix_lr")
        below_one(self, "concept_share")
        one_of("objective", self.objective, OBJECTIVES)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        _check_shape(self)

    @property
    def size(self) -> ModelSize:
        """Shape of the model."""
        size = PRESETS[self.preset]
        if self.width:
            size = replace(
                size,
                width=self.width,
                heads=max(1, self.width // _head_width(self.width)),
                embed_dim=min(self.width, 256),
            )
        layers = self.layers
        return replace(
            size,
            image_size=self.image_size or size.image_size,
            vision_layers=layers or size.vision_layers,
            text_layers=layers or size.text_layers,
            text_length=self.caption_length or size.text_length,
        )

    @property
    def has_concepts(self) -> bool:
        """Whether the vision tower learns what is in the picture."""
        return "concepts" in self.objective

    @property
    def stage_share(self) -> float:
        """Part of the steps in which it learns nothing else."""
        return self.concept_share if self.has_concepts else 0.0

    @property
    def peak(self) -> float:
        """Peak step on the encoders' matrices."""
        if self.matrix_lr is not None:
            return self.matrix_lr
        return 4e-3 if self.optimizer == "muon" else 1e-3


def _head_width(width: int) -> int:
    """Width of an attention head."""
    return 64 if width >= 256 else 32


def _check_shape(config: PretrainConfig) -> None:
    patch, each = PRESETS[config.preset].patch_size, _head_width(config.width)
    if config.image_size % patch:
        raise UsageError(
            f"`image_size={config.image_size}` is no multiple of the patches' {patch} pixels",
            hint=f"try `image_size={max(1, round(config.image_size / patch)) * patch}`",
        )
    if config.width % each:
        raise UsageError(
            f"`width={config.width}` is no multiple of a head's {each}",
            hint=f"try `width={max(1, round(config.width / each)) * each}`",
        )
    if config.caption_length and not 4 <= config.caption_length <= _LONGEST_CAPTION:
        raise UsageError(
            f"`caption_length` is {config.caption_length}; allowed: 4 to {_LONGEST_CAPTION} tokens"
        )
