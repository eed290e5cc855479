"""Pictures as standardised states, their captions as tokens, and the batch of any step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.errors import TrainingError
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.blip.backbone import EfficientNetLite
from retrieval_engine.models.device import on_device
from retrieval_engine.models.text import pre_caption
from retrieval_engine.progress import Progress
from retrieval_engine.records import Item, Json
from retrieval_engine.sources import open_source
from retrieval_engine.train.pretrain.cached.config import CachedConfig
from retrieval_engine.train.pretrain.cached.states import encode_states
from retrieval_engine.train.pretrain.training_set import (
    MAX_WORDS,
    TRAIN_SPLITS,
    captioned,
    held_out_split,
)

_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Pictures with captions; row i is one picture.

    Attributes:
        items: where they are from.
        views: arrays of (n, p, c) float16 states.
        captions: m cleaned texts, those of one picture side by side.
        starts: (n + 1,) where each picture's captions begin.
        failures: a line for each picture that could not be read.
    """

    items: Sequence[Item]
    views: Sequence[NDArray[np.float16]]
    captions: Sequence[str]
    starts: NDArray[np.int64]
    failures: Sequence[str]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def key(self) -> str:
        """Digest of the data."""
        return digest([[item.id for item in self.items], list(self.captions)])

    def listed(self, source: str) -> dict[str, list[Json]]:
        """The pictures' `ids`, for an evaluation to find leaks by; drawn scenes' name says them."""
        if source.startswith("scenes:"):
            return {}
        return {"ids": [*sorted(item.id for item in self.items)]}

    @property
    def owner(self) -> NDArray[np.int64]:
        """(m,) the picture of each caption."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


def load_described(
    config: CachedConfig, backbone: EfficientNetLite, folder: Path, progress: Progress
) -> tuple[Described, Described]:
    """What to train on and what to select on.

    Raises:
        TrainingError: no item has captions, or there are fewer than a batch.
        SourceError: the source cannot be read.
        UsageError: no such source.
    """
    items = captioned(open_source(config.source), config.source)
    train = [item for item in items if item.split in TRAIN_SPLITS]
    if config.val_source:
        held_out = captioned(open_source(config.val_source), config.val_source)
        held_out = [item for item in held_out if item.split in ("", "val")] or held_out
    else:
        train, held_out = held_out_split(train, items)
    for name in ("batch_size", "fused_size"):
        if len(train) < getattr(config, name):
            raise TrainingError(
                f"{config.source} has {len(train)} captioned items to train on, fewer than "
                f"`{name}` {getattr(config, name)}"
            )
    described = []
    for part, views in ((train, 2), (held_out, 1)):
        states = encode_states(
            part,
            backbone,
            folder,
            image_size=config.image_size,
            views=views,
            progress=progress,
        )
        texts = [[pre_caption(c.text, MAX_WORDS) for c in i.captions] for i in states.items]
        described.append(
            Described(
                items=states.items,
                views=states.views,
                captions=[text for own in texts for text in own],
                starts=np.cumsum([0, *map(len, texts)]),
                failures=states.failures,
            )
        )
    return described[0], described[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelScale:
    """Mean and spread of each of the c channels, over pictures and places."""

    shift: NDArray[np.float32]
    scale: NDArray[np.float32]

    def apply(self, states: NDArray[np.float16]) -> NDArray[np.float32]:
        """Standardised states."""
        found: NDArray[np.float32] = (states.astype(np.float32) - self.shift) / self.scale
        return found


def measure(states: NDArray[np.float16]) -> tuple[ChannelScale, NDArray[np.float32]]:
    """The scale of (n, p, c) states, and the (n, c) standardised mean state of each picture."""
    means = np.empty((len(states), states.shape[-1]), dtype=np.float32)
    squares = np.zeros(states.shape[-1])
    for start in range(0, len(states), _ROWS):
        part = states[start : start + _ROWS].astype(np.float32)
        means[start : start + _ROWS] = part.mean(1)
        squares += (part**2).mean(1).sum(0, dtype=np.float64)
    shift = means.mean(0, dtype=np.float64)
    spread = np.sqrt(np.maximum(squares / len(states) - shift**2, 0)) + 1e-3
    scale = ChannelScale(shift=shift.astype(np.float32), scale=spread.astype(np.float32))
    return scale, (means - scale.shift) / scale.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A step's pictures.

    Attributes:
        items: (b,) rows of the training set.
        states: (b, k, c) standardised states of some places, on the device.
        places: (b, k) which places they are, there too.
        is_mirrored: the pictures are seen in a mirror, all or none.
        captions: (b,) row of a caption of each.
    """

    items: NDArray[np.int64]
    states: Tensor
    places: Tensor
    is_mirrored: bool
    captions: NDArray[np.int64]


class StateBatcher:
    """Makes the batch of any step, in any order; the seed and the step's number decide it.

    On CUDA the states of all pictures lie on the device where they take less than half of what is
    free there: to gather a batch of them from the disk takes longer than a step.

    Args:
        data: the training set.
        scale: of its states.
        config: the recipe.
        device: where batches go.
    """

    def __init__(
        self, data: Described, scale: ChannelScale, config: CachedConfig, device: torch.device
    ) -> None:
        self._data, self._config, self._device = data, config, device
        self._kept = _on_device(data.views, device)
        self._shift, self._spread = (
            torch.from_numpy(part).to(device) for part in (scale.shift, scale.scale)
        )

    def batch(self, step: int, size: int, places_kept: float) -> Seen:
        """The pictures of a step, of which all steps have `size`."""
        config, data = self._config, self._data
        rng = np.random.default_rng((config.seed, 1, step))
        epoch, at = divmod(step, len(data) // size)
        order = np.random.default_rng((config.seed, 0, epoch)).permutation(len(data))
        items = order[at * size : (at + 1) * size]
        is_mirrored = bool(rng.random() < 0.5)
        count = config.grid**2
        kept = max(1, round(places_kept * count))
        places = rng.random((len(items), count)).argsort(1)[:, :kept]
        read = places // config.grid * config.grid + config.grid - 1 - places % config.grid
        read = read if is_mirrored else places
        views = rng.integers(len(data.views), size=len(items))
        starts, ends = data.starts[items], data.starts[items + 1]
        return Seen(
            items=items,
            states=self._states(views, items, read),
            places=on_device(places, self._device),
            is_mirrored=is_mirrored,
            captions=rng.integers(starts, ends),
        )

    def _states(
        self, views: NDArray[np.int64], items: NDArray[np.int64], places: NDArray[np.int64]
    ) -> Tensor:
        """(b, k, c) standardised states of (b, k) places of items, each in one of the views."""
        if self._kept is not None:
            v, i, p = (on_device(rows, self._device) for rows in (views, items, places))
            found = self._kept[v[:, None], i[:, None], p]
        else:
            read = zip(views, items, places, strict=True)
            mapped = np.stack([self._data.views[v][i][p] for v, i, p in read])
            found = on_device(mapped, self._device)
        return (found.float() - self._shift) / self._spread


def _on_device(views: Sequence[NDArray[np.float16]], device: torch.device) -> Tensor | None:
    """(v, n, p, c) states of all views on a CUDA device, or None where they do not fit."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if sum(view.nbytes for view in views) > free // 2:
        return None
    kept = torch.empty((len(views), *views[0].shape), dtype=torch.float16, device=device)
    for into, view in zip(kept, views, strict=True):
        for start in range(0, len(view), _ROWS):
            into[start : start + _ROWS] = torch.from_numpy(np.array(view[start : start + _ROWS]))
    return kept
