"""Writes a cleaned data set out of what CapFilt's models said.

captions.jsonl     the source `captions:…` reads it: image, captions, kinds, matches
captions.parquet   a row for each image: id, source, uri, split, captions, kinds, matches, and
with images `image` (bytes): then the source `parquet:…` reads it
dropped.jsonl      every caption that was taken out, and why
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_engine.durable import partial_of
from retrieval_engine.errors import VlreError
from retrieval_engine.models.text import pre_caption
from retrieval_engine.sources import read_bytes

_ROWS = 512
_FIELDS = [
    ("id", pa.string()),
    ("source", pa.string()),
    ("uri", pa.string()),
    ("split", pa.string()),
    ("captions", pa.list_(pa.string())),
    ("kinds", pa.list_(pa.string())),
    ("matches", pa.list_(pa.float32())),
]
_IMAGE = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@dataclass(slots=True, kw_only=True)
class CleaningTally:
    """How many captions of one kind stayed and went."""

    kept: int = 0
    dropped: int = 0


@dataclass(slots=True, kw_only=True)
class CleanedData:
    """How many images and captions a cleaned data set holds, and how many were dropped.

    Attributes:
        images: looked at.
        empty: of them, those that kept no caption.
        unreachable: images that are no files of their own.
        original: captions the images came with.
        synthetic: captions that were written.
    """

    images: int = 0
    empty: int = 0
    unreachable: int = 0
    original: CleaningTally = field(default_factory=CleaningTally)
    synthetic: CleaningTally = field(default_factory=CleaningTally)


@dataclass(frozen=True, slots=True)
class _Verdict:
    kind: str
    text: str
    match: float
    reason: str  # empty: kept


def write_cleaned(
    rows: Callable[[], Iterable[dict[str, Any]]],
    out: Path,
    *,
    threshold: float,
    with_images: bool,
) -> CleanedData:
    """Write the three files; each is replaced when it is whole.

    Args:
        rows: gives what was said of each image, from the start at each call.
        out: directory.
        threshold: least match that a caption is kept with.
        with_images: put the images' bytes into the Parquet file.

    Raises:
        VlreError: the disk refuses.
        SourceError: an image can no longer be read.
    """
    written = CleanedData()
    names = ("captions.jsonl", "dropped.jsonl", "captions.parquet")
    partial = {name: partial_of(out / name) for name in names}
    schema = pa.schema([*_FIELDS, *([_IMAGE] if with_images else [])])
    try:
        with (
            partial["captions.jsonl"].open("x", encoding="utf-8") as kept,
            partial["dropped.jsonl"].open("x", encoding="utf-8") as dropped,
            pq.ParquetWriter(partial["captions.parquet"], schema) as table,
        ):
            batch: list[dict[str, Any]] = []
            for row in rows():
                batch.extend(_write_row(row, threshold, written, kept, dropped))
                if len(batch) == _ROWS:
                    table.write_table(_table(batch, schema))
                    batch = []
            table.write_table(_table(batch, schema))
        for name in names:
            partial[name].replace(out / name)
    except OSError as error:
        raise VlreError(f"cannot write in {out}: {error.strerror}") from error
    finally:
        for left in partial.values():
            left.unlink(missing_ok=True)
    return written


def _write_row(
    row: dict[str, Any], threshold: float, written: CleanedData, kept: TextIO, dropped: TextIO
) -> Iterator[dict[str, Any]]:
    """Write an image's captions; its row of the table, where it kept any."""
    verdicts = list(_judged(row, threshold))
    written.images += 1
    for verdict in verdicts:
        tally = written.original if verdict.kind == "original" else written.synthetic
        if not verdict.reason:
            tally.kept += 1
            continue
        tally.dropped += 1
        _line(
            dropped,
            image=row["image"],
            source=row["source"],
            caption=verdict.text,
            kind=verdict.kind,
            match=verdict.match,
            reason=verdict.reason,
        )
    stay = [verdict for verdict in verdicts if not verdict.reason]
    if not stay:
        written.empty += 1
        return
    is_file = Path(row["uri"]).is_absolute()
    written.unreachable += not is_file
    found = {
        "captions": [verdict.text for verdict in stay],
        "kinds": [verdict.kind for verdict in stay],
        "matches": [verdict.match for verdict in stay],
    }
    split = {"split": row["split"]} if row["split"] else {}
    _line(kept, image=row["uri"] if is_file else row["image"], **found, **split)
    yield {key: row[key] for key in ("source", "uri", "split")} | {"id": row["image"], **found}


def _judged(row: dict[str, Any], threshold: float) -> Iterator[_Verdict]:
    """Each caption of an image and why it goes."""
    seen: set[str] = set()
    for kind in ("original", "synthetic"):
        for caption in row[kind]:
            words = pre_caption(caption["text"], 10**6)
            reason = ""
            if not words:
                reason = "no words"
            elif caption["match"] < threshold:
                reason = f"match {caption['match']:.3f} is below {threshold:g}"
            elif words in seen and kind == "synthetic":
                reason = "the image has it already"
            if not reason:
                seen.add(words)
            yield _Verdict(kind, caption["text"], caption["match"], reason)


def _line(file: io.TextIOBase | TextIO, **values: Any) -> None:
    file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    if "image" in schema.names:
        for row in rows:
            row["image"] = {"bytes": read_bytes(row["uri"]), "path": row["id"]}
    return pa.Table.from_pylist(rows, schema=schema)
