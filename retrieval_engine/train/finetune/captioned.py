"""What a run trains and validates on: a store's images with their captions, told apart by id."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import FeatureMissing, TrainingError, UsageError
from retrieval_engine.fingerprint import digest
from retrieval_engine.records import Modality
from retrieval_engine.store import Store

_VAL_SPLITS = ("val", "dev", "validation", "valid")
_HELD_OUT = 0.05
_MOST_VAL = 1_000
_BLOCK = 64  # images whose rows lie side by side and are read together
_WINDOW = 8_192  # images among which the order is free

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaptionedImages:
    """n images that have captions, m in all.

    Attributes:
        ids: of the items.
        keys: sha256 of the images' bytes.
        uris: where the bytes are.
        rows: (n,) rows of the store, -1 where the store has none.
        same: (n,) number that equal images share.
        texts: the m captions, grouped by image.
        starts: (n + 1,) image i has captions starts[i] to starts[i + 1].
    """

    ids: Sequence[str]
    keys: Sequence[str]
    uris: Sequence[str]
    rows: Ints
    same: Ints
    texts: Sequence[str]
    starts: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def owner(self) -> Ints:
        """(m,) the image of each caption."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def captions_of(self, image: int) -> list[str]:
        """The captions of an image."""
        return list(self.texts[self.starts[image] : self.starts[image + 1]])

    def owner_of(self, caption: int) -> int:
        """The image of a caption."""
        return int(np.searchsorted(self.starts, caption, side="right")) - 1

    @property
    def digest(self) -> str:
        """Digest of ids, bytes and texts: equal for equal data only."""
        return digest([list(self.ids), list(self.keys), list(self.texts)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sets:
    """The two sides of a run, and how they were told apart, in a sentence."""

    train: CaptionedImages
    val: CaptionedImages
    how: str


def load_sets(store: Store, *, from_cache: bool) -> Sets:
    """The images to train on and those to select on; a split called test is never touched.

    A store that knows `train` and a validation split is taken at its word. Otherwise a twentieth of
    the images is held out by a hash of their ids, so that more images later move none across.

    Args:
        store: with captions.
        from_cache: take only images whose `tokens` are stored.

    Raises:
        TrainingError: no captions, or too few images.
        FeatureMissing: `from_cache`, and the store has no `tokens`.
    """
    if from_cache and "tokens" not in store.features(Modality.IMAGES):
        raise FeatureMissing(
            f"{store.path} has no tokens, which training from the cache reads; it has "
            f"{', '.join(store.features(Modality.IMAGES))}",
            hint="encode its source again with "
            "`EncodeOptions(features=('itc', 'pooled', 'tokens'))`, or train with `from_pixels`",
        )
    splits = set(store.items()["split"].to_pylist())
    known = [name for name in _VAL_SPLITS if name in splits]
    train_name = "train" if "train" in splits else None
    if known and train_name:
        train = _captioned(store, [train_name], from_cache=from_cache)
        val = _captioned(store, [known[0]], from_cache=from_cache)
        train = _without(train, set(val.keys))
        how = f"split {train_name} to train, split {known[0]} to select"
    else:
        allowed = [train_name] if train_name else sorted(splits - {"test"})
        everything = _captioned(store, allowed, from_cache=from_cache)
        held = _held_out(everything)
        val = _chosen(everything, held)
        train = _without(_chosen(everything, ~held), set(val.keys))
        how = f"{len(val):,} images held out by a hash of their ids to select on"
    if not len(train) or not len(val):
        raise TrainingError(
            f"{store.path} has {len(train)} images with captions to train on and {len(val)} to "
            "select on; both need at least one",
            hint="encode a source with captions, e.g. flickr8k:DIR or a folder with .txt files",
        )
    order = np.sort(np.argsort(_hashes(val.ids), kind="stable")[:_MOST_VAL])
    mask = np.zeros(len(val), bool)
    mask[order] = True
    return Sets(train=train, val=_chosen(val, mask), how=how)


def _captioned(store: Store, splits: Sequence[str], *, from_cache: bool) -> CaptionedImages:
    table = store.items()
    wanted = np.isin(np.array(table["split"].to_pylist(), dtype=object), list(splits))
    columns = {name: table[name].to_pylist() for name in ("id", "key", "uri", "captions")}
    keys = columns["key"]
    feature = "tokens" if from_cache else None
    rows = store.rows(Modality.IMAGES, keys, feature) if keys else np.empty(0, np.int64)
    told = np.array([bool(own) for own in columns["captions"]], dtype=bool)
    keep = wanted & told & ((rows >= 0) | (not from_cache))
    _, same = np.unique(np.array(keys, dtype=object), return_inverse=True)
    texts = [[caption["text"] for caption in own] for own in columns["captions"]]
    whole = CaptionedImages(
        ids=columns["id"],
        keys=keys,
        uris=columns["uri"],
        rows=rows.astype(np.int64),
        same=same.astype(np.int64),
        texts=[text for own in texts for text in own],
        starts=np.cumsum([0, *map(len, texts)], dtype=np.int64),
    )
    return _chosen(whole, keep)


def _chosen(data: CaptionedImages, mask: NDArray[np.bool_]) -> CaptionedImages:
    keep = np.flatnonzero(mask).tolist()
    texts = [data.captions_of(i) for i in keep]
    return CaptionedImages(
        ids=[data.ids[i] for i in keep],
        keys=[data.keys[i] for i in keep],
        uris=[data.uris[i] for i in keep],
        rows=data.rows[keep],
        same=data.same[keep],
        texts=[text for own in texts for text in own],
        starts=np.cumsum([0, *map(len, texts)], dtype=np.int64),
    )


def _without(data: CaptionedImages, keys: set[str]) -> CaptionedImages:
    return _chosen(data, np.array([key not in keys for key in data.keys], dtype=bool))


def _hashes(ids: Sequence[str]) -> Ints:
    found = [hashlib.sha256(f"vlre held out {i}".encode()).digest()[:7] for i in ids]
    return np.array([int.from_bytes(value, "big") for value in found], dtype=np.int64)


def _held_out(data: CaptionedImages) -> NDArray[np.bool_]:
    hashes = _hashes(data.ids)
    held = hashes < int(_HELD_OUT * 2**56)
    if len(data) > 1 and not held.any():
        held[np.argmin(hashes)] = True
    return held


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """What a step is made of: i images, and n captions of each.

    Attributes:
        images: (i,) numbers in a `CaptionedImages`.
        captions: (i, n) numbers of its texts, -1 where an image has fewer.
    """

    images: Ints
    captions: Ints


class Company(Protocol):
    """Finds what is hard to tell from a pair."""

    def beside(self, captions: Ints, rng: np.random.Generator) -> Ints:
        """(r,) for each of some captions the number of another one, of another image."""


class Order:
    """The batches of every step, which the seed decides.

    Each pass takes each caption once. Images whose rows lie side by side come in the same stretch
    of a pass, so that a store larger than memory is read from end to end and not in all places.

    Args:
        data: the training set.
        batch_size: captions in a step.
        per_image: captions of an image in a batch.
        seed: decides the order.
        company: gives each pair another one to share its batch, which makes a pass twice as
            long; None gives none.

    Raises:
        UsageError: the batch is larger than the data.
    """

    def __init__(
        self,
        data: CaptionedImages,
        *,
        batch_size: int,
        per_image: int,
        seed: int,
        company: Company | None = None,
    ) -> None:
        self._data = data
        self._company = company
        self._n, self._seed = per_image, seed
        self._images = batch_size // per_image
        counts = -(-np.diff(data.starts) // per_image)
        self.steps_per_epoch = int(counts.sum()) * (2 if company else 1) // self._images
        if not self.steps_per_epoch:
            raise UsageError(
                f"a batch of {batch_size} captions is larger than the data: {len(data.texts)} "
                f"captions of {len(data)} images",
                hint="lower `batch_size`",
            )
        self._epoch = -1
        self._groups: tuple[Ints, Ints] = (
            np.empty(0, np.int64),
            np.empty((0, per_image), np.int64),
        )

    def __call__(self, step: int) -> Group:
        """Images and captions of the batch of a step."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._groups, self._epoch = self._pass(epoch), epoch
        chosen = slice(at * self._images, (at + 1) * self._images)
        return Group(images=self._groups[0][chosen], captions=self._groups[1][chosen])

    def _pass(self, epoch: int) -> tuple[Ints, Ints]:
        rng = np.random.default_rng((self._seed, 0, epoch))
        by_row = np.argsort(self._data.rows, kind="stable")
        blocks = [by_row[start : start + _BLOCK] for start in range(0, len(by_row), _BLOCK)]
        order = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
        images, captions = [], []
        for start in range(0, len(order), _WINDOW):
            rows = [
                (image, row)
                for image in order[start : start + _WINDOW]
                for row in self._of(image, rng)
            ]
            shuffled = rng.permutation(len(rows))
            for i in shuffled:
                images.append(rows[i][0])
                captions.append(rows[i][1])
                if self._company is not None:
                    [beside] = self._company.beside(np.array(rows[i][1][:1]), rng).tolist()
                    images.append(int(self._data.owner_of(beside)))
                    captions.append([beside])
        return np.array(images, dtype=np.int64), np.array(captions, dtype=np.int64)

    def _of(self, image: int, rng: np.random.Generator) -> list[list[int]]:
        first, last = self._data.starts[image], self._data.starts[image + 1]
        numbers = (first + rng.permutation(last - first)).tolist()
        numbers += [-1] * (-len(numbers) % self._n)
        return [numbers[at : at + self._n] for at in range(0, len(numbers), self._n)]
