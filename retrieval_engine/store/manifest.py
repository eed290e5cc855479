"""The two JSON files of a store: what made it (`store.json`), what is in it (`manifest.json`)."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_engine.durable import refuse_url, replace_file
from retrieval_engine.errors import StoreDamaged, StoreError, StoreNotFound
from retrieval_engine.fingerprint import EncoderSpec, digest
from retrieval_engine.machine import version_of
from retrieval_engine.records import Feature, Json, Modality
from retrieval_engine.store.job_shards import ShardPass
from retrieval_engine.store.mirror import Mirror, shown_store
from retrieval_engine.store.send import send, send_shards
from retrieval_engine.strict_json import loads

FORMAT_VERSION = 1
HEADER = "store.json"
MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
LOCK = "store.lock"
SHARDS = "shards"
REPAIR_HINT = "drop what is damaged with `repair_store()`, then encode again"

_LARGEST_ROW = 1 << 30

Features = Mapping[Modality, Mapping[str, Feature]]


class FileKind(StrEnum):
    """What a file of a part holds."""

    IMAGES = "images"
    CAPTIONS = "captions"
    ITEMS = "items"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One immutable file of a part.

    Attributes:
        name: file name inside `shards/`.
        kind: what it holds.
        rows: number of rows.
        size_bytes: length of the file.
        sha256: of the whole file, 64 hex digits.
        features: form of each feature in it; empty for items.
    """

    name: str
    kind: FileKind
    rows: int
    size_bytes: int
    sha256: str
    features: Mapping[str, Feature] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Files that became visible together."""

    number: int
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that exists in a store, oldest part first.

    Attributes:
        next_part: number of the next part. Numbers are never used twice, so that a reader with
            an old manifest cannot take a new file for the one it knows.
        parts: the parts.
        shards: what is known of the shares of jobs that it holds.
    """

    next_part: int = 0
    parts: tuple[Part, ...] = ()
    shards: tuple[ShardPass, ...] = ()

    def files(self, kind: FileKind | Modality | None = None) -> list[FileEntry]:
        """The files of one kind, or all, oldest first."""
        every = [entry for part in self.parts for entry in part.files]
        return [entry for entry in every if kind is None or entry.kind == kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Which encoder a store belongs to.

    Attributes:
        spec: the encoder.
        fingerprint: of the spec, as it was when the store was made.
        features: the current features by modality; rows of any other form are stale.
        created: time of creation, ISO 8601, UTC.
        versions: of the libraries that made it, for people.
    """

    spec: EncoderSpec
    fingerprint: str
    features: Features
    created: str
    versions: Mapping[str, str]


def new_header(spec: EncoderSpec, features: Features) -> Header:
    """A header for a store made now."""
    libraries = ("vlre", "h5py", "numpy", "pyarrow")
    return Header(
        spec=spec,
        fingerprint=spec.fingerprint,
        features=features,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version_of(name) or "unknown" for name in libraries},
    )


def read_header(path: Path) -> Header:
    """The header of the store at a path.

    Raises:
        UsageError: the path is an address such as `s3://…`.
        StoreNotFound: there is no `store.json`.
        StoreDamaged: it cannot be understood.
        StoreError: a newer vlre made the store.
    """
    refuse_url(path, "a store")
    if mirror := Mirror.at(path):
        mirror.pull()
    if not (path / HEADER).is_file():
        raise StoreNotFound(
            f"no store at {shown_store(path)}",
            hint="make one with `encode(source, store=PATH)`, or name another `store`",
        )
    value = _read_json(path / HEADER)
    try:
        return Header(
            spec=_spec(value["spec"]),
            fingerprint=str(value["fingerprint"]),
            features={Modality(m): _features(forms) for m, forms in value["features"].items()},
            created=str(value["created"]),
            versions=dict(value["versions"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _not_understood(path / HEADER, error) from error


def _spec(value: Mapping[str, Any]) -> EncoderSpec:
    # A field that a later vlre added is left out: the recorded fingerprint decides, not the spec.
    known = {entry.name for entry in fields(EncoderSpec)}
    return EncoderSpec.from_json({name: v for name, v in value.items() if name in known})


def write_header(path: Path, header: Header) -> None:
    """Replace the header of the store at a path."""
    value = {
        "fingerprint": header.fingerprint,
        "spec": header.spec.to_json(),
        "features": {str(m): _features_json(forms) for m, forms in header.features.items()},
        "created": header.created,
        "versions": dict(header.versions),
    }
    _write_json(path / HEADER, value)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at a path.

    Raises:
        StoreDamaged: it is missing or cannot be understood.
    """
    if not (path / MANIFEST).is_file():
        raise StoreDamaged(
            f"{path / MANIFEST} is missing",
            hint="encode again with `EncodeOptions(overwrite=True)`",
        )
    value = _read_json(path / MANIFEST)
    try:
        parts = tuple(
            Part(number=int(part["number"]), files=tuple(map(_entry, part["files"])))
            for part in value["parts"]
        )
        shards = tuple(map(ShardPass.from_json, value.get("shards", [])))
        return Manifest(next_part=int(value["next_part"]), parts=parts, shards=shards)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _not_understood(path / MANIFEST, error) from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace the manifest: from this moment its files, and no others, exist."""
    send_shards(path, [(e.name, e.size_bytes, e.sha256) for e in manifest.files()])
    shards = [entry.to_json() for entry in manifest.shards]
    value = {"next_part": manifest.next_part, "parts": parts_json(manifest)}
    _write_json(path / MANIFEST, {**value, "shards": shards} if shards else value)


def parts_json(manifest: Manifest) -> list[Json]:
    """The parts as `manifest.json` has them."""
    return [
        {"number": part.number, "files": [_entry_json(entry) for entry in part.files]}
        for part in manifest.parts
    ]


def feature_json(feature: Feature) -> dict[str, Json]:
    """Form of a feature as JSON, without its name."""
    value = asdict(feature) | {"shape": list(feature.shape)}
    del value["name"]
    return value


def _features_json(features: Mapping[str, Feature]) -> dict[str, Json]:
    return {name: feature_json(feature) for name, feature in features.items()}


def _features(value: Mapping[str, Any]) -> dict[str, Feature]:
    found = {}
    for name, form in value.items():
        shape, dtype = tuple(int(side) for side in form["shape"]), np.dtype(str(form["dtype"]))
        if dtype.kind not in "fiub" or not all(side > 0 for side in shape):
            raise ValueError(f"{name} cannot be {dtype}{list(shape)}")
        if math.prod(shape) * dtype.itemsize > _LARGEST_ROW:
            raise ValueError(f"a row of {name} has {math.prod(shape):,} values")
        fingerprint = str(form["fingerprint"])
        found[name] = Feature(name=name, shape=shape, dtype=str(dtype), fingerprint=fingerprint)
    return found


def _entry(value: Mapping[str, Any]) -> FileEntry:
    name = str(value["name"])
    if name != Path(name).name:
        raise ValueError(f"{name!r} is no plain file name")
    kind, rows, size_bytes = FileKind(value["kind"]), int(value["rows"]), int(value["bytes"])
    # A key of a shard takes 64 bytes, whatever else its rows hold.
    if min(rows, size_bytes) < 0 or (kind is not FileKind.ITEMS and 64 * rows > size_bytes):
        raise ValueError(f"{name} cannot hold {rows:,} rows in {size_bytes:,} bytes")
    return FileEntry(
        name=name,
        kind=kind,
        rows=rows,
        size_bytes=size_bytes,
        sha256=str(value["sha256"]),
        features=_features(value["features"]),
    )


def _entry_json(entry: FileEntry) -> dict[str, Json]:
    return {
        "name": entry.name,
        "kind": str(entry.kind),
        "rows": entry.rows,
        "bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "features": _features_json(entry.features),
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps({"format_version": FORMAT_VERSION, **value}))
    signed = {**plain, "checksum": digest(plain)}
    data = (json.dumps(signed, indent=1, ensure_ascii=False) + "\n").encode()
    send(path.parent, path.name, data)
    replace_file(path, data)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise _not_understood(path, error) from error
    if not isinstance(value, dict) or not isinstance(value.get("format_version"), int):
        raise _not_understood(path, ValueError("no format_version"))
    if value["format_version"] > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {value['format_version']}, this vlre reads "
            f"{FORMAT_VERSION}",
            hint="upgrade vlre",
        )
    checksum = value.pop("checksum", None)  # stores made before 2026-11 have none
    if checksum is not None and checksum != digest(value):
        raise _not_understood(path, ValueError("its checksum differs"))
    return value


def _not_understood(path: Path, error: Exception) -> StoreDamaged:
    return StoreDamaged(
        f"{path} cannot be understood ({type(error).__name__}: {error})",
        hint="restore it from a copy, or encode again with `EncodeOptions(overwrite=True)`",
    )
