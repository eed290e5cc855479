"""Hard negatives: for each caption the nearest wrong images and captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine.duplicates import DuplicateSettings, find_duplicates
from retrieval_engine.durable import replacing_file
from retrieval_engine.errors import FeatureMissing, StoreError, UsageError
from retrieval_engine.index.exact import Block, ExactIndex
from retrieval_engine.index.grouping import merge_queries
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Modality
from retrieval_engine.search.matching import same_words
from retrieval_engine.store import Gallery, Store
from retrieval_engine.train.finetune.hard_negatives import SCHEMA

_QUERIES = 512
_SPARE = 256  # more than so many true ones in front of a negative, and there are fewer of them

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningReport:
    """What was mined.

    Attributes:
        out: the file.
        n_captions: captions that have negatives.
        n_images: negatives that are images.
        n_texts: negatives that are captions.
        n_duplicates: images that are another one, which are nobody's negatives for it.
    """

    out: Path
    n_captions: int
    n_images: int
    n_texts: int
    n_duplicates: int


def mine_negatives(
    store: Store,
    out: Path,
    *,
    k: int = 10,
    split: str | None = None,
    pixels: bool = True,
    progress: Progress | None = None,
) -> MiningReport:
    """For each caption the k nearest images and captions that are wrong, as a Parquet file.

    Images are near the caption, captions are near the caption's image, by `itc`. Wrong is what is
    neither of the image nor of a duplicate of it, and has no caption equal to the one in question
    (an image) or to one of the image's (a caption): equal but for case, spaces and a full stop.

    Args:
        store: with `itc` features of images and captions.
        out: the file.
        k: negatives of each kind.
        split: only images of this split; None takes all.
        pixels: tell near-duplicates by their pixels; else equal bytes alone are duplicates.
        progress: told about captions.

    Raises:
        UsageError: k is below 1, or no item has the split.
        FeatureMissing: there are no features of captions.
        StoreError: the file cannot be written.
    """
    if k < 1:
        raise UsageError(f"`k` is {k}; it must be at least 1")
    progress = progress or Silent()
    gallery = store.gallery(split)
    captions = np.flatnonzero(gallery.caption_rows >= 0)
    if "itc" not in store.features(Modality.CAPTIONS) or not len(captions):
        raise FeatureMissing(
            f"{store.path} holds no itc of captions", hint="encode a source that has captions"
        )
    wrong = _Wrong.of(gallery, _groups(store, gallery, split, pixels, progress))
    try:
        with replacing_file(out) as file, pq.ParquetWriter(file, SCHEMA) as writer:
            counts = np.zeros(3, np.int64)
            progress.start("mining", len(captions))
            for rows in _rows(gallery, captions, wrong, k):
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                counts += [
                    sum(1 for r in rows if r["negative_image_ids"] or r["negative_captions"]),
                    sum(len(row["negative_image_ids"]) for row in rows),
                    sum(len(row["negative_captions"]) for row in rows),
                ]
                progress.advance(len(rows))
            progress.stop()
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from error
    return MiningReport(
        out=out,
        n_captions=int(counts[0]),
        n_images=int(counts[1]),
        n_texts=int(counts[2]),
        n_duplicates=len(gallery) - len(np.unique(wrong.group)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Wrong:
    """What is wrong for what: images of other groups, without equal captions.

    Attributes:
        group: (n,) number that duplicates share.
        owner: (m,) image of each caption.
        words: (m,) number that equal captions share.
        said: for each image and each words of its captions image * n_words + word, ascending.
        n_words: how many there are.
    """

    group: Ints
    owner: Ints
    words: Ints
    said: Ints
    n_words: int

    @classmethod
    def of(cls, gallery: Gallery, group: Ints) -> "_Wrong":
        plain = pa.array(map(same_words, gallery.caption_texts), pa.large_string())
        encoded = plain.dictionary_encode()
        words = np.from_dlpack(encoded.indices).astype(np.int64)
        n_words, owner = len(encoded.dictionary), gallery.caption_image
        said = np.unique(owner * n_words + words)
        return cls(group=group, owner=owner, words=words, said=said, n_words=n_words)

    def say(self, images: Ints, words: Ints) -> NDArray[np.bool_]:
        """(k,) whether a caption of each image has the words of the same place."""
        asked = images * self.n_words + words
        at = np.minimum(np.searchsorted(self.said, asked), len(self.said) - 1)
        found: NDArray[np.bool_] = self.said[at] == asked
        return found

    def images(self, caption: int, found: Ints) -> Ints:
        """Places in a ranked list of images that are wrong for a caption."""
        others = self.group[found] != self.group[self.owner[caption]]
        says = self.say(found, np.broadcast_to(self.words[caption], found.shape))
        places: Ints = np.flatnonzero((found >= 0) & others & ~says)
        return places

    def captions(self, image: int, found: Ints) -> Ints:
        """Places in a ranked list of captions that are wrong for an image, each text once."""
        words = self.words[found]
        others = self.group[self.owner[found]] != self.group[image]
        says = self.say(np.broadcast_to(np.int64(image), found.shape), words)
        wrong = np.flatnonzero(others & ~says)
        first: Ints = np.sort(wrong[np.unique(words[wrong], return_index=True)[1]])
        return first


def _groups(
    store: Store, gallery: Gallery, split: str | None, pixels: bool, progress: Progress
) -> Ints:
    _, group = np.unique(gallery.image_rows, return_inverse=True)
    group = group.astype(np.int64)
    if pixels:
        settings = DuplicateSettings(split=split)
        asked = np.unique(gallery.caption_image)
        for copies in find_duplicates(store, settings, of=asked, progress=progress).groups:
            numbers = [copy.number for copy in copies.members]
            group[numbers] = group[numbers].min()
    return group


def _rows(
    gallery: Gallery, captions: Ints, wrong: _Wrong, k: int
) -> Iterator[list[dict[str, Any]]]:
    """The file's rows, a block of captions at a time: memory is bounded by the block."""
    store = gallery.store
    form = store.features(Modality.IMAGES)["itc"]
    images = ExactIndex.streaming(
        lambda size: gallery.image_blocks("itc", size), len(gallery), form.shape
    )
    texts = _caption_index(gallery, captions)
    fetch = k + _SPARE
    for start in range(0, len(captions), _QUERIES):
        block = captions[start : start + _QUERIES]
        queries = store.read(Modality.CAPTIONS, "itc", gallery.caption_rows[block])[:, 0]
        scores, found = images.search(queries.astype(np.float32), min(fetch, len(gallery)))
        near = _near_captions(gallery, captions, texts, np.unique(wrong.owner[block]), fetch)
        rows = []
        for place, caption in enumerate(block.tolist()):
            image = int(wrong.owner[caption])
            top = wrong.images(caption, found[place])[:k]
            text_scores, numbers = near[image]
            false = wrong.captions(image, numbers)[:k]
            negatives = found[place][top].tolist()
            rows.append(
                {
                    "image_key": gallery.keys[image],
                    "image_id": gallery.ids[image],
                    "caption": gallery.caption_texts[caption],
                    "negative_image_keys": [gallery.keys[number] for number in negatives],
                    "negative_image_ids": [gallery.ids[number] for number in negatives],
                    "negative_image_scores": scores[place][top].tolist(),
                    "negative_captions": [
                        gallery.caption_texts[n] for n in numbers[false].tolist()
                    ],
                    "negative_caption_scores": text_scores[false].tolist(),
                }
            )
        yield rows


def _caption_index(gallery: Gallery, captions: Ints) -> ExactIndex:
    rows = gallery.caption_rows[captions]
    store = gallery.store

    def blocks(size: int) -> Iterator[Block]:
        for start in range(0, len(rows), size):
            yield start, store.read(Modality.CAPTIONS, "itc", rows[start : start + size])

    shape = store.features(Modality.CAPTIONS)["itc"].shape
    return ExactIndex.streaming(blocks, len(rows), shape)


def _near_captions(
    gallery: Gallery, captions: Ints, index: ExactIndex, images: Ints, fetch: int
) -> dict[int, tuple[NDArray[np.float32], Ints]]:
    """For some images the scores and numbers of the nearest captions, best first."""
    vectors = gallery.store.read(Modality.IMAGES, "itc", gallery.image_rows[images])
    vectors = vectors.astype(np.float32)
    k = min(fetch, index.items)
    scores, found = index.search(vectors.reshape(-1, vectors.shape[-1]), k)
    near = {}
    for place, image in enumerate(images.tolist()):
        own = slice(place * vectors.shape[1], (place + 1) * vectors.shape[1])
        best, numbers = merge_queries(scores[own], found[own], k)
        near[image] = (best, captions[numbers])
    return near
