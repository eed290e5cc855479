"""What decides a pretraining from a backbone's states."""

from dataclasses import dataclass
from typing import ClassVar

from retrieval_engine.errors import UsageError
from retrieval_engine.models.blip.backbone import SCALES, STAGES, are_stages
from retrieval_engine.train.pretrain.run_config import (
    RunConfig,
    above_zero,
    at_least,
    below_one,
    one_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedConfig(RunConfig):
    """One pretraining from a backbone and a BERT, besides what `RunConfig` says.

    Attributes:
        backbone: name in `SCALES`; it stays as it is.
        stages: of the backbone, whose states join its last ones; see `EfficientNetLite`.
        backbone_weights: its published weights, a PyTorch file.
        text_init: directory of a BERT in Hugging Face layout that the text side begins with.
        class_names: file with a line for each row of the backbone's classifier, `name | name;
            kind | kind`: its rows become images of named things (prototypes). `imagenet` is the
            list that ships; empty is none.
        vision_layers: transformer layers over the backbone's states.
        embed_dim: length of the `itc` vectors.
        vocabulary: the BERT's first so many pieces are kept, beside those that the captions use.
        text_pooling: `mean` of a text's states, or `cls`, for `itc`.
        contrast_share: part of the run with the contrastive loss; captions follow.
        matching_share: part of what follows, its end, with the matching loss beside the captions:
            captions teach cross-attention much sooner to look.
        batch_size: pictures of the contrastive loss.
        fused_size: pictures of the caption loss.
        matched_size: pictures of the matching loss among those.
        captions_told: captions of each picture that the decoder learns in a step.
        prototypes: in a step.
        frozen_layers: of the text side, from below, that stay as the BERT had them.
        text_lr: peak step of what the BERT had.
        image_lr: peak step of the image side and of the projections.
        fusion_lr: peak step of cross-attention, decoder head and matching head.
        decoder_lr: peak step of the decoder's self-attention.
        label_smoothing: of the contrastive and the caption loss.
        soft_targets: part of the contrastive target that is shared out among the pictures of a
            batch by how alike the BERT finds their captions, as it was before training.
        average: decay of the moving average of the weights, a step; it is what is judged and
            written. 0 takes the last weights.
        places_kept: part of the grid's places that a contrastive step sees.
        places_told: part of them that a step of matching and captions sees.
        dropout: of the backbone's channels.
    """

    APART: ClassVar[tuple[str, ...]] = (*RunConfig.APART, "eval_every")

    backbone: str
    backbone_weights: str
    text_init: str
    class_names: str = ""
    stages: tuple[int, ...] = (4, 5, 6)
    vision_layers: int = 1
    embed_dim: int = 256
    vocabulary: int = 21000
    text_pooling: str = "mean"
    steps: int = 2000
    contrast_share: float = 0.09
    matching_share: float = 0.15
    fused_size: int = 64
    matched_size: int = 16
    captions_told: int = 2
    prototypes: int = 48
    frozen_layers: int = 3
    text_lr: float = 7e-5
    image_lr: float = 1e-3
    fusion_lr: float = 1e-3
    decoder_lr: float = 5e-4
    soft_targets: float = 0.2
    average: float = 0.99
    places_kept: float = 0.4
    places_told: float = 0.6
    dropout: float = 0.2
    eval_every: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            UsageError: a value is out of range; the message names it and what is allowed.
        """
        RunConfig.__post_init__(self)
        if self.backbone not in SCALES:
            raise UsageError(f"unknown backbone {self.backbone!r}; known: {', '.join(SCALES)}")
        if not self.backbone_weights or not self.text_init:
            raise UsageError(
                "a pretraining from a backbone needs `backbone_weights` and `text_init`"
            )
        if not are_stages(self.stages):
            raise UsageError(
                f"`stages` is {self.stages}; allowed: rising numbers from 0 to {len(STAGES) - 1}"
            )
        one_of("text_pooling", self.text_pooling, ("mean", "cls"))
        if not 2 <= self.matched_size <= self.fused_size:
            raise UsageError(
                f"`matched_size` is {self.matched_size}; "
                f"allowed: 2 to `fused_size`, {self.fused_size}"
            )
        at_least(self, 1, "vision_layers", "embed_dim", "captions_told")
        at_least(self, 0, "prototypes", "frozen_layers", "text_lr", "image_lr")
        at_least(self, 0, "fusion_lr", "decoder_lr")
        below_one(self, "contrast_share", "matching_share", "dropout", "soft_targets", "average")
        above_zero(self, "places_kept", "places_told")

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return SCALES[self.backbone].image_size

    @property
    def grid(self) -> int:
        """Places along one side of the backbone's states."""
        return -(-self.image_size // 32)
