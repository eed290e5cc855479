"""Makes a directory ready for a writer, and sweeps up after a dead one."""

from pathlib import Path

from retrieval_engine.errors import FingerprintMismatch, ShapeError, StoreDamaged, StoreError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Feature, Modality
from retrieval_engine.store.durable import PARTIAL
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

_OURS = {HEADER, MANIFEST, FAILURES, LOCK, SHARDS}


def make_directory(path: Path) -> None:
    """Make the directory of a store, or refuse one that holds something else.

    Raises:
        StoreError: it cannot be made, or is neither empty nor a store.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = [
            entry.name for entry in path.iterdir() if entry.name.removesuffix(PARTIAL) not in _OURS
        ]
    except OSError as error:
        raise StoreError(f"cannot write a store at {path}: {error.strerror}") from error
    if foreign and not (path / HEADER).exists():
        raise StoreError(
            f"{path} is no store, and not empty: it holds {sorted(foreign)[0]}",
            hint="name a new or empty directory as `store`",
        )


def prepare(
    path: Path, spec: EncoderSpec, declared: Features, *, overwrite: bool, adopt: bool
) -> Header:
    """Make the store's header say what its writer will add; the caller holds the lock.

    Raises:
        FingerprintMismatch: the store is another encoder's.
        ShapeError: a feature is stored in another shape or dtype.
        StoreDamaged: the header or the manifest cannot be understood.
    """
    (path / SHARDS).mkdir(exist_ok=True)
    exists = (path / HEADER).exists()
    if overwrite or not exists:
        _start_anew(path, overwrite=overwrite)
        header = new_header(spec, declared)
        write_header(path, header)
        return header
    before = read_header(path)
    same = before.fingerprint == spec.fingerprint
    if not same and not adopt:
        raise _mismatch(f"the store {path}", before.fingerprint, spec.fingerprint)
    features: dict[Modality, dict[str, Feature]] = {m: {} for m in Modality}
    for modality, forms in declared.items():
        known = before.features.get(modality, {})
        features[modality] = {**(known if same else {}), **forms}
        for name, form in forms.items():
            _check_form(path, known.get(name, form), form, adopt=adopt)
    header = before
    if not same or features != before.features:
        header = Header(
            spec=spec,
            fingerprint=spec.fingerprint,
            features=features,
            created=before.created,
            versions=before.versions,
        )
        write_header(path, header)
    return header


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
            before = Manifest(next_part=_highest_number(path) + 1)
        if before.parts and not overwrite:
            raise StoreDamaged(
                f"{path / HEADER} is missing, {path / MANIFEST} lists {len(before.parts)} parts",
                hint="restore it from a copy, or encode again with `EncodeOptions(overwrite=True)`",
            )
        next_part = before.next_part
    write_manifest(path, Manifest(next_part=next_part))
    (path / FAILURES).unlink(missing_ok=True)


def _highest_number(path: Path) -> int:
    digits = (file.name.partition("-")[2].partition(".")[0] for file in (path / SHARDS).iterdir())
    return max((int(d) for d in digits if d.isdecimal()), default=-1)


def sweep(path: Path, manifest: Manifest) -> list[str]:
    """Delete what a dead writer left: partial files and shards that no manifest lists.

    The caller holds the writer's lock.

    Returns:
        Names of the files deleted.
    """
    listed = {entry.name for entry in manifest.files()}
    left = [file for file in (path / SHARDS).iterdir() if file.name not in listed]
    left += list(path.glob(f"*{PARTIAL}"))
    for file in left:
        file.unlink()
    return sorted(file.name for file in left)
