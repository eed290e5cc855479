"""One HDF5 file of feature rows: written once, checked, then only read."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import partial_of, publish
from retrieval_engine.errors import ShapeError, StoreError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.records import Feature, Modality
from retrieval_engine.store.keys import KEY_HEX, hex_keys, raw_keys
from retrieval_engine.store.manifest import FORMAT_VERSION, FileEntry, FileKind

KEY = "key"
CHUNK_BYTES = 64 << 10
_BLOCK_BYTES = 4 << 20

Arrays = Mapping[str, NDArray[Any]]


def chunk_rows(row_bytes: int) -> int:
    """Rows per chunk. A chunk is the unit of checksum, of disk read and of random access."""
    return max(1, min(CHUNK_BYTES // max(row_bytes, 1), 8192))


def block_rows(row_bytes: int) -> int:
    """Rows written and checked at once: whole chunks, a few MiB."""
    chunk = chunk_rows(row_bytes)
    return chunk * max(1, _BLOCK_BYTES // (chunk * max(row_bytes, 1)))


def cast(what: str, feature: Feature, rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Rows in the dtype their feature is kept in.

    Args:
        what: `image` or `caption`, for the message.
        feature: the form promised; a floating one takes any floating rows.
        rows: must be (count, *feature.shape).
        count: number of keys.

    Raises:
        ShapeError: another shape, or a dtype that is no form of the one promised.
    """
    rows, kept = np.asarray(rows), np.dtype(feature.dtype)
    fits = rows.dtype == kept or (rows.dtype.kind == "f" and kept.kind == "f")
    if rows.shape != (count, *feature.shape) or not fits:
        raise ShapeError(
            f"{feature.name} of {count} {what}s is {rows.dtype}{list(rows.shape)}, declared "
            f"{feature.dtype}{[count, *feature.shape]}"
        )
    with np.errstate(over="ignore"):  # becomes infinity, which `check_block` refuses
        return rows.astype(kept, copy=False)


def check_block(what: str, feature: Feature, block: NDArray[Any], keys: NDArray[np.bytes_]) -> None:
    """Refuse rows that would poison every score computed from them.

    Args:
        what: `image` or `caption`, for the message.
        feature: the form promised.
        block: (n, *feature.shape).
        keys: (n,) `S32`, named in the message.

    Raises:
        StoreError: NaN, infinity or a zero vector.
    """
    if block.dtype.kind != "f" or not len(block):
        return
    # Without the sign bit the bits of a float order like its magnitude, NaN above infinity. One
    # maximum over integers answers both questions, ten times faster than float16 arithmetic.
    bits = np.dtype(f"u{block.dtype.itemsize}")
    magnitude = block.view(bits) & bits.type((1 << (8 * bits.itemsize - 1)) - 1)
    # `itc` rows hold q vectors that are compared one by one: none of them may be zero.
    vectors = magnitude if feature.name == "itc" else magnitude.reshape(len(block), -1)
    largest = vectors.max(axis=-1).reshape(len(block), -1)
    infinity = np.array(np.inf, block.dtype).view(bits)
    for found, bad in (("NaN or infinity", largest >= infinity), ("a zero vector", largest == 0)):
        if bad.any():
            raise _refused(what, feature, keys[int(np.argmax(bad.any(axis=1)))], found)


def _refused(what: str, feature: Feature, key: np.bytes_, found: str) -> StoreError:
    name = hex_keys(np.array([key], "S32"))[0].decode()
    return StoreError(
        f"{feature.name} of {what} {name} holds {found} and is not stored",
        hint="encode with `open_encoder(dtype='float32')`; if it stays, the checkpoint is broken",
    )


