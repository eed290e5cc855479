"""What decides a fine-tuning: the task, the model's trainable part, and the recipe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from types import MappingProxyType

from retrieval_engine.errors import UsageError, accept_words, require_at_least
from retrieval_engine.models.learner import Task as Task
from retrieval_engine.records import Json


class Select(StrEnum):
    """What the best weights of a caption run are chosen by."""

    LOSS = "loss"
    BLEU4 = "bleu4"
    CIDER = "cider"


class Reward(StrEnum):
    """What captions are trained to be good at, in place of the words of their references."""

    NONE = ""
    CIDER = "cider"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """One fine-tuning. Two equal configs on the same data give the same weights.

    Attributes:
        task: `retrieval` (ITC and ITM) or `caption` (language-model loss).
        store: the store with images, captions, and `tokens` unless `from_pixels`.
        model: checkpoint to start from; empty for the one that made the store.
        from_pixels: read the images and run the vision tower in each step.
        freeze_vision: do not train the tower that `from_pixels` runs.
        augment: crop, RandAugment and flips; only with `from_pixels`.
        colour_jitter: how much brightness, contrast and saturation may change besides, 0 to 1.
        checkpointing: recompute the tower's activations instead of keeping them.
        lora: `r=8,alpha=16,…` as in `train.lora.LoraOptions.parse`; empty trains all weights.
        adapter_name: name of the adapter; others than `default` lie in a directory of their own.
        quantize: `8bit` or `4bit` base under an adapter, through bitsandbytes; empty for neither.
        epochs: passes over the captions.
        max_steps: end after this many steps; 0 is no limit.
        batch_size: captions in a step, over all processes.
        micro_batch: captions that go through the model at once on one device; 0 is all of them.
            It changes memory and time, not the gradients.
        captions_per_image: captions of one image that share a batch; more than one makes its
            keys and values serve several.
            With a reward: captions that are drawn of each image, at least two.
        reward: draw captions and make likelier those that score better than the image's others,
            for a model that the loss has trained; `select` says by which figure.
        lr: peak step of AdamW; 0 takes 1e-5 for a model of 768 units and more for smaller ones,
            ten times that for adapters, a quarter with a reward.
        weight_decay: of matrices.
        warmup: part of the steps in which they grow.
        clip: largest norm of the gradient.
        itm: train the matching loss beside the contrastive one.
        queue: features of earlier steps that serve as negatives beside the batch's own (BLIP). The
            authors' 57,600, in their presets, belong to their small steps: at larger ones the
            features in it are a stranger's (benchmarks/LOG.md has the figures).
        momentum: of the slow copies that make features and soft targets (BLIP); the authors' .995
            for the same reason in their presets only.
        alpha: weight of their soft targets, reached after the first pass (BLIP).
        label_smoothing: of the caption loss, and of BLIP-2's contrastive targets.
        select: what a caption run's best weights are chosen by.
        eval_every: steps between validations; 0 is once per pass.
        patience: validations without gain before stopping; 0 never stops early.
        keep_every: passes between kept models in `out/epoch-N`; 0 keeps none.
        negatives: Parquet of mined hard negatives, which share a batch with their captions.
        seed: of order, augmentation, negatives and adapters.
        dtype: arithmetic under autocast: `auto`, `bfloat16`, `float16` or `float32`.
        device: `auto`, `cpu`, `cuda`, …
    """

    task: Task
    store: str
    model: str = ""
    from_pixels: bool = False
    freeze_vision: bool = False
    augment: bool = True
    colour_jitter: float = 0.0
    checkpointing: bool = False
    lora: str = ""
    adapter_name: str = "default"
    quantize: str = ""
    epochs: int = 6
    max_steps: int = 0
    batch_size: int = 64
    micro_batch: int = 0
    captions_per_image: int = 1
    reward: Reward = Reward.NONE
    lr: float = 0.0
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    itm: bool = True
    queue: int = 0
    momentum: float = 0.9
    alpha: float = 0.4
    label_smoothing: float = 0.1
    select: Select = Select.LOSS
    eval_every: int = 0
    patience: int = 0
    keep_every: int = 0
    negatives: str = ""
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other or are out of range."""
        accept_words(self, task=Task, select=Select, reward=Reward)
        require_at_least(self, 1, "epochs", "batch_size", "captions_per_image")
        require_at_least(self, 0, "max_steps", "micro_batch", "lr", "queue")
        require_at_least(self, 0, "eval_every", "patience", "keep_every")
        if self.negatives and (self.task is not Task.RETRIEVAL or self.batch_size % 2):
            raise UsageError("`negatives` are of retrieval, and need an even `batch_size`")
        self._check_batch()
        if self.reward:
            self._check_reward()
        self._check_regularisation()
        if self.quantize not in ("", "8bit", "4bit"):
            raise UsageError(f"`quantize` is {self.quantize!r}, must be 8bit or 4bit")
        if self.quantize and not self.lora:
            raise UsageError(
                f"{self.quantize} weights cannot be trained", hint="train an adapter with `lora`"
            )
        if not self.from_pixels and (self.freeze_vision or self.checkpointing):
            raise UsageError("`freeze_vision` and `checkpointing` need `from_pixels`")

    def _check_batch(self) -> None:
        if self.task is Task.RETRIEVAL and (self.captions_per_image > 1 or self.batch_size < 2):
            raise UsageError(
                "retrieval takes one caption of an image at a time and at least two in a batch, "
                f"not {self.captions_per_image} and {self.batch_size}"
            )
        if self.batch_size % self.captions_per_image:
            raise UsageError(
                f"`batch_size={self.batch_size}` is no multiple of "
                f"`captions_per_image={self.captions_per_image}`"
            )

    def _check_reward(self) -> None:
        if self.task is not Task.CAPTION or self.captions_per_image < 2:
            raise UsageError(
                "a `reward` is of captions, and compares at least two of an image: "
                f"`captions_per_image` is {self.captions_per_image}"
            )
        if self.select is Select.LOSS:
            raise UsageError(
                "a `reward` makes the loss worse; weights cannot be chosen by it",
                hint="use `select='cider'` or `select='bleu4'`",
            )

    def _check_regularisation(self) -> None:
        for name in ("colour_jitter", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, must be from 0 to below 1")
        if self.weight_decay < 0 or self.clip <= 0:
            raise UsageError(
                f"`weight_decay` is {self.weight_decay} and `clip` {self.clip}: they must be 0 or "
                "more and above 0"
            )
        if self.colour_jitter and not (self.from_pixels and self.augment):
            raise UsageError(
                f"`colour_jitter={self.colour_jitter}` changes pictures: it needs `from_pixels`, and "
                "augmentation"
            )

    def to_json(self) -> dict[str, Json]:
        """All settings as JSON values."""
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published recipe.

    Attributes:
        task: what it is for.
        source: where the numbers are from.
        differs: what we do otherwise, and why.
        values: settings of `FinetuneConfig`.
    """

    task: Task
    source: str
    differs: str
    values: Mapping[str, Json]


_DRAWN = 4  # captions of an image that a reward compares
_BLIP: Mapping[str, Json] = MappingProxyType({"batch_size": 256, "lr": 1e-5, "warmup": 0.0})

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "flickr": Preset(
            task=Task.RETRIEVAL,
            source="BLIP, configs/retrieval_flickr.yaml",
            differs="one process with batch 256 instead of eight with 32; the queue grows from "
            "empty instead of starting as noise",
            values={**_BLIP, "epochs": 6, "queue": 57_600, "momentum": 0.995},
        ),
        "coco": Preset(
            task=Task.RETRIEVAL,
            source="BLIP, configs/retrieval_coco.yaml",
            differs="as flickr",
            values={**_BLIP, "epochs": 6, "queue": 57_600, "momentum": 0.995},
        ),
        "coco-caption": Preset(
            task=Task.CAPTION,
            source="BLIP, configs/caption_coco.yaml",
            differs="one process with batch 256 instead of eight with 32",
            values={**_BLIP, "epochs": 5},
        ),
        "flickr8k-caption": Preset(
            task=Task.CAPTION,
            source="VLM-for-image-captioning: 70 epochs, cosine, smoothing, early stop",
            differs="selected on the official dev split by CIDEr; images are not mirrored when a "
            "caption says left or right; cached tokens unless `from_pixels`; no loss on padding",
            values={
                "epochs": 70,
                "batch_size": 32,
                "lr": 5e-5,
                "select": "cider",
                "patience": 8,
                "keep_every": 10,
            },
        ),
        "flickr8k-lora": Preset(
            task=Task.CAPTION,
            source="LoRA-BLIP2-Flickr8K",
            differs="targets exist in the model (that recipe's o_proj does not, and 100 % of its "
            "weights trained); all five captions, not the first; no loss on padding or on the "
            "prompt, which training and writing share; selected on dev",
            values={"epochs": 5, "batch_size": 32, "lora": "r=16,alpha=32,dropout=0.05"},
        ),
    }
)


def configure(task: Task, *, preset: Json = "", **given: Json) -> FinetuneConfig:
    """A config of defaults, a preset's values over them, and what was given over both.

    Args:
        task: what to train for.
        preset: name in `PRESETS`; empty for none.
        **given: settings; None is not given.

    Raises:
        UsageError: an unknown preset, or one of the other task, or a value that cannot be.
    """
    values: dict[str, Json] = {}
    if isinstance(preset, str) and preset:
        mine = [name for name, known in PRESETS.items() if known.task is task]
        if preset not in mine:
            raise UsageError(f"no preset {preset!r} for {task}; known: {', '.join(mine)}")
        values |= PRESETS[preset].values
    values |= {name: value for name, value in given.items() if value is not None}
    if values.get("reward"):
        for name, usual in (("captions_per_image", _DRAWN), ("select", "cider")):
            values.setdefault(name, usual)
    known_names = {field.name for field in fields(FinetuneConfig)}
    assert set(values) <= known_names, set(values) - known_names
    return FinetuneConfig(task=task, **values)  # type: ignore[arg-type]
