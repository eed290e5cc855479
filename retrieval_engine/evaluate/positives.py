"""Extended ground truth: which images and captions match besides an image and its own captions.

Files as they are published, or a plain form:

- ECCV Caption: `*_caption_to_image.json` and `*_image_to_caption.json`, objects of COCO ids. They
  say all that is right of the queries they list, and only those ask.
- Crisscrossed Captions: `sits_*.csv` of caption, image, score, sampling method. A score of 3 and
  more is a match (Parekh et al., section 3). Every query asks; its own image or captions stay right.
- JSON lines: {"caption": ID, "images": [ID, …]} and {"image": ID, "captions": [ID, …]}, each right
  besides what the store says. Every query asks.

COCO's numbers are found in ids such as `COCO_val2014_000000391895.jpg` of images, and behind the #
of captions' ids, where the source `coco` keeps the number of the annotation.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import EvaluationError, one_line
from retrieval_engine.metrics.extended import ExtendedReport, extended_report
from retrieval_engine.records import Json
from retrieval_engine.store import Gallery

_MATCH = 3.0
_NUMBER = re.compile(r"(\d+)$")
Pairs = list[tuple[str, str]]  # (image, caption)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives:
    """What files say is right, by the names they use.

    Attributes:
        pairs: (image, caption).
        images: images that ask; None when all do and what a store says is right besides.
        captions: captions that ask, likewise.
        digests: sha256 of each file, by its name.
    """

    pairs: Pairs
    images: frozenset[str] | None
    captions: frozenset[str] | None
    digests: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedRecall:
    """Both directions under extended ground truth; None where the files say nothing of one.

    Attributes:
        text_to_image: captions ask.
        image_to_text: images ask.
        n_unknown: pairs of the files that name what the gallery does not hold.
        digests: sha256 of each file, by its name.
    """

    text_to_image: ExtendedReport | None
    image_to_text: ExtendedReport | None
    n_unknown: int
    digests: dict[str, str]

    def to_json(self) -> dict[str, Json]:
        """As JSON values."""
        sides = {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text}
        return {
            **{name: side.to_json() if side else None for name, side in sides.items()},
            "n_unknown_pairs": self.n_unknown,
            "files": dict(self.digests),
        }


def read_positives(paths: Sequence[Path]) -> Positives:
    """What one or several files of one kind say.

    Raises:
        EvaluationError: a file cannot be read or is of no known form, or kinds are mixed.
    """
    pairs: Pairs = []
    images, captions = set[str](), set[str]()
    closed: set[bool] = set()
    digests = {}
    for path in paths:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(f"cannot read {path}: {one_line(error)}") from error
        digests[path.name] = hashlib.sha256(data).hexdigest()
        lists = _eccv(path, text)
        closed.add(lists is not None)
        if lists is None:
            pairs += _sits(path, text) if path.suffix == ".csv" else _lines(path, text)
            continue
        by_caption, table = lists
        for query, right in table.items():
            (captions if by_caption else images).add(query)
            pairs += [(r, query) if by_caption else (query, r) for r in right]
    if len(closed) > 1:
        raise EvaluationError(
            "`positives` mixes ECCV Caption's files, which say all that is right, with others",
            hint="evaluate them one after the other",
        )
    if not pairs:
        raise EvaluationError(f"{', '.join(map(str, paths))}: no pair that matches")
    whole = closed == {True}
    return Positives(
        pairs=pairs,
        images=frozenset(images) if whole else None,
        captions=frozenset(captions) if whole else None,
        digests=digests,
    )


def _eccv(path: Path, text: str) -> tuple[bool, dict[str, list[str]]] | None:
    """Whether captions ask, and what is right for each query; None for another form."""
    if path.suffix != ".json":
        return None
    try:
        table = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON: {error}") from error
    name = path.name
    if ("caption_to_image" in name) == ("image_to_caption" in name):
        raise EvaluationError(
            f"{path}: its name does not say whether captions or images ask",
            hint="ECCV Caption's files are called …caption_to_image.json and …image_to_caption.json",
        )
    if not isinstance(table, dict) or not all(isinstance(v, list) for v in table.values()):
        raise EvaluationError(f"{path} is no object of lists of ids, as ECCV Caption's files are")
    return "caption_to_image" in name, {
        str(query): [str(one) for one in right] for query, right in table.items()
    }


def _sits(path: Path, text: str) -> Iterator[tuple[str, str]]:
    rows = csv.reader(text.splitlines())
    head = next(rows, [])
    if head[:3] != ["caption", "image", "agg_score"]:
        raise EvaluationError(
            f"{path} has columns {', '.join(head[:6]) or 'none'}; Crisscrossed Captions' sits files "
            "have caption, image, agg_score, sampling_method"
        )
    for number, row in enumerate(rows, start=2):
        try:
            score = float(row[2])
        except (IndexError, ValueError) as error:
            raise EvaluationError(f"{path}, line {number}: no score in {row}") from error
        if score >= _MATCH:
            yield row[1], row[0].rpartition(":")[2]


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if "caption" in entry:
                yield from ((str(image), str(entry["caption"])) for image in entry["images"])
            else:
                yield from ((str(entry["image"]), str(one)) for one in entry["captions"])
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, line {number}: {line[:60]}",
                hint='a line is {"caption": ID, "images": [ID, …]} or {"image": ID, "captions": '
                "[ID, …]}",
            ) from error


def extended_recall(
    gallery: Gallery, positives: Positives, *, ks: Sequence[int], feature: str = "itc"
) -> ExtendedRecall:
    """R@K, R-Precision and mAP@R of a gallery under extended ground truth, exact.

    Scores are inner products in float64 of the stored vectors, the largest over an image's.

    Args:
        gallery: images and captions with features.
        positives: what is right.
        ks: cutoffs.
        feature: L2-normalised, of both sides.

    Raises:
        EvaluationError: the gallery holds nothing that the files name.
    """
    images, captions = _image_numbers(gallery), _caption_numbers(gallery)
    known, unknown = [], 0
    for image, caption in positives.pairs:
        pair = (_found(images, image), _found(captions, caption))
        if pair[0] is None or pair[1] is None:
            unknown += 1
        else:
            known.append((pair[0], pair[1]))
    if not known:
        image, caption = positives.pairs[0]
        raise EvaluationError(
            f"none of the {len(positives.pairs):,} pairs is in the gallery: they name image "
            f"{image!r} and caption {caption!r}, the gallery {gallery.ids[0]!r} and "
            f"{next(iter(gallery.caption_ids), '')!r}"
        )
    of_caption = [set[int]() for _ in gallery.caption_ids]
    of_image = [set[int]() for _ in gallery.ids]
    if positives.images is None:
        known += [(int(image), j) for j, image in enumerate(gallery.caption_image.tolist())]
    asking_images = _asking(images, positives.images)
    asking_captions = _asking(captions, positives.captions)
    for own_image, own_caption in known:
        if asking_captions is None or own_caption in asking_captions:
            of_caption[own_caption].add(own_image)
        if asking_images is None or own_image in asking_images:
            of_image[own_image].add(own_caption)
    pictures = gallery.images(feature, np.float64)
    texts = gallery.captions(feature, np.float64)[:, 0]
    text_to_image = image_to_text = None
    if any(of_caption):
        text_to_image = extended_report(
            lambda rows: _scores(texts[rows], pictures), [sorted(s) for s in of_caption], ks=ks
        )
    if any(of_image):
        image_to_text = extended_report(
            lambda rows: _scores(texts, pictures[rows]).T, [sorted(s) for s in of_image], ks=ks
        )
    return ExtendedRecall(
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        n_unknown=unknown,
        digests=positives.digests,
    )


def _scores(texts: NDArray[np.float64], images: NDArray[np.float64]) -> NDArray[np.float64]:
    """(t, i) the largest inner product over an image's vectors, one vector at a time."""
    best: NDArray[np.float64] = texts @ images[:, 0].T
    for vector in range(1, images.shape[1]):
        np.maximum(best, texts @ images[:, vector].T, out=best)
    return best


