"""`flickr30k:DIR`: Flickr30k as its archive unpacks, with BLIP's lists of Karpathy's splits.

    flickr30k:DIR?split=test           1,000 images, 5,000 captions
    flickr30k:DIR?images=OTHER         pictures elsewhere
    flickr30k:DIR?allow_missing=true   go on without pictures that are not there

Looks in DIR and DIR/annotations for `flickr30k_train.json` (val, test), which name each image's
split, and for all captions in `results_20130124.token`, or Kaggle's `results.csv` or
`captions.txt`. Images that only the latter name have no split.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.annotated import OPTIONS, AnnotatedImages
from retrieval_engine.sources.annotation import Record
from retrieval_engine.sources.caption_files import read_records
from retrieval_engine.sources.json_stream import elements
from retrieval_engine.sources.kinds.karpathy import blip_record
from retrieval_engine.sources.source_name import Options, existing_directory

_LISTS = {f"flickr30k_{split}.json": split for split in ("train", "val", "test")}
_CAPTION_FILES = ("results_20130124.token", "results.csv", "captions.txt")
_IMAGE_FOLDERS = (
    *("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images"),
    *("images", "Images"),
)


def open_source(argument: str, options: Mapping[str, str]) -> AnnotatedImages:
    """Flickr30k in a directory.

    Args:
        argument: the directory.
        options: `images`, `split`, `captions`, `allow_missing`.

    Raises:
        UsageError: an option is unknown.
        SourceError: neither lists nor captions are there, or images are not.
    """
    given = Options("flickr30k", options, OPTIONS)
    root = existing_directory(Path(argument).expanduser())
    places = (root, root / "annotations", root / "flickr30k_images")
    lists = [place / name for place in places for name in _LISTS if (place / name).is_file()]
    texts = [place / n for place in places for n in _CAPTION_FILES if (place / n).is_file()]
    if not lists and not texts:
        raise SourceError(
            f"no captions in {root}: expected {', '.join(_LISTS)} or {' or '.join(_CAPTION_FILES)}"
        )
    if given.split() and not lists:
        raise SourceError(
            f"{root} has no split lists such as flickr30k_test.json",
            hint="or use karpathy:dataset_flickr30k.json?images=DIR",
        )
    images = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), root)
    return AnnotatedImages(
        name=f"flickr30k:{root}",
        given=given,
        images=images,
        records=partial(_records, lists, texts[:1]),
    )


def _records(lists: Sequence[Path], texts: Sequence[Path]) -> Iterator[Record]:
    listed = set()
    for path in lists:
        for position, entry in enumerate(elements(path), 1):
            record = blip_record(entry, f"{path}: object {position:,}", _LISTS[path.name])
            listed.add(record.image)
            yield record
    for path in texts:  # the lists have these captions already, less the blanks before the stops
        yield from (record for record in read_records(path) if record.image not in listed)
