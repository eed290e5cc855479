"""The features a head is trained on: read from shards once, then only indexed on the device."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval_engine.errors import TrainingError
from retrieval_engine.heads import TrainedOn
from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery, Store
from retrieval_engine.train.head.recipe import CaptionChoice, HeadRecipe, Loss

_HELD_OUT = ("val", "test")
_LARGEST_VAL = 1000
_FEW = 500

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
    """

    train: FeaturePairs
    val: FeaturePairs
    trained_on: TrainedOn


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
    captions = _captions_by_row(gallery, first_only=recipe.captions is CaptionChoice.FIRST)
    every = _captions_by_row(gallery, first_only=False)
    return TrainingData(
        train=_pairs(store, recipe.feature, gallery.image_rows[train], captions, device),
        val=_pairs(store, recipe.feature, gallery.image_rows[val], every, device),
        trained_on=_trained_on(gallery, {"train": train, "val": val}),
    )


def _choose(gallery: Gallery, recipe: HeadRecipe) -> tuple[Ints, Ints]:
    """Gallery indices to learn from and to select on, one for each image.

    Chosen by a hash of their ids, so that neither depends on the order of the store.
    """
    splits = np.array(list(gallery.splits), dtype=object)
    captioned = np.zeros(len(gallery), bool)
    captioned[gallery.caption_image] = True
    _, first = np.unique(gallery.image_rows, return_index=True)
    order = _by_hash(gallery, np.sort(first[captioned[first]]), recipe.seed)
    present = set(splits.tolist())
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
    ids = list(gallery.ids)
    salt = f"{seed}:".encode()
    hashes = [hashlib.blake2b(salt + ids[i].encode(), digest_size=8).digest() for i in images]
    order: Ints = images[np.argsort(np.array(hashes, "S8"), kind="stable")]
    return order


def _captions_by_row(gallery: Gallery, *, first_only: bool) -> dict[int, list[int]]:
    """Caption rows of each image row, in order, each once."""
    found: dict[int, list[int]] = {}
    images = gallery.image_rows[gallery.caption_image].tolist()
    for image, caption in zip(images, gallery.caption_rows.tolist(), strict=True):
        mine = found.setdefault(image, [])
        if caption not in mine and not (first_only and mine):
            mine.append(caption)
    return found


def _pairs(
    store: Store, feature: str, rows: Ints, captions: dict[int, list[int]], device: torch.device
) -> FeaturePairs:
    mine: Sequence[list[int]] = [captions[row] for row in rows.tolist()]
    flat = np.array([row for some in mine for row in some], np.int64)
    distinct, place = np.unique(flat, return_inverse=True)
    widest = max(len(some) for some in mine)
    table = np.full((len(rows), widest), -1, np.int64)
    lengths = np.array([len(some) for some in mine])
    table[np.arange(widest) < lengths[:, None]] = place
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
    role_of_row = {
        row: role for role, images in chosen.items() for row in gallery.image_rows[images].tolist()
    }
    roles = [role_of_row.get(row, "") for row in gallery.image_rows.tolist()]
    rows = zip(gallery.sources, gallery.ids, gallery.keys, roles, strict=True)
    sources, ids, keys, seen = zip(*(row for row in rows if row[3]), strict=True)
    return TrainedOn(sources=sources, ids=ids, keys=keys, roles=seen)
