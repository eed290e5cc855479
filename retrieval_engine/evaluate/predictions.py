"""Captions out of files, those of programs or of people, in whatever common form they come.

Understood: our JSON lines, COCO results (`[{"image_id", "caption"}]`), COCO
annotations (`{"annotations": […], "images": […]}`), lists of `{"image", "caption"}` or
`{"image", "captions": […]}`, `{"image": "caption"}`, CSV with a header, `name.jpg#k<TAB>caption`, and
every other table of captions that sources read, such as `name.jpg|caption` without a header.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval_engine.errors import EvaluationError, SourceError
from retrieval_engine.sources.annotation import CAPTION_KEYS, IMAGE_KEYS, Fields, key_of
from retrieval_engine.sources.caption_tables import table_records
from retrieval_engine.sources.decode import picture_suffixes
from retrieval_engine.sources.source_name import split_name

LEDGER = ".failures.jsonl"
_IMAGE_NAMES = (
    *("image", "image_id", "item_id", "image_name", "file_name", "filename", "image_path"),
    *("filepath", "id"),
)
_CAPTION_NAMES = (
    *("caption", "captions", "text", "sentence", "sentences", "raw", "generated_caption"),
    "prediction",
)
_ERROR_NAMES = ("error", "failure", "reason")
# What programs write in the place of a caption: [ERROR], <failed>, Error: out of memory.
_FAILURE = re.compile(
    r"[\[<(]\s*(error|exception|fail\w*|none|null|n/?a|nan|no caption)\b[^\])>]*[\])>].*"
    r"|(error|exception|failed|traceback)\b[^:]{0,30}:.*",
    re.IGNORECASE | re.DOTALL,
)
_NUMBERED = re.compile(r"[^\t]+#\d*\t")


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """Captions by image.

    Attributes:
        path: the file.
        captions: image as written, as a string, to its captions in file order.
        failed: images whose row says that there is no caption.
        file_names: id to file name, where a COCO file says so.
    """

    path: Path
    captions: dict[str, list[str]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    file_names: dict[str, str] = field(default_factory=dict)


def read_captions(path: Path, *, split: str | None = None) -> CaptionFile:
    """Read a file of captions or of references.

    The ledger that a captioning run keeps beside its output, `NAME.failures.jsonl`, is read too.

    Args:
        path: the file.
        split: only the rows of this split, where rows say theirs.

    Raises:
        EvaluationError: the file is not there, is no such file, or a row lacks its image or
            caption; the message names the row. No row says its split.
    """
    text, found = _text(path), CaptionFile(path)
    seen: set[str] = set()
    for number, row in enumerate(_rows(path, text, found), 1):
        if split is not None:
            own = split_name(str(row.get("split") or ""))
            seen.add(own)
            if own != split_name(split):
                continue
        _add(found, number, row)
    if split is not None and not found.captions:
        told = ", ".join(sorted(seen - {""})) or "no split of any image"
        raise EvaluationError(
            f"`split={split!r}`: {path} names {told}",
            hint="give a file of that split alone, or a store or source that knows splits",
        )
    ledger = path.with_name(path.name + LEDGER)
    if ledger.exists():
        found.failed.update(str(row.get("item_id")) for row in _json_lines(ledger, _text(ledger)))
        found.failed.difference_update(found.captions)
    if not found.captions and not found.failed:
        raise EvaluationError(f"{path} holds no captions")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text: {error.reason}") from error


def _rows(path: Path, text: str, found: CaptionFile) -> Iterator[Mapping[str, Any]]:
    """The file's rows as mappings, whatever its form."""
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and path.suffix != ".jsonl"):
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            whole = None  # perhaps JSON lines under another suffix
        if whole is not None:
            yield from _json_rows(path, whole, found)
            return
    if start in ("{", "["):
        yield from _json_lines(path, text)
    elif _has_known_header(text):
        yield from _csv_rows(path, text)
    else:
        yield from _table_rows(path, text)


