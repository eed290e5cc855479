"""What people wrote about images (a file, a source, a store), and captions brought together with it."""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from retrieval_engine.errors import EvaluationError, StoreNotFound
from retrieval_engine.evaluate.predictions import CaptionFile, read_captions
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.sources import open_source
from retrieval_engine.sources.source_name import split_name
from retrieval_engine.store import open_store

_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCaptions:
    """One caption and its references for each image that can be scored, and what cannot.

    Attributes:
        images: (n,) images that are scored, in the references' order.
        captions: (n,) their captions.
        references: (n,) their references.
        missing: images with references and no row in the predictions.
        empty: images whose caption holds no word.
        failed: images whose captioning failed.
        unreferenced: images in the predictions without references, or with empty ones only; they
            are left out.
    """

    images: list[str]
    captions: list[str]
    references: list[list[str]]
    missing: list[str]
    empty: list[str]
    failed: list[str]
    unreferenced: list[str]


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


def pair_captions(
    predictions: CaptionFile, references: CaptionFile, *, allow_missing: bool = False
) -> PairedCaptions:
    """Bring captions and references together, by image, or by file name where no image agrees.

    Args:
        predictions: one caption an image.
        references: any number of captions an image.
        allow_missing: score what is there; otherwise a caption that is missing, empty or failed
            is an error.

    Raises:
        EvaluationError: an image has two captions, none has references, or captions are missing.
    """
    _check_single(predictions)
    references = _with_words(references)
    wanted, found = references.captions, predictions
    if not (wanted.keys() & (found.captions.keys() | found.failed)):
        wanted, found = _by_file_name(references).captions, _by_file_name(predictions)
        _check_single(found)
    known = found.captions.keys() | found.failed
    if not (wanted.keys() & known):
        raise EvaluationError(
            f"no image of {predictions.path} has references in {references.path}: "
            f"{_some(known)} against {_some(wanted)}"
        )
    failed = [image for image in wanted if image in found.failed]
    missing = [image for image in wanted if image not in known]
    present = [image for image in wanted if image in found.captions]
    empty = [image for image in present if not ptb_tokens(found.captions[image][0])]
    if (lacking := len(failed) + len(missing) + len(empty)) and not allow_missing:
        raise EvaluationError(
            f"{lacking} of {len(wanted)} images have no caption to score "
            f"({len(missing)} missing, {len(empty)} empty, {len(failed)} failed): "
            f"{_some([*missing, *empty, *failed])}",
            hint="caption them, or score the others with `allow_missing`",
        )
    images = [image for image in present if image not in set(empty)]
    if not images:
        raise EvaluationError(f"no caption of {predictions.path} can be scored")
    return PairedCaptions(
        images=images,
        captions=[found.captions[image][0] for image in images],
        references=[wanted[image] for image in images],
        missing=missing,
        empty=empty,
        failed=failed,
        unreferenced=sorted(known - wanted.keys()),
    )


def _with_words(references: CaptionFile) -> CaptionFile:
    """References that say something; an image with none of them is as one without references."""
    told = {
        image: kept
        for image, texts in references.captions.items()
        if (kept := [text for text in texts if _WORD.search(text)])
    }
    if not told:
        raise EvaluationError(f"no reference of {references.path} holds a word")
    return replace(references, captions=told)


def _by_file_name(captions: CaptionFile) -> CaptionFile:
    """The same under bare file names, without folders and, for COCO ids, as the file says."""

    def name(image: str) -> str:
        return PurePath(captions.file_names.get(image, image)).name

    renamed = CaptionFile(captions.path, failed=set(map(name, captions.failed)))
    for image, texts in captions.captions.items():
        renamed.captions.setdefault(name(image), []).extend(texts)
    return renamed


def _check_single(predictions: CaptionFile) -> None:
    several = [image for image, texts in predictions.captions.items() if len(texts) > 1]
    if several:
        raise EvaluationError(
            f"{len(several)} images of {predictions.path} have more than one caption: "
            f"{_some(several)}",
            hint="a score is of one caption an image: keep one of the variations",
        )


def _some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    listed: Sequence[str] = list(names)
    return ", ".join(listed[:3]) + (f" … ({len(listed)})" if len(listed) > 3 else "")