def _image_numbers(gallery: Gallery) -> dict[str, int]:
    """Images by id, by file name, by its stem, and by the number at the stem's end."""
    found: dict[str, int] = {}
    for number, item_id in enumerate(gallery.ids):
        stem = Path(item_id).stem
        digits = _NUMBER.search(stem)
        names = [item_id, Path(item_id).name, stem]
        for name in [*names, *([str(int(digits[1]))] if digits else [])]:
            found.setdefault(name, number)
    return found


def _caption_numbers(gallery: Gallery) -> dict[str, int]:
    """Captions by id, and by what stands behind the # of one where no other has the same."""
    found = {caption: number for number, caption in enumerate(gallery.caption_ids)}
    tails = [caption.rpartition("#")[2] for caption in gallery.caption_ids]
    often = Counter(tails)
    for number, tail in enumerate(tails):
        if often[tail] == 1:
            found.setdefault(tail, number)
    return found


def _found(numbers: dict[str, int], name: str) -> int | None:
    if name in numbers:
        return numbers[name]
    stem = Path(name).stem
    return numbers.get(stem, numbers.get(str(int(stem))) if stem.isdigit() else None)


def _asking(numbers: dict[str, int], names: Iterable[str] | None) -> frozenset[int] | None:
    if names is None:
        return None
    return frozenset(n for name in names if (n := _found(numbers, name)) is not None)