def _json_rows(path: Path, whole: Any, found: CaptionFile) -> Iterable[Mapping[str, Any]]:
    if isinstance(whole, dict) and isinstance(whole.get("annotations"), list):
        found.file_names.update(
            {str(i["id"]): i["file_name"] for i in whole.get("images", ()) if "file_name" in i}
        )
        return ({k: v for k, v in row.items() if k != "id"} for row in whole["annotations"])
    if isinstance(whole, dict) and isinstance(whole.get("images"), list):
        whole = whole["images"]  # Karpathy's dataset_*.json
    if isinstance(whole, dict) and not any(name in whole for name in _CAPTION_NAMES):
        return ({"image": image, "caption": captions} for image, captions in whole.items())
    if isinstance(whole, dict):
        return [whole]
    if not all(isinstance(row, dict) for row in whole):
        raise EvaluationError(f"{path}: expected a list of objects with 'image' and 'caption'")
    return whole  # type: ignore[no-any-return]


def _json_lines(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{path}, line {number}: no JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise EvaluationError(f"{path}, line {number}: expected an object, got {line[:40]}")
        yield row


def _has_known_header(text: str) -> bool:
    first = text.partition("\n")[0]
    names = {name.strip().strip('"').lower() for name in re.split(r"[,|\t;]", first)}
    return bool(names & set(_IMAGE_NAMES)) and bool(names & set(_CAPTION_NAMES))


def _table_rows(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    """Tables of captions as sources read them; others are refused."""
    first = text.partition("\n")[0]
    try:
        records = list(table_records(path, Fields()))
    except SourceError as error:
        raise EvaluationError(error.message) from error
    keys = {key_of(cell) for cell in re.split(r"[,|\t;]", first)}
    known = tuple(picture_suffixes())
    names_picture = any(record.image.lower().endswith(known) for record in records[:1])
    if not (
        names_picture or _NUMBERED.match(first) or (keys & {*IMAGE_KEYS} and keys & {*CAPTION_KEYS})
    ):
        raise EvaluationError(
            f"{path}: no JSON, and as a table its first line must name the columns 'image' and "
            f"'caption', or a picture and its caption; the line: {first[:60]!r}"
        )
    for record in records:
        yield {"image": record.image, "captions": [*record.captions], "split": record.split}


def _csv_rows(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    first = text.partition("\n")[0]
    separator = max(",|\t;", key=first.count)
    for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator):
        yield {str(k).strip().lower(): v for k, v in row.items()}


def _add(found: CaptionFile, number: int, row: Mapping[str, Any]) -> None:
    """Add one row to the captions of its image."""
    image = next((str(row[n]) for n in _IMAGE_NAMES if row.get(n) is not None), None)
    if image is None:
        raise EvaluationError(
            f"{found.path}, row {number}: no image; expected one of {', '.join(_IMAGE_NAMES)}"
        )
    if any(row.get(name) for name in _ERROR_NAMES):
        found.failed.add(image)
        return
    name = next((n for n in _CAPTION_NAMES if n in row), None)
    if name is None:
        raise EvaluationError(f"{found.path}, row {number}: image {image} has no caption")
    value = row[name]
    if value is None:
        found.failed.add(image)
        return
    texts = _texts(found.path, number, value)
    if texts and all(_FAILURE.fullmatch(text.strip()) for text in texts):
        found.failed.add(image)
        return
    found.captions.setdefault(image, []).extend(texts)


def _texts(path: Path, number: int, value: object) -> list[str]:
    """A caption, several, or Karpathy's `[{"raw": …}]`, as strings."""
    values = value if isinstance(value, list) else [value]
    read = [v.get("raw") if isinstance(v, dict) else v for v in values]
    texts = [text for text in read if isinstance(text, str)]
    if len(texts) < len(read):
        raise EvaluationError(f"{path}, row {number}: a caption must be text, got {value!r:.60}")
    return texts
