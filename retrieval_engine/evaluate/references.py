"""What people wrote about images: from a file of captions, a source, or a store's own captions."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from retrieval_engine.errors import EvaluationError, StoreNotFound
from retrieval_engine.evaluate.predictions import CaptionFile, read_captions
from retrieval_engine.sources import open_source
from retrieval_engine.sources.source_name import split_name
from retrieval_engine.store import open_store


def read_references(references: Path | str, *, split: str | None = None) -> CaptionFile:
    """References by image.

    Args:
        references: a file in any form that `read_captions` takes, the directory of a store, or the
            name of a source, such as `flickr8k:DIR` or a folder of pictures with captions.
        split: only the images of this split.

    Raises:
        EvaluationError: nothing is there, nothing has captions, or nothing is of the split.
        SourceError: the source cannot be read.
        UsageError: no item of the store is of the split.
    """
    path = Path(references).expanduser()
    if path.is_file() or (":" not in str(references) and not path.exists()):
        return read_captions(path, split=split)
    if path.is_dir():
        with suppress(StoreNotFound):  # then it is a folder of pictures
            return _of_store(path, split)
    wanted = None if split is None else split_name(split)
    source = open_source(str(references))
    pairs = (
        (item.id, caption.text)
        for item in source.items()
        if wanted is None or item.split == wanted
        for caption in item.captions
    )
    return _collected(path, pairs, split)


def _of_store(path: Path, split: str | None) -> CaptionFile:
    gallery = open_store(path).gallery(split)
    owners = (gallery.ids[i] for i in gallery.caption_image.tolist())
    return _collected(path, zip(owners, gallery.caption_texts, strict=True), split)


def _collected(path: Path, pairs: Iterable[tuple[str, str]], split: str | None) -> CaptionFile:
    found = CaptionFile(path)
    for image, text in pairs:
        found.captions.setdefault(image, []).append(text)
    if not found.captions:
        raise EvaluationError(
            f"{path} holds no captions" + (f" of split {split!r}" if split else "")
        )
    return found
