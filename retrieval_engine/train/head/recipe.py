"""How a head is trained: every choice, checked, and written beside what it produced."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from retrieval_engine.errors import UsageError, accept_words, require_at_least
from retrieval_engine.heads import HeadKind
from retrieval_engine.records import Json

_NOTEBOOK_IMAGES = 5000


class Loss(StrEnum):
    """The loss that a head is trained with.

    `INFONCE` is the symmetric softmax loss; captions of one image are its positives and never its
    negatives. `SIGMOID` asks of each pair by itself whether it belongs together (SigLIP, Zhai et
    al., ICCV 2023). `DIAGONAL` is the plain cross-entropy over a batch of pairs, which takes
    every other row for a negative: what `notebook_recipe` does.
    """

    INFONCE = "infonce"
    SIGMOID = "sigmoid"
    DIAGONAL = "diagonal"


class CaptionChoice(StrEnum):
    """Which captions of an image take part in an epoch: every one, a random one, the first."""

    ALL = "all"
    ONE = "one"
    FIRST = "first"


class Start(StrEnum):
    """Where training begins: at the closed-form solution, which an MLP computes too, or anywhere."""

    CLOSED_FORM = "closed-form"
    RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecipe:
    """All choices of a training; 0 and the empty string leave one to the data.

    Attributes:
        kind: form of the head.
        feature: stored feature it reads.
        dim: of its output; 0 takes the common width where both sides have one, else 512, and no
            more than the narrower side has.
        hidden: units of an MLP; 0 means 8 * dim, but no more than the larger of 2,048 and 2 * dim.
        dropout: share of an MLP's hidden units dropped in training.
        residual: give an MLP a linear path beside it.
        bias: give a linear head one.
        split: items to train on; empty means `train` where there is one, else all that are in
            no `val` and no `test`.
        val_split: items to select on; empty means `val` where there is one, else a part of
            `split`, chosen by id.
        train_size: images to train on at most; 0 for all.
        val_size: images to select on at most; 0 means a tenth, a fifth of fewer than 500, and at
            most 1,000.
        captions: which captions take part.
        loss: what is minimised.
        epochs: at most; 0 keeps the start as it is.
        batch_size: images in a step; 0 means a fifth of them, but 64 to 1,024.
        lr: highest learning rate of AdamW.
        weight_decay: of AdamW.
        patience: epochs without a better validation recall before it stops; 0 never stops.
        select_best: keep the weights of the best epoch, not of the last.
        refit_below: with fewer images than this in both sets together, train once more on all of
            them for as many epochs as were best: too few to leave a fifth unused. 0 never does.
        hard_negatives: images that each drawn image brings along into its batch, those whose
            captions the head now confuses most with it; mined from the cache each epoch.
        start: where training begins.
        beside: weight of the head's cosine beside that of the features as they are, which a linear
            head of one width then compares too; 0 leaves them out.
        constant_lr: no warm-up and no decay.
        seed: of split, weights and batches.
    """

    kind: HeadKind = HeadKind.LINEAR
    feature: str = "pooled"
    dim: int = 0
    hidden: int = 0
    dropout: float = 0.1
    residual: bool = False
    bias: bool = True
    split: str = ""
    val_split: str = ""
    train_size: int = 0
    val_size: int = 0
    captions: CaptionChoice = CaptionChoice.ALL
    loss: Loss = Loss.INFONCE
    epochs: int = 20
    batch_size: int = 0
    lr: float = 2e-3
    weight_decay: float = 1e-2
    patience: int = 10
    select_best: bool = True
    refit_below: int = 500
    hard_negatives: int = 0
    start: Start = Start.CLOSED_FORM
    beside: float = 0.0
    constant_lr: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        accept_words(self, kind=HeadKind, captions=CaptionChoice, loss=Loss, start=Start)
        require_at_least(self, 0, "dim", "hidden", "train_size", "val_size", "epochs", "batch_size")
        require_at_least(self, 0, "patience", "hard_negatives", "refit_below")
        if self.batch_size == 1 or 0 < self.train_size < 2:
            raise UsageError("contrast needs at least 2 images in a batch and in training")
        if self.beside < 0 or (self.beside and not (self.kind is HeadKind.LINEAR and self.bias)):
            raise UsageError("`beside` is a weight of 0 or more, of a linear head with a bias")
        if not self.lr > 0 or self.weight_decay < 0:
            raise UsageError(
                f"`lr` must be above 0 and `weight_decay` not below, got {self.lr}, "
                f"{self.weight_decay}"
            )

    def to_json(self) -> dict[str, Json]:
        """The recipe as JSON values."""
        return asdict(self)


def recipe_of(choices: Mapping[str, Any]) -> HeadRecipe:
    """A recipe from plain values, e.g. of the command line; what is not named is the default.

    Raises:
        UsageError: a choice is unknown or out of range.
    """
    try:
        return HeadRecipe(**choices)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def notebook_recipe(recipe: HeadRecipe) -> HeadRecipe:
    """The set-up of the notebook in mukhilDS/Vision-Language_Final_project, to compare with.

    768-d linear maps without bias, temperature learned from 0.07 on, AdamW 1e-3 with weight decay
    1e-4, batches of 256 pairs, the first caption of each image only, plain cross-entropy, the
    weights of the last epoch. Its "MLP" was the same linear head trained for 8 epochs, not 5, and
    `kind` mlp means that here.

    Args:
        recipe: kind, feature, splits, sizes and seed are taken from it; of no size it takes
            5,000 images, as the notebook does.
    """
    return replace(
        recipe,
        train_size=recipe.train_size or _NOTEBOOK_IMAGES,
        kind=HeadKind.LINEAR,
        dim=768,
        bias=False,
        captions=CaptionChoice.FIRST,
        loss=Loss.DIAGONAL,
        epochs=8 if recipe.kind is HeadKind.MLP else 5,
        batch_size=256,
        lr=1e-3,
        weight_decay=1e-4,
        patience=0,
        select_best=False,
        refit_below=0,
        hard_negatives=0,
        start=Start.RANDOM,
        constant_lr=True,
    )
