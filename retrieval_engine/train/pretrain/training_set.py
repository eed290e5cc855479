"""The training set in arrays: pictures, captions, and what is in each picture."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import TrainingError
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.text import pre_caption
from retrieval_engine.progress import Progress
from retrieval_engine.records import Item
from retrieval_engine.sources import Source, open_source
from retrieval_engine.sources.labels import Labelled
from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.views import Pictures, draw_all
from retrieval_engine.train.pretrain.words import Slots, content_words

MAX_WORDS = 30  # of a caption, as in BLIP's retrieval sets
_MOST_CONCEPTS = 512
_HELD_OUT = 20  # one item in so many is held out where no validation source is given
_MOST_HELD_OUT = 1000
_COLOURS = "red orange yellow green blue purple pink brown black white gray grey gold silver"
_SIDES = frozenset({"left", "right"})
TRAIN_SPLITS = ("", "train", "restval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Which caption is true of which picture, where the source can tell.

    Attributes:
        needs: (m, a) bool: the atoms each caption claims.
        holds: (n, a) bool: the atoms that are facts of each picture.
        is_read: (m,) bool: captions that were understood; of the others nothing is known.
        facts: of each picture, by name.
    """

    needs: NDArray[np.bool_]
    holds: NDArray[np.bool_]
    is_read: NDArray[np.bool_]
    facts: Sequence[frozenset[str]]

    def of(self, captions: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(t, b) bool: captions that are known to be true of the pictures."""
        needs = self.needs[captions].astype(np.float32)
        lacks = (~self.holds[items]).astype(np.float32)
        true: NDArray[np.bool_] = (needs @ lacks.T == 0) & self.is_read[captions][:, None]
        return true


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Items of a source in arrays; row i is one picture.

    Attributes:
        key: digest of the data.
        pictures: pixels and, where the source has them, the class of each patch.
        captions: m cleaned texts, those of one picture side by side.
        starts: (n + 1,) where each picture's captions begin.
        concepts: names of the c things a picture may hold.
        present: (n, c) uint8.
        truth: what is true of what, or None where only a picture's own captions are known to be.
        labels: what the source knows of its pictures, or None.
        slots: which words stand in the same places of captions.
    """

    key: str
    pictures: Pictures
    captions: Sequence[str]
    starts: NDArray[np.int64]
    concepts: Sequence[str]
    present: NDArray[np.uint8]
    truth: Truth | None
    labels: Labelled | None
    slots: Slots

    def __len__(self) -> int:
        return len(self.pictures.pixels)

    @property
    def failures(self) -> Sequence[str]:
        """A line for each picture that could not be read."""
        return self.pictures.failures

    @property
    def owner(self) -> NDArray[np.int64]:
        """(m,) the picture of each caption."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def is_colour(self) -> NDArray[np.bool_]:
        """(c,) concepts that a grey picture does not show."""
        colours = frozenset(_COLOURS.split())
        return np.array([not colours.isdisjoint(c.split()) for c in self.concepts], dtype=bool)

    def true_of(
        self, captions: NDArray[np.int64], owner: NDArray[np.int64], items: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """What may not be a negative.

        Args:
            captions: (t,) rows of captions.
            owner: (t,) place in `items` of the picture each is of.
            items: (b,) rows of pictures, all different.

        Returns:
            (t, b) bool: the caption is of the picture, is worded like one of its batch mates'
            captions, or is known to be true of it.
        """
        of_picture = owner[:, None] == np.arange(len(items))[None]
        texts = [self.captions[i] for i in captions]
        first = {text: row for row, text in reversed(list(enumerate(texts)))}
        worded = np.array([first[text] for text in texts])
        alike = (worded[:, None] == worded[None]).astype(np.float32)  # (t, t)
        true: NDArray[np.bool_] = (alike @ of_picture.astype(np.float32)) > 0
        return true | self.truth.of(captions, items) if self.truth else true

    def is_false(self, text: str, word: str, item: int) -> bool:
        """Whether a text made from a caption of a picture, with `word` new in it, is false of it."""
        if self.labels is not None and self.truth is not None:
            claims = self.labels.claims(text)
            return claims is not None and not claims <= self.truth.facts[item]
        own = self.captions[self.starts[item] : self.starts[item + 1]]
        return all(word not in caption.split() for caption in own)

    def to_tell(self, items: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The caption of each picture that the decoder learns.

        The longest where the source can tell truth, since its short captions are parts of the long
        one; else any, as in BLIP.
        """
        spans = zip(self.starts[items], self.starts[items + 1], strict=True)
        if self.truth is None:
            return np.array([rng.integers(start, end) for start, end in spans])
        return np.array([max(range(a, b), key=lambda i: len(self.captions[i])) for a, b in spans])


def load_sets(
    config: PretrainConfig, cache: Path, progress: Progress
) -> tuple[TrainingSet, TrainingSet]:
    """The items to train on and those to select on.

    Raises:
        TrainingError: no item has captions, or there are fewer than a batch.
        SourceError: the source cannot be read.
        UsageError: no such source.
    """
    source = open_source(config.source)
    val_source = open_source(config.val_source) if config.val_source else source
    items = captioned(source, config.source)
    train = [item for item in items if item.split in TRAIN_SPLITS]
    if config.val_source:
        held_out = captioned(val_source, config.val_source)
        held_out = [item for item in held_out if item.split in ("", "val")] or held_out
    else:
        train, held_out = held_out_split(train, items)
    train = [_with_captions(item, config.max_captions) for item in train]
    train = train[: config.limit or len(train)]
    _refuse_too_few(len(train), config)
    labels = source if isinstance(source, Labelled) else None
    drawn = draw_all(train, config.size, labels, cache, progress)
    _refuse_too_few(len(drawn.items), config)
    train_set = _build(drawn, labels)
    labels = val_source if labels and isinstance(val_source, Labelled) else None
    drawn = draw_all(held_out, config.size, None, cache, progress)
    val_set = _build(drawn, labels, train_set.concepts)
    return train_set, val_set


def _with_captions(item: Item, most: int) -> Item:
    return replace(item, captions=item.captions[:most]) if most else item


def _refuse_too_few(n: int, config: PretrainConfig) -> None:
    if n < config.batch_size:
        raise TrainingError(
            f"{config.source} has {n} usable captioned items to train on, fewer than a batch of "
            f"{config.batch_size}",
            hint="give more items or a smaller `batch_size`",
        )


def held_out_split(train: Sequence[Item], items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The source's own split where it has one, else a twentieth held out by the items' ids."""
    if val := [item for item in items if item.split == "val"]:
        return list(train), val
    ranked = sorted(train, key=lambda item: hashlib.sha256(item.id.encode()).digest())
    apart = {item.id for item in ranked[: min(_MOST_HELD_OUT, -(-len(ranked) // _HELD_OUT))]}
    return [i for i in train if i.id not in apart], [i for i in train if i.id in apart]


def captioned(source: Source, spec: str) -> list[Item]:
    """The items of a source that have captions.

    Raises:
        TrainingError: there are none.
    """
    items = [item for item in source.items() if item.captions]
    if not items:
        raise TrainingError(
            f"no item of {spec} has a caption", hint="pretraining needs pictures with captions"
        )
    return items


def _build(
    pictures: Pictures, labels: Labelled | None, concepts: Sequence[str] = ()
) -> TrainingSet:
    captions = [[pre_caption(c.text, MAX_WORDS) for c in i.captions] for i in pictures.items]
    flat = [text for texts in captions for text in texts]
    if labels:
        held = [labels.facts(item.meta) for item in pictures.items]
        truth = _truth(flat, held, labels)
    else:
        held = [frozenset(w for t in texts for w in content_words(t)) for texts in captions]
        truth = None
    concepts = concepts or _concepts(held)
    return TrainingSet(
        key=digest([pictures.key, flat]),
        pictures=pictures,
        captions=flat,
        starts=np.cumsum([0, *map(len, captions)]),
        concepts=concepts,
        present=_table(held, concepts).astype(np.uint8),
        truth=truth,
        labels=labels,
        slots=Slots(flat),
    )


def _truth(captions: Sequence[str], held: Sequence[frozenset[str]], labels: Labelled) -> Truth:
    claims = [labels.claims(text) for text in captions]
    atoms = sorted(set().union(*held, *(c for c in claims if c is not None)))
    return Truth(
        needs=_table([c or frozenset() for c in claims], atoms),
        holds=_table(held, atoms),
        is_read=np.array([c is not None for c in claims], dtype=bool),
        facts=held,
    )


def _concepts(held: Sequence[frozenset[str]]) -> list[str]:
    """What enough pictures hold to be learned, the most frequent first.

    Sides are left out: they change in the mirror.
    """
    counts = Counter(name for names in held for name in names if not _SIDES & set(name.split()))
    least = max(2, len(held) // 1000)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [name for name, n in ranked[:_MOST_CONCEPTS] if least <= n < len(held)]


def _table(rows: Sequence[frozenset[str]], columns: Sequence[str]) -> NDArray[np.bool_]:
    """(rows, columns) bool membership."""
    place = {name: i for i, name in enumerate(columns)}
    table = np.zeros((len(rows), len(columns)), dtype=bool)
    for row, names in zip(table, rows, strict=True):
        row[[place[name] for name in names if name in place]] = True
    return table
