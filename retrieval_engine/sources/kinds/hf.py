"""`hf:ID`: a data set of the Hugging Face hub, or one on disk that `datasets` can load.

    hf:nlphuji/flickr30k?split=test             by the rows' column `split`
    hf:lmms-lab/flickr30k?splits=dataset_flickr30k.json&split=test      by the rows' ids
    hf:owner/name?config=en&name=validation     one configuration, one of the hub's splits
    hf:owner/name?split_from=name               believe the hub's names of splits

Without `split_from=name` the hub's split names say nothing about an item: a well-known release of
Flickr30k has all 31,783 images in one split named "test". Needs the extra `data`.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from retrieval_engine.errors import MissingExtra, SourceError, UsageError
from retrieval_engine.network import hub_is_reachable
from retrieval_engine.sources.columns import choose_columns
from retrieval_engine.sources.kinds.parquet import bytes_in
from retrieval_engine.sources.reading import one_line
from retrieval_engine.sources.source_name import Options, split_name
from retrieval_engine.sources.tables import OPTIONS, Cell, TablePart, TableSource

_SAVED = ("dataset_info.json", "dataset_dict.json")
_OPEN_FILES = 16


def open_source(argument: str, options: Mapping[str, str]) -> TableSource:
    """Items of a data set; it is downloaded and cached by `datasets` first where needed.

    Args:
        argument: hub id, or path of a folder.
        options: `config`, `name`, `split_from=name`, and those of `parquet`.

    Raises:
        UsageError: an option is unknown.
        MissingExtra: `datasets` is not installed.
        SourceError: the data set cannot be had, or has no columns of pictures and captions.
    """
    given = Options("hf", options, (*OPTIONS, "config", "name"))
    if given.text("split_from", "name") != "name":
        raise UsageError(f"hf: split_from={given.text('split_from')}; allowed: name")
    if importlib.util.find_spec("datasets") is None:
        raise MissingExtra("datasets", "data")
    config = given.text("config")
    loaded = _load(argument, config)
    wanted = given.text("name")
    if wanted and wanted not in loaded:
        raise SourceError(f"{argument} has no split named {wanted}; there are: {', '.join(loaded)}")
    believed = bool(given.text("split_from"))
    parts = [
        TablePart(path=path, read=_batches, split=split_name(name) if believed else "")
        for name, paths in loaded.items()
        for path in paths
        if wanted in {"", name}
    ]
    where = str(Path(argument).expanduser().resolve()) if _is_local(argument) else argument
    return TableSource(
        name=f"hf:{where}" + (f"/{config}" if config else ""),
        kind="hf",
        parts=parts,
        columns=choose_columns(_table(str(parts[0].path), 0).schema, given, argument),
        given=given,
        read_bytes=read_bytes,
    )


def _is_local(argument: str) -> bool:
    return Path(argument).expanduser().is_dir()


def _load(argument: str, config: str) -> dict[str, list[Path]]:
    """Arrow files of each of the data set's splits."""
    local = _is_local(argument)
    online = not local and hub_is_reachable()
    if not local and not online and not _cached(argument):
        raise SourceError(
            f"data set {argument} is not on this machine and the hub cannot be reached from here",
            hint=f"where there is network, run `hf download --repo-type dataset {argument} "
            "--local-dir DIR`, copy DIR here and use parquet:DIR",
        )
    import datasets

    path = Path(argument).expanduser()
    try:
        if local and any((path / name).is_file() for name in _SAVED):
            loaded: Any = datasets.load_from_disk(str(path))
        else:
            with _offline(not online):
                loaded = datasets.load_dataset(str(path) if local else argument, config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error)
        raise SourceError(f"data set {argument} cannot be loaded: {reason}") from error
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}
    return {
        name: [Path(file["filename"]) for file in table.cache_files]
        for name, table in splits.items()
    }


def _cached(argument: str) -> bool:
    """Whether `datasets` has prepared this data set before, told without importing it."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    return (cache / argument.replace("/", "___").lower()).is_dir()


@contextmanager
def _offline(is_offline: bool) -> Iterator[None]:
    """Tell the hub's client that there is no network; it reads the environment only once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or is_offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@lru_cache(maxsize=_OPEN_FILES)
def _table(path: str, mtime_ns: int) -> pa.Table:
    """An Arrow file as a table whose cells stay on disk until they are asked for."""
    with pa.ipc.open_stream(pa.memory_map(path)) as stream:
        return stream.read_all()


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        table = _table(str(path), path.stat().st_mtime_ns)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read {path}: {one_line(error)}") from error
    names = dict.fromkeys(name.removesuffix(".path") for name in columns)
    yield from table.select(list(names)).to_batches(max_chunksize=1024)


def read_bytes(uri: str) -> bytes:
    """The picture in one row.

    Args:
        uri: `hf:FILE#ROW,COLUMN`.

    Raises:
        SourceError: the file is gone, or the row holds no bytes.
    """
    cell = Cell.of(uri)
    try:
        table = _table(cell.path, Path(cell.path).stat().st_mtime_ns)
        value = table[cell.column][cell.row].as_py()
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        raise SourceError(f"cannot read {uri}: {one_line(error)}") from error
    return bytes_in(value, uri)