class ShardWriter:
    """Collects rows in a partial file and publishes them as one whole file.

    Args:
        path: final path of the shard.
        modality: which side it belongs to.
        features: form of every dataset by name.
        spec: the encoder, written into the file for people and other programs.
    """

    def __init__(
        self, path: Path, modality: Modality, features: Mapping[str, Feature], spec: EncoderSpec
    ) -> None:
        self.path = path
        self.modality = modality
        self.features = dict(features)
        self.rows = 0
        self.size_bytes = 0
        self._partial = partial_of(path)
        with _writing(self._partial):
            self._disk = _Disk(self._partial, "x+")
            self._file = h5py.File(self._disk, "w")
            self._file.attrs["format_version"] = FORMAT_VERSION
            self._file.attrs["modality"] = str(modality)
            self._file.attrs["fingerprint"] = spec.fingerprint
            self._file.attrs["spec"] = json.dumps(spec.to_json())
            self._columns = {KEY: self._create(KEY, (), KEY_HEX)}
            for feature in features.values():
                column = self._create(feature.name, feature.shape, np.dtype(feature.dtype))
                column.dataset.attrs["fingerprint"] = feature.fingerprint
                self._columns[feature.name] = column

    def _create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "_Column":
        row_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        dataset = self._file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(chunk_rows(row_bytes), *shape),
            dtype=dtype.newbyteorder("<"),
            fletcher32=True,
        )
        return _Column(dataset, block_rows(row_bytes))

    def append(self, keys: NDArray[np.bytes_], arrays: Arrays) -> None:
        """Add rows; they are copied.

        Args:
            keys: (n,) `S32`.
            arrays: (n, *shape) for every feature of the shard, no more and no less. Floating
                rows are cast to the dtype they are kept in.

        Raises:
            ShapeError: a feature is missing, unknown, or of another form; nothing was added.
            StoreError: a value is NaN, infinite or a zero vector (nothing was added), or the
                disk refuses.
        """
        if set(arrays) != set(self.features):
            raise ShapeError(
                f"{self.modality} were given {sorted(arrays)}, declared {sorted(self.features)}"
            )
        what = self.modality.removesuffix("s")
        rows = {KEY: hex_keys(keys)}
        for name, feature in self.features.items():
            rows[name] = cast(what, feature, arrays[name], len(keys))
            check_block(what, feature, rows[name], keys)
        with _writing(self._partial):
            for name, column in self._columns.items():
                column.append(rows[name])
            self._disk.check()
        self.rows += len(keys)
        self.size_bytes += sum(block.nbytes for block in rows.values())

    def publish(self) -> FileEntry:
        """Flush, read back, check and rename.

        Raises:
            StoreError: what is on disk is not what was written.
        """
        with _writing(self._partial):
            for column in self._columns.values():
                column.flush()
            self._file.close()
            self._disk.check()
            self._disk.close()
            self._check()
            size_bytes, sha256 = publish(self._partial, self.path)
        return FileEntry(
            name=self.path.name,
            kind=FileKind(self.modality),
            rows=self.rows,
            size_bytes=size_bytes,
            sha256=sha256,
            features=self.features,
        )

    def _check(self) -> None:
        with h5py.File(self._partial, "r", locking=False) as file:
            lengths = {name: len(file[name]) for name in (KEY, *self.features)}
            if set(lengths.values()) != {self.rows}:
                raise StoreError(f"{self._partial} holds {lengths} rows, wrote {self.rows}")
            what = self.modality.removesuffix("s")
            for name, feature in self.features.items():
                step = self._columns[name].block_rows
                for start in range(0, self.rows, step):
                    keys = raw_keys(file[KEY][start : start + step])
                    check_block(what, feature, file[name][start : start + step], keys)

    def discard(self) -> None:
        """Forget everything; safe to call at any time before `publish`."""
        self._file.close()
        self._disk.close()
        self._partial.unlink(missing_ok=True)


class _Disk(io.FileIO):
    """The file under HDF5. It keeps a write error to itself until `check`.

    HDF5 cannot close a file whose last pages it cannot write: on a full disk it would take the
    process with it. So it is told that all is well, and the file is thrown away.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view) and self.error is None:
            try:
                view = view[super().write(view) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the first error there was."""
        if self.error is not None:
            raise self.error


class _Column:
    """Gathers small appends into whole chunks: ten times faster for rows of 512 bytes."""

    def __init__(self, dataset: Any, block_rows: int) -> None:
        self.dataset = dataset
        self.block_rows = block_rows
        self._waiting = np.empty((block_rows, *dataset.shape[1:]), dataset.dtype)
        self._filled = 0

    def append(self, rows: NDArray[Any]) -> None:
        while len(rows):
            taken = min(self.block_rows - self._filled, len(rows))
            self._waiting[self._filled : self._filled + taken] = rows[:taken]
            self._filled += taken
            rows = rows[taken:]
            if self._filled == self.block_rows:
                self.flush()

    def flush(self) -> None:
        if self._filled:
            start = len(self.dataset)
            self.dataset.resize(start + self._filled, axis=0)
            self.dataset[start:] = self._waiting[: self._filled]
            self._filled = 0


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    # h5py reports a full disk as OSError or as RuntimeError, depending on the call.
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error
