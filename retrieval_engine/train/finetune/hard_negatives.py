"""Mined negatives: for each caption what is near and wrong; read here, made by `mine_negatives`.

They serve by company: beside each pair stands, in the same batch, another one that was mined for it.
The contrastive loss has to tell the two apart, and the matching loss draws its false pairs by
similarity. A pass takes each caption once and its company as well, so it has twice the steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval_engine.errors import TrainingError, UsageError
from retrieval_engine.train.finetune.captioned import CaptionedImages

Ints = NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("image_key", pa.string()),  # sha256 of the image's bytes
        ("image_id", pa.string()),
        ("caption", pa.string()),
        ("negative_image_keys", pa.list_(pa.string())),  # nearest to the caption first
        ("negative_image_ids", pa.list_(pa.string())),
        ("negative_image_scores", pa.list_(pa.float32())),
        ("negative_captions", pa.list_(pa.string())),  # nearest to the image first
        ("negative_caption_scores", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HardNegatives:
    """Negatives of each of a training set's m captions, by their numbers in it.

    Attributes:
        images: (m, a) numbers of images, the nearest first; -1 where there are fewer.
        captions: (m, b) numbers of captions, likewise.
        owner: (m,) image of each caption.
        starts: (n + 1,) as in `CaptionedImages`.
    """

    images: Ints
    captions: Ints
    owner: Ints
    starts: Ints

    def beside(self, captions: Ints, rng: np.random.Generator) -> Ints:
        """A caption, and with it its image, that is near each of some captions and wrong for it.

        Args:
            captions: (r,) numbers.
            rng: draws one of the negatives of both kinds; any caption where there is none.

        Returns:
            (r,) numbers of captions.
        """
        drawn = rng.integers(0, len(self.owner), len(captions))
        for row, caption in enumerate(captions.tolist()):
            near = self.captions[caption]
            known = near[near >= 0].tolist()
            for image in self.images[caption][self.images[caption] >= 0].tolist():
                known.append(int(rng.integers(self.starts[image], self.starts[image + 1])))
            if known:
                drawn[row] = known[int(rng.integers(len(known)))]
        return drawn


def read_negatives(path: Path, data: CaptionedImages) -> HardNegatives:
    """The negatives in a file, as far as a training set has them.

    Args:
        path: Parquet as `mine_negatives` writes it.
        data: what is trained on.

    Raises:
        UsageError: the file is no such table.
        TrainingError: it knows nothing of this training set.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"cannot read `negatives` {path}: {error}",
            hint="make it with `mine_negatives(out=DIR)`",
        ) from error
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise UsageError(
            f"{path} has no column {missing[0]!r}; it has: {', '.join(table.column_names)}",
            hint="make it with `mine_negatives(out=DIR)`",
        )
    image_of = {key: number for number, key in enumerate(data.keys)}
    owner = data.owner
    of_text: dict[str, int] = {text: number for number, text in enumerate(data.texts)}
    by_pair = {(int(owner[j]), text): j for j, text in enumerate(data.texts)}
    images: list[list[int]] = [[] for _ in data.texts]
    captions: list[list[int]] = [[] for _ in data.texts]
    columns = ("image_key", "caption", "negative_image_keys", "negative_captions")
    known = 0
    for key, text, keys, texts in zip(*(table[c].to_pylist() for c in columns), strict=True):
        number = by_pair.get((image_of.get(key, -1), text))
        if number is None:
            continue
        images[number] = [image_of[other] for other in keys if other in image_of]
        captions[number] = [of_text[other] for other in texts if other in of_text]
        known += bool(images[number] or captions[number])
    if not known:
        raise TrainingError(
            f"{path} has no negative for any of the {len(data.texts):,} captions to train on",
            hint="mine them in the store and split that are trained on",
        )
    return HardNegatives(
        images=_padded(images), captions=_padded(captions), owner=owner, starts=data.starts
    )


def _padded(rows: Sequence[Sequence[int]]) -> Ints:
    made = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for row, numbers in enumerate(rows):
        made[row, : len(numbers)] = numbers
    return made
