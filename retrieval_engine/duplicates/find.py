"""Finds pictures that are one, and picks the best of each.

    vectors ──► a few near pairs for each image ──► their pixels, laid over each other ──► groups

Vectors cost one pass over the store for each block of it; pixels are looked at for at most
`neighbours` pairs an image, never for all pairs.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.duplicates.candidates import (
    Neighbours,
    StoredPictures,
    cross_pairs,
    near_pairs,
    vector_feature,
)
from retrieval_engine.duplicates.groups import (
    Copy,
    DuplicateGroup,
    best_first,
    joined,
    looked_at,
)
from retrieval_engine.duplicates.thumbnails import Thumbnails, proven
from retrieval_engine.errors import UsageError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json, data_frame
from retrieval_engine.store import Gallery, Store

Ints = NDArray[np.int64]
LEAST = 0.5  # cosine: 99 % of pairs of copies lie above it by `vlre-photo` (benchmarks/LOG.md)
# Of two large sets only what is likely is looked at: this is a warning, and not to take minutes.
_CROSSING, _CROSSING_LEAST = 2, 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateSettings:
    """What is looked at.

    Attributes:
        split: only items of this split; None takes all.
        neighbours: at most so many of the nearest of each image are compared with it.
        least: cosine of two images' vectors from which they are.
    """

    split: str | None = None
    neighbours: int = 12
    least: float = LEAST

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.neighbours < 1:
            raise UsageError(f"`neighbours` is {self.neighbours}, must be at least 1")
        if not -1 <= self.least <= 1:
            raise UsageError(f"`least` is {self.least}, a cosine, must lie between -1 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateReport:
    """The groups of a gallery, and what was done to find them.

    Attributes:
        groups: in the gallery's order of their first pictures.
        n_images: images of the gallery.
        n_candidates: pairs that were near by their vectors.
        unreadable: uris that could not be read, with the reason: nothing is said of them, but
            that equal bytes are equal.
        seconds: wall time.
    """

    groups: tuple[DuplicateGroup, ...]
    n_images: int
    n_candidates: int
    unreadable: dict[str, str]
    seconds: float

    @property
    def n_spare(self) -> int:
        """Pictures that are copies of a better one."""
        return sum(len(group.members) - 1 for group in self.groups)

    def to_pandas(self) -> Any:
        """A row for each picture of a group, the best first, with what speaks for it.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return data_frame(
            [
                {"group": number, "best": copy is group.best} | asdict(copy)
                for number, group in enumerate(self.groups, start=1)
                for copy in group.members
            ]
        )

    def _repr_html_(self) -> str:
        from retrieval_engine.duplicates.duplicate_page import fragment

        return fragment(self)

    @property
    def groups_told(self) -> str:
        """The number of groups, in words."""
        return f"{len(self.groups):,} group" + ("" if len(self.groups) == 1 else "s")

    @property
    def copies_told(self) -> str:
        """How many of all pictures are copies, in words."""
        are = "is a copy" if self.n_spare == 1 else "are copies"
        return f"{self.n_spare:,} of {self.n_images:,} pictures {are} of a better one"

    def to_json(self) -> dict[str, Json]:
        """The counts, without the groups."""
        return {
            "n_images": self.n_images,
            "n_groups": len(self.groups),
            "n_spare": self.n_spare,
            "n_candidates": self.n_candidates,
            "n_unreadable": len(self.unreadable),
            "seconds": round(self.seconds, 3),
        }


def find_duplicates(
    store: Store,
    settings: DuplicateSettings | None = None,
    *,
    index: Neighbours | None = None,
    of: Ints | None = None,
    progress: Progress | None = None,
) -> DuplicateReport:
    """Groups of images that are one picture: resized, re-encoded, cropped a little, brightened.

    Args:
        store: with vectors of images.
        settings: what is looked at.
        index: over the `itc` of exactly these images, one vector each: finds near ones faster
            than a comparison of all with all does where there are millions.
        of: (m,) numbers of the images whose copies are wanted; None wants those of all.
        progress: told about images and pairs.

    Raises:
        UsageError: no item has the split.
        FeatureMissing: the store has no vectors of images.
    """
    settings, progress = settings or DuplicateSettings(), progress or Silent()
    started = time.perf_counter()
    gallery = store.gallery(settings.split)
    pairs = near_pairs(
        gallery,
        "itc" if index is not None else vector_feature(store),
        neighbours=settings.neighbours,
        least=settings.least,
        index=index,
        of=of,
        progress=progress,
    )
    pictures = Thumbnails()
    uris = [(gallery.uris[one], gallery.uris[other]) for one, other in pairs.tolist()]
    same, _ = proven(uris, pictures, progress)
    joins = np.concatenate([_equal_bytes(gallery), pairs[same]])
    groups = joined(len(gallery), joins)
    progress.start("picking the best of each group", len(groups))
    found = []
    for numbers in groups:
        copies = [_copy(gallery, number) for number in numbers]
        found.append(DuplicateGroup(members=best_first(looked_at(copies))))
        progress.advance()
    progress.stop()
    return DuplicateReport(
        groups=tuple(found),
        n_images=len(gallery),
        n_candidates=len(pairs),
        unreadable=pictures.unreadable,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Near-duplicates of some images among others.

    Attributes:
        near: (n,) bool: one of the others is this image, by its pixels.
        n_unproven: of them, those whose pixels could not be read: vectors alone speak for them.
    """

    near: NDArray[np.bool_]
    n_unproven: int


def crossing(
    ours: StoredPictures,
    theirs: StoredPictures,
    feature: str,
    *,
    alone: float,
    least: float = _CROSSING_LEAST,
) -> Crossing:
    """Which images are near-duplicates of one of others, as those of train and test must not be.

    Pixels decide. Where those of either picture cannot be read, vectors do, with a stricter bound.

    Args:
        ours: the images that are asked about.
        theirs: what they are compared with; their vectors must be the same encoder's.
        feature: of images, in both.
        alone: cosine from which vectors alone will do.
        least: cosine from which pixels are looked at, of the few nearest.
    """
    pairs, scores = cross_pairs(ours, theirs, feature, neighbours=_CROSSING, least=least)
    uris = [(ours.uris[one], theirs.uris[other]) for one, other in pairs.tolist()]
    same, known = proven(uris, Thumbnails())
    unproven = ~known & (scores >= alone)
    near, blind = (np.zeros(len(ours.rows), bool) for _ in range(2))
    near[pairs[same | unproven, 0]] = True
    blind[pairs[unproven, 0]] = True
    blind[pairs[same, 0]] = False
    return Crossing(near=near, n_unproven=int(blind.sum()))


def same_pictures(uris: Sequence[str], pairs: Ints) -> NDArray[np.bool_]:
    """(p,) whether pairs of some pictures, by their places in `uris`, are one picture each."""
    return proven([(uris[a], uris[b]) for a, b in pairs.tolist()], Thumbnails())[0]


def _equal_bytes(gallery: Gallery) -> Ints:
    """(p, 2) each image whose bytes an earlier one has, with the first such."""
    _, first, which = np.unique(gallery.image_rows, return_index=True, return_inverse=True)
    numbers = np.arange(len(gallery))
    later = first[which] != numbers
    return np.stack([first[which][later], numbers[later]], axis=1).astype(np.int64)


def _copy(gallery: Gallery, number: int) -> Copy:
    return Copy(
        number=number,
        item_id=gallery.ids[number],
        source=gallery.sources[number],
        uri=gallery.uris[number],
        split=gallery.splits[number],
    )
