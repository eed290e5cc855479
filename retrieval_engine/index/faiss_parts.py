"""The files of a faiss index: parts of a bounded size, each mapped into memory when it is searched.

    vectors.faiss       the first rows
    vectors-1.faiss …   those behind them, in order
    trained.faiss       an index without rows; a new part is a copy of it that rows were added to

An index is built part by part, so that memory holds one of them however many rows there are. An
update writes what is new as a part of its own, and links the parts that stay as they are.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import link_or_copy
from retrieval_engine.errors import IndexFailure
from retrieval_engine.index.faiss_gpu import Copy, coarse_steps_by
from retrieval_engine.index.faiss_parameters import Selector, import_faiss

TRAINED = "trained.faiss"
PART_BYTES = 1 << 31
"""What the rows of a part would take in float32, at most: 2 million of 256, 1 GB in float16."""
# The last part is read and written anew for rows behind it as long as it is this small, in bytes
# or as a share of all: parts stay few, and an update writes little.
_SMALL_BYTES = 16 << 20
_SMALL = 1 / 16


_PLACE = re.compile(r"^Error in .* at \S+:\d+: (?=.)")


def part(number: int) -> str:
    """File name of a part."""
    return f"vectors-{number}.faiss" if number else "vectors.faiss"


def parts_in(folder: Path) -> list[Path]:
    """The parts of an index, in the order of their rows."""
    number, found = 0, []
    while number == 0 or (folder / part(number)).is_file():
        found.append(folder / part(number))
        number += 1
    return found


def read_part(path: Path, *, mapped: bool) -> Any:
    """One index of faiss.

    Args:
        path: its file.
        mapped: leave the rows in the file, to be paged in where they are looked at.

    Raises:
        IndexFailure: faiss cannot read the file.
    """
    faiss = import_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise IndexFailure(
            f"faiss cannot read {path}: {reason(error)}", hint="build the index again"
        ) from error


def write_parts(
    index: Any, blocks: Iterable[NDArray[np.float32]], folder: Path, copy: Copy | None = None
) -> None:
    """Put rows into parts, each on disk before the next is begun.

    Args:
        index: trained and without rows; as it is now it is written as `trained.faiss`.
        blocks: (b, dim) rows.
        folder: where the files go.
        copy: see `faiss_gpu.coarse_steps_by`.
    """
    faiss = import_faiss()
    faiss.write_index(index, str(folder / TRAINED))
    number, most = 0, max(1, PART_BYTES // (4 * index.d))
    for block in blocks:
        if index.ntotal + len(block) > most and index.ntotal:
            faiss.write_index(index, str(folder / part(number)))
            index, number = read_part(folder / TRAINED, mapped=False), number + 1
        with coarse_steps_by(copy, index):
            index.add(block)
    faiss.write_index(index, str(folder / part(number)))


def extend_parts(
    old: Path, folder: Path, keep: NDArray[np.bool_], blocks: Iterator[NDArray[np.float32]]
) -> None:
    """Write the rows of an index that are to be kept, and new ones behind them.

    Args:
        old: folder of the index; parts that stay as they are get a second name in the new one.
        folder: of the new one, empty.
        keep: (rows,) which rows stay.
        blocks: (b, dim) new rows.

    Raises:
        IndexFailure: a file cannot be read.
        RuntimeError: of faiss, where this kind of index takes no rows away.
    """
    faiss = import_faiss()
    paths, start, number = parts_in(old), 0, 0
    template = old / TRAINED
    if template.is_file():
        link_or_copy(template, folder / TRAINED)
    first = next(blocks, None)
    for path in paths:
        index = read_part(path, mapped=True)
        kept = keep[start : start + index.ntotal]
        start += index.ntotal
        if not kept.any() and template.is_file():
            continue
        grows = first is not None and path == paths[-1] and _is_small(path, paths, template)
        if kept.all() and not grows:
            link_or_copy(path, folder / part(number))
        else:
            index = read_part(path, mapped=False)
            if not kept.all():
                _remove(index, kept)
            if grows and first is not None:
                _add(index, first, blocks)
                first = None
            faiss.write_index(index, str(folder / part(number)))
        number += 1
    if first is not None:
        index = read_part(template, mapped=False)
        _add(index, first, blocks)
        faiss.write_index(index, str(folder / part(number)))


def _is_small(path: Path, paths: list[Path], template: Path) -> bool:
    """Whether rows are to go into a part; into the last of an index without a template always."""
    size = path.stat().st_size
    every = sum(each.stat().st_size for each in paths)
    return not template.is_file() or size <= max(_SMALL_BYTES, _SMALL * every)


def _add(index: Any, first: NDArray[np.float32], blocks: Iterator[NDArray[np.float32]]) -> None:
    index.add(first)
    for block in blocks:
        index.add(block)


def _remove(index: Any, keep: NDArray[np.bool_]) -> None:
    """Take rows out and number the others anew, without a gap."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexRefine):
        for each in (index.base_index, index.refine_index):
            _remove(faiss.downcast_index(each), keep)
        index.ntotal = index.base_index.ntotal
        return
    index.remove_ids(Selector(~keep).faiss)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        return  # the other kinds number by position
    lists, new = ivf.invlists, np.cumsum(keep) - 1
    for number in range(lists.nlist):
        if size := lists.list_size(number):
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            ids[:] = new[ids]


def reason(error: RuntimeError) -> str:
    """What faiss says went wrong, without its file and function names."""
    text = _PLACE.sub("", str(error).strip().splitlines()[-1])
    return text.rpartition("failed: ")[2] or text
