"""`coco:captions_val2017.json?images=DIR`: COCO's own caption files, 2014 and 2017.

    coco:annotations/captions_val2017.json?images=val2017
    coco:annotations/captions_train2017.json?images=coco    the folder that holds train2017/

An item's id is its file name, a caption's that with the annotation's number; COCO's `image_id` is
in the metadata. The split is the one each image's own record names (`…/val2017/…` in its URL, or
`COCO_val2014_…`), never that of the file. For the splits of published figures use `karpathy`.
An annotation without a caption makes its image fail; one without a listed image is counted.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources.annotated import OPTIONS, AnnotatedImages
from retrieval_engine.sources.annotation import Record, image_name
from retrieval_engine.sources.json_stream import elements
from retrieval_engine.sources.kinds.karpathy import coco_files
from retrieval_engine.sources.source_name import Options, existing_file, named_place
from retrieval_engine.urls import Place

_FOLDER = re.compile(r"(?:/|COCO_)((train|val|test)20\d\d)(?:/|_)")


def open_source(argument: str, options: Mapping[str, str]) -> AnnotatedImages:
    """Images and captions of a COCO caption file.

    Args:
        argument: path of the .json or .json.gz file.
        options: `images` (default: the file's folder, or the one above `annotations`), `split`,
            `captions`, `allow_missing`.

    Raises:
        UsageError: an option is unknown.
        SourceError: the file or the images are not there, or it is another kind of file.
    """
    given = Options("coco", options, OPTIONS)
    path = existing_file(named_place(argument))
    beside = path.parent.parent if path.parent.name == "annotations" else path.parent
    notes: list[str] = []
    source = AnnotatedImages(
        name=f"coco:{path}",
        given=given,
        images=beside,
        records=partial(_records, path, notes),
    )
    source.notes = notes
    return source


@dataclass(slots=True)
class _Said:
    """The annotations of one image."""

    captions: list[tuple[str, str]] = field(default_factory=list)
    fault: str = ""


def _records(path: Place, notes: list[str]) -> Iterator[Record]:
    said, homeless = _annotations(path)
    is_empty = True
    for entry in elements(path, "images"):
        is_empty = False
        image_id, raw, place = _image(entry, path)
        name, own = image_name(raw), said.pop(_same(image_id), _Said())
        yield Record(
            image=name,
            captions=tuple(text for _, text in own.captions),
            numbers=tuple(number for number, _ in own.captions),
            split=place[2] if place else "",
            meta={"image_id": image_id},
            files=coco_files(name, place[1] if place else ""),
            fault=own.fault,
        )
    if is_empty:
        raise SourceError(f"{path}: it lists no images")
    unlisted = f"captions of {len(said):,} images that it does not list"
    if said:
        unlisted += f", such as image_id {next(iter(said))}"
    for count, note in ((len(said), unlisted), (homeless, f"{homeless:,} captions of no image")):
        if count and (line := f"{path}: {note}") not in notes:
            notes.append(line)


def _annotations(path: Place) -> tuple[dict[str, _Said], int]:
    """What is said of each image, by its id; and how many annotations name none.

    Raises:
        SourceError: no annotation is a caption of an image.
    """
    said: dict[str, _Said] = {}
    homeless = good = 0
    first: Json = None
    for entry in elements(path, "annotations"):
        image = _same(entry.get("image_id")) if isinstance(entry, dict) else ""
        text = entry.get("caption") if isinstance(entry, dict) else None
        if not image or not isinstance(entry, dict):
            homeless += 1
        elif isinstance(text, str):
            good += 1
            if text.strip():
                own = said.setdefault(image, _Said())
                own.captions.append((str(entry.get("id", "")), text.strip()))
        else:
            said.setdefault(
                image, _Said()
            ).fault = f"annotation {entry.get('id', '')} has no caption: {str(entry)[:60]}"
        first = first or entry
    if first is not None and not good:
        raise SourceError(
            f"{path}: no annotation has an image_id and a caption: {str(first)[:60]}",
            hint="expected a captions_*.json, not instances_* or person_keypoints_*",
        )
    return said, homeless


def _same(image_id: Json) -> str:
    """An id in the one form in which `7`, `7.0` and `"7"` are equal; empty for what is none."""
    if isinstance(image_id, float) and image_id.is_integer():
        image_id = int(image_id)
    is_id = isinstance(image_id, (int, str)) and not isinstance(image_id, bool)
    return str(image_id) if is_id else ""


def _image(entry: Json, path: Place) -> tuple[Json, str, re.Match[str] | None]:
    """Id and file name of one image, and where its record says which part of COCO it is of."""
    if isinstance(entry, dict):
        number, name = entry.get("id"), entry.get("file_name")
        if _same(number) and isinstance(name, str):
            return number, name, _FOLDER.search(f"{entry.get('coco_url', '')} {name}")
    raise SourceError(f"{path}: an image has no id or file_name: {str(entry)[:60]}")
