"""`coco:captions_val2017.json?images=DIR`: COCO's own caption files, 2014 and 2017.

    coco:annotations/captions_val2017.json?images=val2017
    coco:annotations/captions_train2017.json?images=coco    the folder that holds train2017/

An item's id is its file name, a caption's that with the annotation's number; COCO's `image_id` is
in the metadata. The split is the one each image's own record names (`…/val2017/…` in its URL, or
`COCO_val2014_…`), never that of the file. For the splits of published figures use `karpathy`.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources.annotated import AnnotatedImages
from retrieval_engine.sources.caption_files import Record
from retrieval_engine.sources.json_stream import elements
from retrieval_engine.sources.kinds.karpathy import coco_files
from retrieval_engine.sources.source_name import Options, existing_file

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
    given = Options("coco", options, ("images", "split", "captions", "allow_missing"))
    path = existing_file(Path(argument).expanduser())
    beside = path.parent.parent if path.parent.name == "annotations" else path.parent
    return AnnotatedImages(
        name=f"coco:{path}",
        images=given.directory("images", beside),
        records=partial(_records, path),
        split=given.split(),
        captions=given.count("captions"),
        allow_missing=given.flag("allow_missing"),
    )


def _records(path: Path) -> Iterator[Record]:
    captions: dict[int, list[tuple[str, str]]] = {}
    for entry in elements(path, "annotations"):
        image_id, annotation_id, text = _annotation(entry, path)
        if text:
            captions.setdefault(image_id, []).append((annotation_id, text))
    for entry in elements(path, "images"):
        image_id, name, place = _image(entry, path)
        said = captions.pop(image_id, [])
        yield Record(
            image=name,
            captions=tuple(text for _, text in said),
            numbers=tuple(number for number, _ in said),
            split=place[2] if place else "",
            meta={"image_id": image_id},
            files=coco_files(name, place[1] if place else ""),
        )
    if captions:
        raise SourceError(
            f"{path}: captions of {len(captions):,} images that it does not list, "
            f"such as image_id {next(iter(captions))}"
        )


def _image(entry: Json, path: Path) -> tuple[int, str, re.Match[str] | None]:
    """Id and file name of one image, and where its record says which part of COCO it is of."""
    if isinstance(entry, dict):
        number, name = entry.get("id"), entry.get("file_name")
        if isinstance(number, int) and isinstance(name, str):
            return number, name, _FOLDER.search(f"{entry.get('coco_url', '')} {name}")
    raise SourceError(f"{path}: an image has no id or file_name: {str(entry)[:60]}")


def _annotation(entry: Json, path: Path) -> tuple[int, str, str]:
    """Image id, number and text of one annotation."""
    if isinstance(entry, dict):
        image, text = entry.get("image_id"), entry.get("caption")
        if isinstance(image, int) and isinstance(text, str):
            return image, str(entry.get("id", "")), text.strip()
    raise SourceError(
        f"{path}: an annotation has no image_id or caption: {str(entry)[:60]}",
        hint="expected a captions_*.json, not instances_* or person_keypoints_*",
    )
