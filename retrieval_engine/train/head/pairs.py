"""The features a head is trained on: read from shards once, then only indexed on the device."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval_engine.errors import FeatureMissing, TrainingError
from retrieval_engine.heads import TrainedOn
from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Store
from retrieval_engine.store.gallery import shared_strings, some_of
from retrieval_engine.train.head.recipe import CaptionChoice, HeadRecipe, Loss
from retrieval_engine.train.head.val_recall import ValRecall, val_recall

_HELD_OUT = ("val", "test")
_LARGEST_VAL = 1000
_FEW = 500
_NONE = -2  # no caption; -1 is one that has no features, which reading refuses

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePairs:
    """Images and their captions on one device.

    Attributes:
        images: (n, q, w) features in the dtype of the store.
        texts: (u, v) features of distinct captions.
        captions: (n, c) int64 rows of `texts`, -1 beyond an image's last caption.
    """

    images: Tensor
    texts: Tensor
    captions: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def owners(self) -> tuple[Tensor, Tensor]:
        """(m,) image and (m,) row of `texts` of every true pair, by image."""
        image, column = (self.captions >= 0).nonzero(as_tuple=True)
        return image, self.captions[image, column]

    def recall(self, images: Tensor | None = None, texts: Tensor | None = None) -> ValRecall:
        """Recall of all captions against all images, by these vectors or the features themselves.

        Args:
            images: (n, q, d) or (n, d).
            texts: (u, d).
        """
        image, row = self.owners
        images, texts = (
            (self.images if images is None else images),
            (self.texts if texts is None else texts),
        )
        return val_recall(images, texts[row], image)

    def joined(self, other: "FeaturePairs", *, first_only: bool) -> "FeaturePairs":
        """These images and others; of the others' captions only the first when asked for."""
        theirs = other.captions[:, :1] if first_only else other.captions
        theirs = torch.where(theirs >= 0, theirs + len(self.texts), theirs)
        width = max(self.captions.shape[1], theirs.shape[1])
        tables = [
            functional.pad(table, (0, width - table.shape[1]), value=-1)
            for table in (self.captions, theirs)
        ]
        return FeaturePairs(
            images=torch.cat([self.images, other.images]),
            texts=torch.cat([self.texts, other.texts]),
            captions=torch.cat(tables),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Features to train a head on and to select it on.

    Attributes:
        train: to learn from.
        val: to select on; shares no image with `train`.
        trained_on: both, by source, id and key.
        val_itc: what search without a head compares of `val`; None where the store lacks some.
    """

    train: FeaturePairs
    val: FeaturePairs
    trained_on: TrainedOn
    val_itc: FeaturePairs | None = None


def read_training_data(store: Store, recipe: HeadRecipe, device: torch.device) -> TrainingData:
    """Read the features of both sides once, and move them to the device.

    Items of equal image bytes count as one image with the captions of all; no image is in both
    sets.

    Raises:
        UsageError: a split is unknown.
        FeatureMissing: the store lacks the feature for some image or caption.
        TrainingError: too few images, or no validation.
    """
    gallery = store.gallery()
    train, val = _choose(gallery, recipe)
    first_only = recipe.captions is CaptionChoice.FIRST
    rows = gallery.image_rows[train], gallery.image_rows[val]
    tables = caption_table(gallery, rows[0], first_only=first_only), caption_table(gallery, rows[1])
    return TrainingData(
        train=_pairs(store, recipe.feature, rows[0], tables[0], device),
        val=_pairs(store, recipe.feature, rows[1], tables[1], device),
        trained_on=_trained_on(gallery, {"train": train, "val": val}),
        val_itc=_searched(store, rows[1], tables[1], device),
    )


def _searched(
    store: Store, rows: Ints, captions: Ints, device: torch.device
) -> FeaturePairs | None:
    try:
        return _pairs(store, "itc", rows, captions, device)
    except FeatureMissing:
        return None


def _choose(gallery: Gallery, recipe: HeadRecipe) -> tuple[Ints, Ints]:
    """Gallery indices to learn from and to select on, one for each image.

    Chosen by a hash of their ids, so that neither depends on the order of the store.
    """
    splits = shared_strings(gallery.splits)
    captioned = np.zeros(len(gallery), bool)
    captioned[gallery.caption_image] = True
    _, first = np.unique(gallery.image_rows, return_index=True)
    order = _by_hash(gallery, np.sort(first[captioned[first]]), recipe.seed)
    present = set(np.unique(splits).tolist())
    pool = order[_is_in(splits[order], recipe.split, "train", present, "`split`")]
    named = recipe.val_split or "val" in present
    if named:
        val = order[_is_in(splits[order], recipe.val_split, "val", present, "`val_split`")]
        val = val[: recipe.val_size or _LARGEST_VAL]
        pool = pool[~np.isin(pool, val)]
    else:
        share = len(pool) // (5 if len(pool) < _FEW else 10)
        size = recipe.val_size or min(_LARGEST_VAL, share)
        val, pool = pool[:size], pool[size:]
    train = pool[: recipe.train_size or None]
    _check(train, val, recipe)
    return np.sort(train), np.sort(val)


def _is_in(
    splits: NDArray[np.object_], asked: str, usual: str, present: set[str], option: str
) -> NDArray[np.bool_]:
    if asked and asked not in present:
        known = ", ".join(sorted(name or "(none)" for name in present))
        raise TrainingError(
            f"no item has split {asked!r}; splits here: {known}", hint=f"give another {option}"
        )
    name = asked or (usual if usual in present else "")
    chosen: NDArray[np.bool_]
    chosen = splits == name if name else ~np.isin(splits.astype(str), _HELD_OUT)
    return chosen


def _check(train: Ints, val: Ints, recipe: HeadRecipe) -> None:
    if len(train) < 2:
        raise TrainingError(
            f"{len(train)} images with captions are left to train on; at least 2 are needed",
            hint="encode more pairs, or ask for fewer with `val_size`",
        )
    if len(val) < 2:
        raise TrainingError(
            f"the validation set has {len(val)} images; at least 2 are needed to select on",
            hint="give `val_size`, or another `val_split`",
        )
    if recipe.batch_size > len(train) and recipe.loss is not Loss.DIAGONAL:
        raise TrainingError(
            f"`batch_size={recipe.batch_size}` is more than the {len(train)} images there are to "
            "train on",
            hint=f"use `batch_size={len(train)}` or less, or leave it out",
        )


def _by_hash(gallery: Gallery, images: Ints, seed: int) -> Ints:
    salt, ids = f"{seed}:".encode(), some_of(gallery.ids, images)
    hashes = (hashlib.blake2b(salt + i.encode(), digest_size=8).digest() for i in ids)
    order: Ints = images[np.argsort(np.frombuffer(b"".join(hashes), "S8"), kind="stable")]
    return order


def caption_table(gallery: Gallery, rows: Ints, *, first_only: bool = False) -> Ints:
    """(n, c) caption rows of each image row, in order, each once, `_NONE` beyond the last.

    Args:
        gallery: items; those of equal images have their captions together.
        rows: (n,) distinct rows of images that have captions.
        first_only: c is 1.
    """
    order = np.argsort(rows)
    images = gallery.image_rows[gallery.caption_image]
    place = order[np.minimum(np.searchsorted(rows[order], images), len(rows) - 1)]
    kept = rows[place] == images
    place, captions = place[kept], gallery.caption_rows[kept]
    # Each pair once, where it comes first, by image.
    codes = place * (captions.max(initial=0) + 2) + captions + 1
    first = np.sort(np.unique(codes, return_index=True)[1])
    first = first[np.argsort(place[first], kind="stable")]
    place, captions = place[first], captions[first]
    column = np.arange(len(place)) - np.searchsorted(place, place)
    table = np.full((len(rows), 1 if first_only else int(column.max()) + 1), _NONE)
    inside = column < table.shape[1]
    table[place[inside], column[inside]] = captions[inside]
    return table


def _pairs(
    store: Store, feature: str, rows: Ints, captions: Ints, device: torch.device
) -> FeaturePairs:
    there = captions != _NONE
    distinct, place = np.unique(captions[there], return_inverse=True)
    table = np.full(captions.shape, -1, np.int64)
    table[there] = place
    images = store.read(Modality.IMAGES, feature, rows)
    texts = store.read(Modality.CAPTIONS, feature, distinct)
    if images.ndim == 2:
        images = images[:, None]
    if images.ndim != 3:
        raise TrainingError(
            f"{feature} of images has shape {images.shape[1:]}: a head reads vectors",
            hint="use `feature='pooled'` or `feature='itc'`",
        )
    return FeaturePairs(
        images=torch.from_numpy(images).to(device),
        texts=torch.from_numpy(texts.reshape(len(texts), -1)).to(device),
        captions=torch.from_numpy(table).to(device),
    )


def _trained_on(gallery: Gallery, chosen: dict[str, Ints]) -> TrainedOn:
    """Every item whose image is in one of the sets, copies under other ids included."""
    role = np.zeros(len(gallery), np.int64)
    for number, images in enumerate(chosen.values(), start=1):
        role[np.isin(gallery.image_rows, gallery.image_rows[images])] = number
    seen = np.flatnonzero(role)
    sources, ids, keys = (
        tuple(some_of(column, seen)) for column in (gallery.sources, gallery.ids, gallery.keys)
    )
    roles = tuple(np.array(list(chosen), dtype=object)[role[seen] - 1].tolist())
    return TrainedOn(sources=sources, ids=ids, keys=keys, roles=roles)
