"""Makes a directory ready for a writer, and sweeps up after a dead one."""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from retrieval_engine.durable import refuse_url
from retrieval_engine.errors import FingerprintMismatch, ShapeError, StoreDamaged, StoreError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.locks import FileLock, Taken
from retrieval_engine.records import Feature, Modality
from retrieval_engine.store.manifest import (
    FAILURES,
    HEADER,
    LOCK,
    MANIFEST,
    SHARDS,
    Features,
    Header,
    Manifest,
    new_header,
    read_header,
    read_manifest,
    write_header,
    write_manifest,
)
from retrieval_engine.store.mirror import MIRROR, Mirror, shown_store
from retrieval_engine.store.send import SendingLock, drop, drop_unlisted

_OURS = {HEADER, MANIFEST, FAILURES, LOCK, SHARDS, MIRROR, "mirror.lock"}
# Names that a writer gives; whatever else lies in a store is somebody's, and stays.
_SHARD = r"((images|captions)-\d+\.h5|items-\d+\.parquet)"
_PARTIAL = r"(\.[0-9a-f]{8})?\.partial"
_OUR_SHARD = re.compile(f"{_SHARD}({_PARTIAL})?")
_OUR_PARTIAL = re.compile(f"({'|'.join(map(re.escape, (HEADER, MANIFEST, FAILURES)))}){_PARTIAL}")


def lock_store(path: Path) -> FileLock:
    """Hold a store for writing until released; one writer at a time.

    Raises:
        StoreError: another writer holds it (the message says which), or locks do not work there.
    """
    try:
        return SendingLock(mirror) if (mirror := Mirror.at(path)) else FileLock(path / LOCK)
    except Taken as error:
        raise StoreError(
            f"{shown_store(path)} is being written by {error.owner}",
            hint="wait for it to end, or write to another `store`",
        ) from error
    except OSError as error:
        raise StoreError(f"cannot lock {path}: {error.strerror or error}") from error


