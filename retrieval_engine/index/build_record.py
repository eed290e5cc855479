"""`manifest.json` of an index folder: what it holds, from what, and the checksums."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retrieval_engine.errors import IndexFailure
from retrieval_engine.fingerprint import EncoderSpec, digest
from retrieval_engine.records import Json
from retrieval_engine.store import Store
from retrieval_engine.strict_json import loads

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """One file of the folder.

    Attributes:
        name: file name.
        bytes: its length.
        sha256: of its content, 64 hex digits; faiss itself notices no flipped bit.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexManifest:
    """What an index is, and everything it must agree with.

    Attributes:
        recipe: name of the recipe.
        backend: file name in `index/backends/`.
        factory: the factory string after all numbers were put in.
        effort: search settings chosen at build, e.g. `{"nprobe": 16}`.
        store: path of the store it was built from, for people.
        contents: digest of the store's contents at that time; another digest: perhaps stale.
        store_files: sha256 of each of the store's files at that time; empty where it had items
            that are not in the index for want of the feature, which may have got it since.
        fingerprint: of the encoder.
        spec: the encoder's spec as JSON, so that the index alone says how to encode a query.
        feature: name of the feature.
        feature_fingerprint: of that feature.
        head_fingerprint: of the head whose output is indexed, or empty.
        modality: `images`.
        split: the split it holds, or empty for all items.
        items: number of items.
        rows_per_item: vectors of each item; row r belongs to item r // rows_per_item.
        dim: length of a vector.
        folder: where the files are, inside the index; empty for the index's folder itself, as
            indexes before 2026-11 have it.
        files: every other file.
        changed_since_build: items that updates added and removed; the report is of the build.
        report: figures of the build.
        versions: of this package and the backend's library.
    """

    recipe: str
    backend: str
    factory: str
    effort: Mapping[str, int]
    store: str
    fingerprint: str
    spec: Mapping[str, Json]
    feature: str
    feature_fingerprint: str
    contents: str = ""
    store_files: tuple[str, ...] = ()
    head_fingerprint: str = ""
    modality: str = "images"
    split: str = ""
    items: int
    rows_per_item: int
    dim: int
    folder: str = ""
    files: tuple[IndexFile, ...]
    changed_since_build: int = 0
    report: Mapping[str, Json] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return self.items * self.rows_per_item

    @property
    def bytes(self) -> int:
        """Length of all files but the manifest."""
        return sum(file.bytes for file in self.files)

    @property
    def encoder(self) -> EncoderSpec:
        """The spec of the encoder, as an object."""
        return EncoderSpec.from_json(self.spec)

    def write(self, folder: Path) -> None:
        """Put the manifest into a folder."""
        value = {"format": FORMAT, **asdict(self)}
        text = json.dumps({**value, "checksum": _digest(value)}, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "IndexManifest":
        """The manifest of a folder.

        Raises:
            IndexFailure: there is none, or it cannot be understood.
        """
        rebuild = "build it again with `build_index()`"
        path = folder / MANIFEST
        try:
            value = loads(path.read_bytes())
        except FileNotFoundError as error:
            raise IndexFailure(
                f"no index at {folder}", hint="build one with `build_index()`"
            ) from error
        except (OSError, ValueError) as error:
            raise IndexFailure(f"cannot read {path}: {error}", hint=rebuild) from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            seen = value.get("format") if isinstance(value, dict) else None
            raise IndexFailure(
                f"{path} has format {seen}, this version reads {FORMAT}", hint=rebuild
            )
        checksum = value.pop("checksum", None)  # older ones have none
        if checksum is not None and _digest(value) != checksum:
            raise IndexFailure(f"{path} is damaged: its checksum differs", hint=rebuild)
        del value["format"]
        try:
            value["files"] = tuple(IndexFile(**file) for file in value["files"])
            value["store_files"] = tuple(value.get("store_files", ()))
            manifest = cls(**value)
            for name in (manifest.folder, *(file.name for file in manifest.files)):
                if name != Path(name).name and name:
                    raise TypeError(f"{name!r} is no plain name")
            return manifest
        except (KeyError, TypeError) as error:
            raise IndexFailure(f"{path} is no index manifest: {error}", hint=rebuild) from error

    def check_files(self, folder: Path, *, content: bool) -> None:
        """Compare the files with what the manifest says of them.

        Args:
            folder: the index.
            content: hash them too, about a second a gigabyte; else compare lengths alone.

        Raises:
            IndexFailure: a file is missing, of another length, or its checksum differs.
        """
        for file in self.files:
            path = folder / self.folder / file.name
            if not path.is_file():
                raise IndexFailure(f"{path} is missing", hint="build the index again")
            length = path.stat().st_size
            if length != file.bytes:
                raise IndexFailure(
                    f"{path} has {length:,} bytes, its manifest says {file.bytes:,}",
                    hint="build the index again",
                )
            if content and sha256_of(path) != file.sha256:
                raise IndexFailure(
                    f"{path} is damaged: its checksum differs from its manifest's",
                    hint="build the index again",
                )


def _digest(value: Mapping[str, Json]) -> str:
    """Digest of all members but the checksum, as they are after a journey through JSON."""
    return digest(json.loads(json.dumps(value)))


def describe(path: Path) -> IndexFile:
    """Name, length and checksum of a file."""
    return IndexFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))


def describe_folder(folder: Path, old: Path, known: Sequence[IndexFile]) -> tuple[IndexFile, ...]:
    """All files of a folder; those that are files of an older one by a second name as known.

    Args:
        folder: what is described.
        old: the older folder.
        known: its files.
    """
    places = {(old / file.name).stat().st_ino: file for file in known}
    found = []
    for path in sorted(folder.iterdir()):
        same = places.get(path.stat().st_ino)
        if same and path.samefile(old / same.name):
            found.append(replace(same, name=path.name))
        else:
            found.append(describe(path))
    return tuple(found)


def files_of(store: Store) -> tuple[str, ...]:
    """sha256 of each file of a store as it was opened."""
    return tuple(file.sha256 for file in store.manifest.files())


def contents_of(store: Store) -> str:
    """Digest of all files of a store as it was opened; another one after each write to it."""
    return digest(list(files_of(store)))


def store_as_seen(store: Store, left_out: int) -> dict[str, Any]:
    """The fields of a manifest that say what the store was."""
    return {"contents": contents_of(store), "store_files": () if left_out else files_of(store)}


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
