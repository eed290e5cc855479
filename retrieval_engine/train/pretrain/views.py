"""Pictures drawn or decoded once, in parallel, into files that training maps into memory."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from retrieval_engine.durable import replacing_file
from retrieval_engine.errors import SourceError, TrainingError
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.preprocess import SquashToSquare
from retrieval_engine.progress import Progress
from retrieval_engine.records import Item
from retrieval_engine.sources import read_bytes, read_item
from retrieval_engine.sources.decode import decode
from retrieval_engine.sources.labels import Labelled
from retrieval_engine.train.pretrain.config import ModelSize
from retrieval_engine.workers import Failed, open_pool

_CHUNK = 64
_INLINE = 512  # so few pictures are drawn before a process has started
_PROBED = 16  # pictures whose bytes go into the key, so that another way of drawing is noticed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pictures of n items.

    Attributes:
        key: digest of what they were made from.
        items: the n items that could be read, in order.
        pixels: (n, s, s, 3) uint8, mapped from disk.
        regions: (n, a, g, g) uint8 class of each patch under each of a aspects, 0 is nothing;
            None without labels.
        aspects: number of classes of each aspect.
        failures: a line for each item that could not be read.
    """

    key: str
    items: Sequence[Item]
    pixels: NDArray[np.uint8]
    regions: NDArray[np.uint8] | None
    aspects: tuple[int, ...]
    failures: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """One item's arrays, or why there are none."""

    pixels: NDArray[np.uint8] | None
    regions: NDArray[np.uint8] | None = None
    reason: str = ""


def draw_all(
    items: Sequence[Item],
    size: ModelSize,
    labels: Labelled | None,
    cache: Path,
    progress: Progress,
) -> Pictures:
    """The pictures of items, from the cache where an equal set was drawn before.

    Args:
        items: what to draw.
        size: for the side of the square and of the patches.
        labels: what the source knows of its patches, or None.
        cache: directory for the arrays; one folder per set.
        progress: told about the drawing.

    Raises:
        TrainingError: not one item could be read.
    """
    probe = [_probe(item) for item in items[:: max(1, len(items) // _PROBED)]]
    key = digest([size.image_size, size.patch_size, bool(labels), probe, [i.uri for i in items]])
    folder = cache / key[:16]
    if not (folder / "done.json").exists():
        _draw(items, size, labels, folder, progress)
    done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    kept = [items[row] for row in done["rows"]]
    if not kept:
        raise TrainingError(f"no picture could be read; the first: {done['failures'][0]}")
    regions = folder / "regions.npy"
    return Pictures(
        key=key,
        items=kept,
        pixels=np.load(folder / "pixels.npy", mmap_mode="r")[: len(kept)],
        regions=np.load(regions, mmap_mode="r")[: len(kept)] if regions.exists() else None,
        aspects=tuple(map(len, labels.label_names.values())) if labels else (),
        failures=done["failures"],
    )


def _draw(
    items: Sequence[Item],
    size: ModelSize,
    labels: Labelled | None,
    folder: Path,
    progress: Progress,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    side, grid = size.image_size, size.patches
    pixels = open_memmap(folder / "pixels.npy", "w+", np.uint8, (len(items), side, side, 3))
    regions = None
    if labels:
        shape = (len(items), len(labels.label_names), grid, grid)
        regions = open_memmap(folder / "regions.npy", "w+", np.uint8, shape)
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    task = partial(_draw_chunk, size=size, labels=labels)
    rows: list[int] = []
    failures: list[str] = []
    progress.start("drawing pictures", len(items))
    with open_pool("processes" if len(items) > _INLINE else "serial") as pool:
        for start, (chunk, result) in zip(
            range(0, len(items), _CHUNK), pool.imap(task, chunks), strict=True
        ):
            if isinstance(result, Failed):
                raise TrainingError(
                    f"drawing failed: {result.reason}",
                    hint=result.details
                    or "a script that calls this needs `if __name__ == '__main__':` around it",
                )
            for offset, drawn in enumerate(result):
                if drawn.pixels is None:
                    failures.append(f"{chunk[offset].id}: {drawn.reason}")
                    continue
                pixels[len(rows)] = drawn.pixels
                if regions is not None:
                    regions[len(rows)] = drawn.regions
                rows.append(start + offset)
            progress.advance(len(chunk))
    progress.stop()
    pixels.flush()
    if regions is not None:
        regions.flush()
    done = json.dumps({"rows": rows, "failures": failures})
    with replacing_file(folder / "done.json") as file:
        file.write(done.encode())


def _draw_chunk(items: Sequence[Item], *, size: ModelSize, labels: Labelled | None) -> list[_Drawn]:
    return [_draw_one(item, size, labels) for item in items]


def _draw_one(item: Item, size: ModelSize, labels: Labelled | None) -> _Drawn:
    look = SquashToSquare(image_size=size.image_size)
    try:
        pixels = look.pixels(decode(read_item(item)))
    except SourceError as error:
        return _Drawn(pixels=None, reason=error.message)
    if not labels:
        return _Drawn(pixels=pixels)
    found = labels.patch_labels(item, size.patches)
    return _Drawn(pixels=pixels, regions=np.stack([found[name] for name in labels.label_names]))


def _probe(item: Item) -> str:
    try:
        return digest([item.uri, read_bytes(item.uri).hex()])
    except SourceError:
        return item.uri
