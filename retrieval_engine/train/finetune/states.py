"""Where the vision states of a batch come from: the cache, or pictures and the tower."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.encoders.device import normalized_pixels
from retrieval_engine.encoders.preprocess import ImagePreprocessor
from retrieval_engine.errors import DecodeError
from retrieval_engine.machine import free_memory
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store
from retrieval_engine.train.finetune.augment import augmented
from retrieval_engine.train.finetune.data import Captioned, Ints

_MEMORY_SHARE = 0.4
_DECODERS = 4


class Loader(Protocol):
    """Brings what the model needs of images; runs in a thread ahead of the model."""

    def load(self, data: Captioned, images: Ints, step: int | None) -> NDArray[Any]:
        """Arrays of images by their numbers; a step augments, None does not."""

    def states(self, learner: Any, loaded: NDArray[Any]) -> Tensor:
        """(n, t, w) states on the device, made of what `load` gave."""


class CachedStates:
    """Stored `tokens`; all of them in memory where they take less than 0.4 of what is free.

    Args:
        store: with `tokens`.
        device: where states go.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._kept: dict[int, NDArray[Any]] = {}

    def keep(self, data: Captioned) -> bool:
        """Read all tokens of a set into memory if they fit; whether they did."""
        form = self._store.features(Modality.IMAGES)["tokens"]
        needed = len(data) * int(np.prod(form.shape)) * np.dtype(form.dtype).itemsize
        if needed > _MEMORY_SHARE * (free_memory() or 0):
            return False
        self._kept[id(data)] = self._store.read(Modality.IMAGES, "tokens", data.rows)
        return True

    def load(self, data: Captioned, images: Ints, step: int | None) -> NDArray[Any]:
        """See `Loader.load`."""
        kept = self._kept.get(id(data))
        if kept is not None:
            return kept[images]
        return self._store.read(Modality.IMAGES, "tokens", data.rows[images])

    def states(self, learner: Any, loaded: NDArray[Any]) -> Tensor:
        """See `Loader.states`."""
        return torch.from_numpy(loaded).to(self._device).float()


class PixelStates:
    """Pictures through the learner's tower.

    Args:
        preprocessor: of the checkpoint.
        device: where the tower is.
        augment: whether training pictures are augmented.
        seed: decides the augmentation.
        frozen: run the tower without gradient.
    """

    def __init__(
        self,
        preprocessor: ImagePreprocessor,
        device: torch.device,
        *,
        augment: bool,
        seed: int,
        frozen: bool,
    ) -> None:
        self._preprocessor = preprocessor
        self._device = device
        self._augment, self._seed, self._frozen = augment, seed, frozen
        self._pool = ThreadPoolExecutor(_DECODERS)

    def load(self, data: Captioned, images: Ints, step: int | None) -> NDArray[Any]:
        """See `Loader.load`: (n, s, s, 3) uint8."""
        found = self._pool.map(
            lambda at: self._one(data, at[0], at[1], step), enumerate(images.tolist())
        )
        return np.stack(list(found))

    def _one(self, data: Captioned, place: int, image: int, step: int | None) -> NDArray[np.uint8]:
        uri = data.uris[image]
        try:
            picture = decode(read_bytes(uri))
        except DecodeError as error:
            raise DecodeError(f"{data.ids[image]} ({uri}): {error.message}") from error
        if step is not None and self._augment:
            rng = np.random.default_rng((self._seed, 5, step, place))
            side = self._preprocessor.image_size
            picture = augmented(picture, side, rng, captions=data.captions_of(image))
        return self._preprocessor.pixels(picture)

    def states(self, learner: Any, loaded: NDArray[Any]) -> Tensor:
        """See `Loader.states`."""
        pixels = normalized_pixels(loaded, self._preprocessor, self._device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            found: Tensor = learner.see(pixels)
        return found


class Ahead:
    """Calls a function of the step in a thread, one step ahead.

    Args:
        make: what is called.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Any] | None = None

    def __call__(self, step: int, *, last: bool) -> Any:
        """What `make(step)` gives; begins on the step after it unless it is the last."""
        waiting = self._next if self._next and self._next[0] == step else None
        future = waiting[1] if waiting else self._thread.submit(self._make, step)
        found = future.result()
        self._next = None if last else (step + 1, self._thread.submit(self._make, step + 1))
        return found

    def close(self) -> None:
        """Wait for what is under way and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(n, l) int64 ids, padded on the right to the longest, and their mask."""
    from retrieval_engine.encoders.batching import pad_tokens

    ids, mask = pad_tokens(rows, max(map(len, rows)), pad=pad)
    return torch.from_numpy(ids), torch.from_numpy(mask)
