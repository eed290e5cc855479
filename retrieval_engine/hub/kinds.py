"""What a folder holds that can be pushed, which of its files go along, and whether it is whole."""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from retrieval_engine.errors import CheckpointInvalid, IndexFailure, StoreDamaged, UsageError
from retrieval_engine.heads import load_head
from retrieval_engine.heads.saved import ITEMS
from retrieval_engine.heads.saved import RECORD as HEAD
from retrieval_engine.heads.saved import WEIGHTS as HEAD_WEIGHTS
from retrieval_engine.index import open_index
from retrieval_engine.index.build_record import MANIFEST, IndexManifest
from retrieval_engine.models.adapters import PEFT_CONFIG, is_adapter, read_adapter
from retrieval_engine.models.checkpoint import read_config, tensor_names, weight_files
from retrieval_engine.models.checksums import check_checksums
from retrieval_engine.store import REPAIR_HINT, open_store
from retrieval_engine.store.manifest import HEADER, SHARDS

CERTIFICATE, TRAINING = "metrics.json", "training.json"
_ABOUT = (TRAINING, CERTIFICATE, "log.jsonl", "curves.png")
_CHECKPOINT = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"),
    *("vlre-import.json", "vlre_checksums.json", "model.safetensors.index.json"),
    "pytorch_model.bin.index.json",
)
_ADAPTER = (PEFT_CONFIG, "adapter_model.*", "vlre_adapter.json", "vlre_checksums.json")


class Kind(StrEnum):
    """What can be pushed."""

    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"
    HEAD = "head"
    INDEX = "index"
    STORE = "store"

    @property
    def repo_type(self) -> str:
        """What the hub calls such a thing: a store is a data set, all else a model."""
        return "dataset" if self is Kind.STORE else "model"

    @property
    def knows_items(self) -> bool:
        """Whether it tells what somebody's pictures are called and what is said of them."""
        return self in (Kind.STORE, Kind.INDEX)


def kind_of(folder: Path) -> Kind:
    """What lies in a folder.

    Raises:
        UsageError: nothing that can be pushed.
    """
    if (folder / HEADER).is_file():
        return Kind.STORE
    if (folder / HEAD).is_file():
        return Kind.HEAD
    if is_adapter(folder):
        return Kind.ADAPTER
    if (folder / "config.json").is_file():
        return Kind.CHECKPOINT
    if (folder / MANIFEST).is_file():
        return Kind.INDEX
    raise UsageError(f"{folder} is no checkpoint, adapter, head, index or store")


def files_of(kind: Kind, folder: Path) -> Mapping[str, Path]:
    """The files that make the thing, by their names in the repository; no others are pushed.

    Pictures, thumbnails, sample captions and what a killed run left are not among them.
    """
    found = {file.name: file for name in _named(kind) for file in sorted(folder.glob(name))}
    if kind is Kind.CHECKPOINT:
        found |= {file.name: file for file in weight_files(folder)}
    elif kind is Kind.STORE:
        for entry in open_store(folder).manifest.files():
            found[f"{SHARDS}/{entry.name}"] = folder / SHARDS / entry.name
    elif kind is Kind.INDEX:
        manifest = IndexManifest.read(folder)
        inner = folder / manifest.folder
        names = (inner / file.name for file in manifest.files)
        found |= {file.relative_to(folder).as_posix(): file for file in names}
    return found


def _named(kind: Kind) -> tuple[str, ...]:
    if kind is Kind.CHECKPOINT:
        return (*_CHECKPOINT, *_ABOUT)
    if kind is Kind.ADAPTER:
        return (*_ADAPTER, *_ABOUT)
    if kind is Kind.HEAD:
        return (HEAD, HEAD_WEIGHTS, ITEMS, *_ABOUT)
    if kind is Kind.STORE:
        return (HEADER, MANIFEST, CERTIFICATE, "calibration*.json")
    return (MANIFEST, CERTIFICATE)


def check(kind: Kind, folder: Path) -> None:
    """Read and compare every file with the checksums there are, and make sure that it opens.

    Raises:
        VlreError: something is missing, damaged or of a newer format.
    """
    checks: Mapping[Kind, Callable[[Path], object]] = {
        Kind.CHECKPOINT: _check_checkpoint,
        Kind.ADAPTER: lambda path: read_adapter(path).tensors(),
        Kind.HEAD: lambda path: load_head(path).trained_on(),
        Kind.INDEX: _check_index,
        Kind.STORE: _check_store,
    }
    checks[kind](folder)


def _check_checkpoint(folder: Path) -> None:
    check_checksums(folder)
    read_config(folder)
    if not tensor_names(folder):
        raise CheckpointInvalid(f"{folder} holds no tensor")


def _check_index(folder: Path) -> None:
    if IndexManifest.read(folder).backend == "milvus":
        raise IndexFailure(
            f"the vectors of {folder} lie in a Milvus server", hint="push its store instead"
        )
    open_index(folder, verify=True)


def _check_store(folder: Path) -> None:
    if problems := open_store(folder).verify():
        raise StoreDamaged("\n".join(problems), hint=REPAIR_HINT)


def inside(kind: Kind, folder: Path) -> list[str]:
    """What others learn from the files, a line each: said before anything is pushed, and in the card."""
    if kind is Kind.STORE:
        return [*_of_items(open_store(folder).items()), *_of_features(folder), _NO_PICTURE]
    if kind is Kind.INDEX:
        index = open_index(folder)
        vectors = f"vectors: {index.manifest.rows:,} of {index.manifest.feature}"
        return [*_of_items(index.catalog.table()), vectors, _NO_PICTURE]
    if kind is Kind.HEAD:
        seen = len(load_head(folder).trained_on())
        of_store = "head.json: where the store was"
        return [f"ids, sources and sha256 of the {seen:,} images it was trained on", of_store]
    if (folder / TRAINING).is_file():
        return ["training.json: all settings, paths among them; ids of images, where it has them"]
    return []


_NO_PICTURE = "no picture and no thumbnail"


def _of_items(table: Any) -> Iterator[str]:
    """What a table of items tells of people's pictures."""
    import pyarrow.compute as pc

    sources = sorted(set(table["source"].to_pylist()))
    shown = ", ".join(sources[:3]) + (f" and {len(sources) - 3:,} more" if sources[3:] else "")
    yield f"{len(table):,} items: ids, sha256 and where each picture is or was ({shown})"
    captions = pc.sum(pc.list_value_length(table["captions"])).as_py() or 0
    if captions:
        yield f"{captions:,} captions, word for word"
    facts = {"taken": "when", "latitude": "where", "camera": "with which camera"}
    known = {
        what: len(table) - table[name].null_count
        for name, what in facts.items()
        if name in table.column_names  # an old index has none of them
    }
    if said := [f"{what} ({count:,})" for what, count in known.items() if count]:
        yield f"of pictures, {', '.join(said)} they were taken"
    if extra := sum(text != "{}" for text in table["meta"].to_pylist()):
        yield f"what the source knew besides, of {extra:,} items"


def _of_features(folder: Path) -> Iterator[str]:
    store = open_store(folder)
    for modality, forms in store.header.features.items():
        told = ", ".join(
            f"{name} {'x'.join(map(str, form.shape))} {form.dtype}" for name, form in forms.items()
        )
        yield f"features of {modality}: {told}"
