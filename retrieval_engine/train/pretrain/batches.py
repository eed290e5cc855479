"""One step's pictures, captions and targets. A step's number and the seed decide all of it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.models.preprocess import SquashToSquare
from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.texts import Texts, Tokens
from retrieval_engine.train.pretrain.training_set import TrainingSet

_SHIFT = 3  # pixels of 64; smaller than a patch, so that the patches' labels stay right enough
_GREY = 0.15
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a step is computed on. b pictures, t captions of them, c concepts, a aspects, p patches.

    Attributes:
        items: (b,) rows of the training set.
        pixels: (b, 3, s, s) float32, normalised.
        present: (b, c) float32, 1 where a concept is in the picture.
        known: (b, c) float32, 0 where it cannot be seen.
        regions: (b, a, p) int64 class of each patch under each aspect, -100 where unknown;
            None without labels.
        is_mirrored: the pictures are flipped left to right, all or none.
        captions: t rows of the set's captions; empty in the concept stage.
        owner: (t,) the picture in the batch each is of.
        tokens: of the captions.
        true: (t, b) bool, what is true of what.
    """

    items: NDArray[np.int64]
    pixels: Tensor
    present: Tensor
    known: Tensor
    regions: Tensor | None
    is_mirrored: bool
    captions: NDArray[np.int64]
    owner: Tensor
    tokens: Tokens | None
    true: Tensor | None


class BatchMaker:
    """Makes the batch of any step, in any order.

    Args:
        data: the training set.
        texts: its captions as tokens.
        config: seed, batch size, captions per picture.
        device: where the tensors go.
    """

    def __init__(
        self, data: TrainingSet, texts: Texts, config: PretrainConfig, device: torch.device
    ) -> None:
        self._data = data
        self._texts = texts
        self._config = config
        self._rounds = min(config.texts_per_image, config.max_captions or config.texts_per_image)
        self.device = device
        look = SquashToSquare(image_size=config.size.image_size)
        self._mean = torch.tensor(look.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(look.std, device=device).view(3, 1, 1)

    def batch(self, step: int, *, with_texts: bool) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng((self._config.seed, 1, step))
        items = self._items(step)
        is_mirrored = bool(rng.random() < 0.5)
        # In grey a picture must be told by its shapes; only while text is not yet there.
        grey = np.zeros(len(items), dtype=bool) if with_texts else rng.random(len(items)) < _GREY
        pixels = self._augment(
            self._data.pictures.pixels[items], rng, grey, is_mirrored=is_mirrored
        )
        known = np.ones((len(items), len(self._data.concepts)), dtype=np.float32)
        known[np.ix_(grey, self._data.is_colour)] = 0
        captions = self._captions(items, rng) if with_texts else np.empty(0, dtype=np.int64)
        owner = np.tile(np.arange(len(items)), self._rounds)[: len(captions)]
        tokens = self._texts.of(captions, mirrored=is_mirrored) if with_texts else None
        return Batch(
            items=items,
            pixels=pixels,
            present=torch.from_numpy(self._data.present[items].astype(np.float32)).to(self.device),
            known=torch.from_numpy(known).to(self.device),
            regions=self._regions(items, grey, is_mirrored=is_mirrored),
            is_mirrored=is_mirrored,
            captions=captions,
            owner=torch.from_numpy(owner).to(self.device),
            tokens=tokens.to(self.device) if tokens else None,
            true=torch.from_numpy(self._data.true_of(captions, owner, items)).to(self.device)
            if with_texts
            else None,
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """(b, 3, s, s) floats in 0-1 as the model wants them."""
        return (pixels.to(self.device) - self._mean) / self._std

    def _items(self, step: int) -> NDArray[np.int64]:
        size, n = self._config.batch_size, len(self._data)
        per_epoch = n // size
        epoch, at = divmod(step, per_epoch)
        order = np.random.default_rng((self._config.seed, 0, epoch)).permutation(n)
        return np.sort(order[at * size : (at + 1) * size])

    def _captions(self, items: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """`texts_per_image` different captions of each picture where it has them, round by round."""
        starts, ends = self._data.starts[items], self._data.starts[items + 1]
        counts = ends - starts
        first = rng.integers(counts)
        step = rng.integers(1, np.maximum(counts, 2))
        rounds = [starts + (first + i * step) % counts for i in range(self._rounds)]
        return np.concatenate(rounds)

    def _regions(
        self, items: NDArray[np.int64], grey: NDArray[np.bool_], *, is_mirrored: bool
    ) -> Tensor | None:
        regions = self._data.pictures.regions
        if regions is None:
            return None
        grid = regions[items].astype(np.int64)  # (b, a, g, g)
        grid = grid[..., ::-1] if is_mirrored else grid.copy()
        grid[grey] = -100
        flat = grid.reshape(*grid.shape[:2], -1)  # (b, a, p)
        return torch.from_numpy(np.ascontiguousarray(flat)).to(self.device)

    def _augment(
        self,
        images: NDArray[np.uint8],
        rng: np.random.Generator,
        grey: NDArray[np.bool_],
        *,
        is_mirrored: bool,
    ) -> Tensor:
        """Mirror, shift, jitter and noise: (b, s, s, 3) uint8 -> (b, 3, s, s) normalised."""
        b, side = images.shape[:2]
        images = images[:, :, ::-1] if is_mirrored else images
        reach = max(1, _SHIFT * side // 64)
        padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        dy, dx = rng.integers(0, 2 * reach + 1, (2, b))
        shifted = np.ascontiguousarray(windows[np.arange(b), dy, dx])  # (b, 3, s, s)
        pixels = torch.from_numpy(shifted).float().div_(255)
        luma = (pixels * torch.tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        draws = torch.from_numpy(rng.uniform(-1, 1, (3, b, 1, 1, 1)).astype(np.float32))
        saturation = 1 + 0.25 * draws[0]
        saturation[torch.from_numpy(grey)] = 0
        pixels = luma + (pixels - luma) * saturation
        middle = pixels.mean((1, 2, 3), keepdim=True)
        pixels = middle + (pixels - middle) * (1 + 0.2 * draws[1]) + 0.1 * draws[2]
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        strength = rng.uniform(0, 0.03, (b, 1, 1, 1)).astype(np.float32)
        pixels += torch.from_numpy(noise * strength)
        return self.normalise(pixels.clamp_(0, 1))
