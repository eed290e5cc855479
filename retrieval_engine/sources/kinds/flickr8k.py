"""`flickr8k:DIR`: Flickr8k as its archives unpack, or as Kaggle has it (Hodosh et al., JAIR 2013).

    flickr8k:DIR?split=test                  the official lists; dev is called val
    flickr8k:DIR?images=OTHER                pictures elsewhere
    flickr8k:DIR?allow_missing=true          go on without pictures that are not there

Looks in DIR and DIR/Flickr8k_text for `Flickr8k.token.txt` or `captions.txt`, and for the lists
`Flickr_8k.trainImages.txt` (devImages, testImages) or `train.txt`, `train_*.txt` (dev, val, test).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.annotated import AnnotatedImages
from retrieval_engine.sources.annotation import Record
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.sources.reading import UNREADABLE, lines, one_line, open_text
from retrieval_engine.sources.source_name import Options, existing_directory, split_name

_IMAGE_FOLDERS = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset")
_CAPTION_FILES = ("Flickr8k.token.txt", "Flickr8k.token.txt.gz", "captions.txt")
_LIST = re.compile(r"(?:Flickr_8k\.)?(train|dev|val|test)(?:Images)?(?:[_-]\w+)?\.txt")
# The official token file has five captions of `2258277193_586949ec62.jpg.1`, which never was.
_SLIP = re.compile(r"\.jpg\.\d+$")


def open_source(argument: str, options: Mapping[str, str]) -> AnnotatedImages:
    """Flickr8k in a directory.

    Args:
        argument: the directory.
        options: `split`, `images`, `allow_missing`.

    Raises:
        UsageError: an option is unknown.
        SourceError: captions, images or the split lists asked for are not there.
    """
    given = Options("flickr8k", options, ("split", "images", "allow_missing"))
    root = existing_directory(Path(argument).expanduser())
    places = [place for place in (root, root / "Flickr8k_text") if place.is_dir()]
    captions = _captions(places)
    splits = _splits(places)
    if given.split() and not splits:
        raise SourceError(f"{root} has no split lists such as Flickr_8k.trainImages.txt")
    images = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), root)
    return AnnotatedImages(
        name=f"flickr8k:{root}",
        given=given,
        images=images,
        records=partial(_records, captions, splits),
    )


def _captions(places: list[Path]) -> Path:
    for place in places:
        for name in _CAPTION_FILES:
            if (place / name).is_file():
                return place / name
    raise SourceError(f"no captions in {places[0]}: expected {' or '.join(_CAPTION_FILES)}")


def _splits(places: list[Path]) -> dict[str, str]:
    """The split of each image that a list names."""
    splits: dict[str, str] = {}
    for place in places:
        for path in sorted(place.iterdir()):
            match = _LIST.fullmatch(path.name)
            if match is None or not path.is_file():
                continue
            split = split_name(match[1])
            for name in _names(path):
                if splits.setdefault(name, split) != split:
                    raise SourceError(f"image {name} is in two splits: {splits[name]} and {split}")
    return splits


def _names(path: Path) -> list[str]:
    try:
        with open_text(path) as stream:
            return [line.strip() for line in lines(stream, path) if line.strip()]
    except UNREADABLE as error:
        raise SourceError(f"cannot read {path}: {one_line(error)}") from error


def _records(captions: Path, splits: Mapping[str, str]) -> Iterator[Record]:
    for record in read_records(captions):
        if record.image in splits or not _SLIP.search(record.image):
            yield replace(record, split=splits.get(record.image, ""), meta={})