def make_directory(path: Path) -> tuple[Path, ...]:
    """Make the directory of a store, or refuse one that holds something else.

    Returns:
        The directories that had to be made, the innermost first.

    Raises:
        UsageError: the path is an address such as `s3://…`.
        StoreError: it cannot be made, or is neither empty nor a store.
    """
    refuse_url(path, "a store")
    made = tuple(folder for folder in (path, *path.parents) if not folder.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = [
            entry.name
            for entry in path.iterdir()
            if entry.name not in _OURS and not _OUR_PARTIAL.fullmatch(entry.name)
        ]
    except OSError as error:
        raise StoreError(f"cannot write a store at {path}: {error.strerror}") from error
    if foreign and not (path / HEADER).exists():
        raise StoreError(
            f"{path} is no store, and not empty: it holds {sorted(foreign)[0]}",
            hint="name a new or empty directory as `store`",
        )
    return made


def has_parts(path: Path) -> bool:
    """Whether something may be committed: there are parts, or a manifest nobody understands."""
    try:
        return (path / MANIFEST).exists() and bool(read_manifest(path).parts)
    except StoreDamaged:
        return True


def unmake(path: Path, made: Iterable[Path]) -> None:
    """Take away a store that was made in vain; whatever else came to lie there stays."""
    with contextlib.suppress(OSError):
        for name in (HEADER, MANIFEST, FAILURES, LOCK):
            if name != LOCK:
                drop(path, name)
            (path / name).unlink(missing_ok=True)
        for folder in (path / SHARDS, *made):
            folder.rmdir()


def prepare(
    path: Path, spec: EncoderSpec, declared: Features, *, overwrite: bool, adopt: bool
) -> Header:
    """Make the store's header say what its writer will add; the caller holds the lock.

    Raises:
        FingerprintMismatch: the store is another encoder's.
        ShapeError: a feature is stored in another shape or dtype.
        StoreDamaged: the header or the manifest cannot be understood.
    """
    own_shards(path)
    exists = (path / HEADER).exists()
    if overwrite or not exists:
        _start_anew(path, overwrite=overwrite)
        header = new_header(spec, declared)
        write_header(path, header)
        return header
    before = read_header(path)
    same = before.fingerprint == spec.fingerprint
    if not same and not adopt:
        what = f"the store {path}{_differing(before.spec, spec)}"
        raise _mismatch(what, before.fingerprint, spec.fingerprint)
    features: dict[Modality, dict[str, Feature]] = {m: {} for m in Modality}
    for modality, forms in declared.items():
        known = before.features.get(modality, {})
        features[modality] = {**(known if same else {}), **forms}
        for name, form in forms.items():
            _check_form(path, known.get(name, form), form, adopt=adopt)
    header = before
    if not same or features != before.features:
        header = replace(before, spec=spec, fingerprint=spec.fingerprint, features=features)
        write_header(path, header)
    return header


def begin_store(path: Path, header: Header) -> None:
    """Make an empty store where there is none; the caller holds the lock."""
    _start_anew(path, overwrite=False)
    write_header(path, header)


def own_shards(path: Path) -> None:
    """Make sure that `shards/` is the store's own folder.

    Raises:
        StoreError: it is a link, behind which another's files may lie, or cannot be made.
    """
    shards = path / SHARDS
    if shards.is_symlink():
        raise StoreError(
            f"{shards} is a link to {shards.readlink()}; a writer would replace and delete files "
            "there",
            hint="put the folder itself in the place of the link, or link the whole store",
        )
    try:
        shards.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write in {shards}: {error.strerror}") from error


def next_free(path: Path, manifest: Manifest) -> int:
    """A part number that neither the manifest nor a file or folder in `shards/` has."""
    return max(manifest.next_part, _highest_number(path) + 1)


def _check_form(path: Path, known: Feature, form: Feature, *, adopt: bool) -> None:
    if known.fingerprint != form.fingerprint:
        if not adopt:
            raise _mismatch(f"{form.name} in {path}", known.fingerprint, form.fingerprint)
    elif (known.shape, known.dtype) != (form.shape, form.dtype):
        raise ShapeError(
            f"{path} keeps {form.name} as {known.dtype}{list(known.shape)}, not "
            f"{form.dtype}{list(form.shape)}",
            hint="use a new `store`, or `EncodeOptions(overwrite=True)`",
        )


def _differing(before: EncoderSpec, spec: EncoderSpec) -> str:
    """What of the settings that people choose is another one, in brackets; or nothing."""
    chosen = ("checkpoint", "adapter", "image_size", "preprocessing", "dtype")
    pairs = [(name, getattr(before, name), getattr(spec, name)) for name in chosen]
    told = [_told(name, a, b) for name, a, b in pairs if a != b]
    return f" ({'; '.join(told)})" if told else ""


def _told(name: str, before: str, now: str) -> str:
    if name == "preprocessing" and before == f"{now}+draft":
        return "with `fast_decode`, which is not asked for now"
    if name == "preprocessing" and now == f"{before}+draft":
        return "without `fast_decode`, which is asked for now"
    return f"{name} {before!r}, not {now!r}"


def _mismatch(what: str, seen: str, expected: str) -> FingerprintMismatch:
    return FingerprintMismatch(
        what,
        seen=seen,
        expected=expected,
        hint="use a new `store`, or re-encode with `EncodeOptions(overwrite=True)`",
    )


def _start_anew(path: Path, *, overwrite: bool) -> None:
    """An empty manifest, whose numbering goes on where the old one stopped."""
    next_part = 0
    if (path / MANIFEST).exists():
        try:
            before = read_manifest(path)
        except StoreDamaged:
            if not overwrite:
                raise
            before = Manifest()
        if before.parts and not overwrite:
            raise StoreDamaged(
                f"{path / HEADER} is missing, {path / MANIFEST} lists {len(before.parts)} parts",
                hint="restore it from a copy, or encode again with `EncodeOptions(overwrite=True)`",
            )
        next_part = next_free(path, before)
    write_manifest(path, Manifest(next_part=next_part))
    drop(path, FAILURES)
    (path / FAILURES).unlink(missing_ok=True)


def _highest_number(path: Path) -> int:
    names = (file.name for file in (path / SHARDS).iterdir())
    numbers = (re.findall(r"\d+", name)[0] for name in names if _OUR_SHARD.fullmatch(name))
    return max(map(int, numbers), default=-1)


def sweep(path: Path, manifest: Manifest) -> list[str]:
    """Delete what a dead writer left: partial files and shards that no manifest lists.

    What has another name than a writer gives, and every folder, is left alone. The caller holds the writer's lock.

    Returns:
        Names of the files deleted.
    """
    listed = {entry.name for entry in manifest.files()}
    left = [file for file in _ours(path / SHARDS, _OUR_SHARD) if file.name not in listed]
    left += _ours(path, _OUR_PARTIAL)
    for file in left:
        file.unlink()
    sent = drop_unlisted(path, _OUR_SHARD, listed)
    return sorted({*sent, *(file.name for file in left)})


def _ours(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Files a writer may have left; of a link the link itself, of a folder nothing."""
    found = [file for file in folder.iterdir() if names.fullmatch(file.name)]
    return [file for file in found if file.is_symlink() or file.is_file()]
