"""Work for models, and the steps of an encode run: batches for a model, and the ends of parts.

Where a batch ends depends on the source alone, never on what computes it: the same numbers need the
same batches.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays, Encoder
from retrieval_engine.models.lanes import in_lanes
from retrieval_engine.models.preprocess import ImagePreprocessor
from retrieval_engine.records import Failure, Feature, Item, Modality


class Described(Protocol):
    """What a run must know of an encoder, wherever its model is; see `models.Encoder`."""

    @property
    def spec(self) -> EncoderSpec:
        """All that decides its numbers."""

    @property
    def preprocessor(self) -> ImagePreprocessor:
        """What makes pixels of a picture."""

    @property
    def default_batch_size(self) -> int:
        """Images per batch that suit the device."""

    def features(self, modality: Modality) -> dict[str, Feature]:
        """The features it can emit for a modality, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(ABC):
    """What a model does at once, wherever it is: something with each of some inputs.

    Attributes:
        modality: of the inputs.
        keys: n names of them.
    """

    modality: Modality
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def part(self, some: slice) -> Self:
        """The same with some of its inputs."""

    def pieces(self, size: int) -> Iterator[Self]:
        """The same in pieces of at most so many inputs."""
        for start in range(0, len(self), size):
            yield self.part(slice(start, start + size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Work):
    """What an encoder computes at once; the keys are those of the cache.

    Attributes:
        inputs: (n, s, s, 3) uint8 pixels, or n texts.
        forms: the features wanted, in the dtypes they are kept in.
        items: of the source that are done with, once this is; see `PartEnd`.
    """

    inputs: NDArray[np.uint8] | Sequence[str]
    forms: Sequence[Feature]
    items: int = 0

    @classmethod
    def of_images(
        cls, pixels: Mapping[str, NDArray[np.uint8]], forms: Sequence[Feature], items: int
    ) -> "Batch":
        """A batch of images from the (s, s, 3) pixels of each by key."""
        keys, stacked = list(pixels), np.stack(list(pixels.values()))
        return cls(modality=Modality.IMAGES, keys=keys, inputs=stacked, forms=forms, items=items)

    def part(self, some: slice) -> Self:
        """See `Work`."""
        return replace(self, keys=self.keys[some], inputs=self.inputs[some])

    def asked_of(self, encoder: Encoder) -> Callable[[], Arrays]:
        """The call of an encoder that computes it."""
        names = [form.name for form in self.forms]
        if isinstance(self.inputs, np.ndarray):
            return partial(encoder.encode_images, self.inputs, names)
        return partial(encoder.encode_texts, self.inputs, names)

    def kept(self, arrays: Arrays) -> Arrays:
        """By name: (n, *shape) arrays in the dtypes they are kept in."""
        with np.errstate(over="ignore"):  # becomes infinity, which no store takes
            return {
                form.name: arrays[form.name].astype(form.dtype, copy=False) for form in self.forms
            }


@dataclass(slots=True, kw_only=True)
class PartEnd:
    """All batches of a part have gone before.

    Attributes:
        rows: its items, each with the key of its image.
        failures: those that could not be loaded.
        items: looked at since the last batch of images.
    """

    rows: list[tuple[Item, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    items: int = 0

    def taken(self) -> int:
        """The items so far, which a batch of the part takes over."""
        items, self.items = self.items, 0
        return items


Step = Batch | PartEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What became of some work.

    Attributes:
        keys: of what could be computed, in the order of the work.
        arrays: by name, a row for each of them.
        bad: why the others could not, by key.
    """

    keys: Sequence[str]
    arrays: Arrays
    bad: Mapping[str, str] = field(default_factory=dict)


def computed(
    steps: Iterator[Step], encoder: Encoder
) -> Generator[tuple[Step, tuple[Computed | None, float]], None, None]:
    """The steps in their order, each with what an encoder of this process made of it, and seconds."""

    def compute(step: Step) -> tuple[Computed | None, float]:
        if isinstance(step, PartEnd):
            return None, 0.0
        start = time.perf_counter()
        arrays = step.kept(step.asked_of(encoder)())
        return Computed(keys=step.keys, arrays=arrays), time.perf_counter() - start

    def is_of_images(step: Step) -> bool:  # the captions of a few are soon computed
        return isinstance(step, Batch) and step.modality is Modality.IMAGES

    # A part is published before the next one is waited for.
    return in_lanes(
        compute,
        steps,
        encoder,
        is_batch=is_of_images,
        is_end=lambda step: isinstance(step, PartEnd),
    )
