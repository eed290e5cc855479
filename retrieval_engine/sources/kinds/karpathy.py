"""`karpathy:dataset_coco.json?images=DIR`: Karpathy's splits of Flickr8k, Flickr30k and COCO.

    karpathy:dataset_flickr30k.json?images=flickr30k-images&split=test
    karpathy:dataset_coco.json?images=coco&split=test              all 25,010 captions
    karpathy:dataset_coco.json?images=coco&split=test&captions=5   exactly five of each image
    karpathy:coco_karpathy_test.json?images=coco                   BLIP's lists of the same splits

`restval` counts as train, as everywhere in the literature. An item's id is its file name. COCO
pictures are found under their names of 2014 (`val2014/COCO_val2014_000000391895.jpg`) and of 2017
(`train2017/000000391895.jpg`): they are the same files.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources.annotated import OPTIONS, AnnotatedImages
from retrieval_engine.sources.annotation import Record, captions_of, image_name, record_of
from retrieval_engine.sources.json_stream import elements, is_list
from retrieval_engine.sources.source_name import Options, existing_file, named_place, split_name
from retrieval_engine.urls import Place

_COCO_NAME = re.compile(r"COCO_\w+_(\d{12}\.jpg)")
_BLIP_LIST = re.compile(r"\w*?_?(train|val|test)\.json(?:\.gz)?")
_KEPT = ("cocoid", "imgid")


def open_source(argument: str, options: Mapping[str, str]) -> AnnotatedImages:
    """Images and captions of a Karpathy file.

    Args:
        argument: path of the JSON file.
        options: `images` (default: the file's folder), `split`, `captions`, `allow_missing`.

    Raises:
        UsageError: an option is unknown.
        SourceError: the file or the images are not there, or it is another kind of file.
    """
    given = Options("karpathy", options, OPTIONS)
    path = existing_file(named_place(argument))
    return AnnotatedImages(
        name=f"karpathy:{path}",
        given=given,
        images=path.parent,
        records=partial(_blip_records if is_list(path) else _records, path),
    )


def coco_files(name: str, folder: str) -> tuple[str, ...]:
    """Where a COCO picture may lie under the image folder, by its names of 2014 and 2017."""
    match = _COCO_NAME.fullmatch(name)
    short = match[1] if match else name
    spread = [f"{split}2017/{short}" for split in ("train", "val")] if match else []
    files = [f"{folder}/{name}"] if folder else []
    return tuple(dict.fromkeys([*files, name, short, *spread]))


def _records(path: Place) -> Iterator[Record]:
    for position, image in enumerate(elements(path, "images"), 1):
        where = f"{path}: image {position:,}"
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            raise SourceError(f"{where} has no filename: this is no Karpathy file")
        name = image_name(str(image["filename"]))
        captions, fault = captions_of(image.get("sentences"))
        yield Record(
            image=name,
            captions=captions,
            split=split_name(str(image.get("split") or "")),
            meta={key: image[key] for key in _KEPT if key in image},
            files=coco_files(name, str(image.get("filepath") or "")),
            fault=fault,
        )


def _blip_records(path: Place) -> Iterator[Record]:
    """Of a list with one object for each image or caption, as BLIP's repository has it."""
    named = _BLIP_LIST.fullmatch(path.name)
    for position, entry in enumerate(elements(path), 1):
        yield blip_record(entry, f"{path}: object {position:,}", named[1] if named else "")


def blip_record(entry: Json, where: str, split: str) -> Record:
    """What an object of BLIP's lists says, with the image's bare name for its id.

    Args:
        entry: the object.
        where: its place, for messages.
        split: the split of the whole list, where the object names none.
    """
    record = record_of(entry, where)
    folder, _, name = record.image.rpartition("/")
    folder = folder or str(record.meta.get("file_path", ""))
    return Record(
        image=name,
        captions=record.captions,
        split=record.split or split,
        files=(record.image, *coco_files(name, folder)),
        fault=record.fault,
    )
