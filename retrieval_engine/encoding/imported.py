"""Writes vectors of another encoder into a store, as if they had been encoded here."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.vector_set import Embeddings, Vectors
from retrieval_engine.errors import SourceError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Caption, Feature, Item, Json, Modality
from retrieval_engine.store import PartWriter, StoreWriter
from retrieval_engine.store.keys import KEY_RAW, KeyTable, hex_keys

_PART_ROWS = 16384
_SAME_TEXT = 1e-2  # cosine distance up to which two vectors of one sentence are taken for equal


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        store: directory of the store.
        name: of the external encoder.
        fingerprint: that follows from the name.
        images: rows given.
        captions: rows given.
        image_width: dimensions of an image vector.
        text_width: dimensions of a text vector, 0 without texts.
        features: what can be asked for now.
        seconds: wall time.
        remarks: lines for people about what looks wrong.
    """

    store: str
    name: str
    fingerprint: str
    images: int
    captions: int
    image_width: int
    text_width: int
    features: tuple[str, ...]
    seconds: float
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        value: dict[str, Json] = asdict(self)
        del value["remarks"]
        return value | {"features": list(self.features), "seconds": round(self.seconds, 3)}


def external_spec(name: str) -> EncoderSpec:
    """The spec of an encoder known by its name alone: equal names are taken at their word."""
    parts = ("vision", "image", "text")
    return EncoderSpec(
        family="external", checkpoint=name, weights=dict.fromkeys(parts, f"name:{name}")
    )


def import_embeddings(
    embeddings: Embeddings,
    store: str | Path,
    *,
    name: str = "external",
    split: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Write vectors into a store; what it holds already is left as it is.

    The vectors are kept as `pooled`, for heads, and where both sides have one width also as `itc`,
    at length one, for search and recall. Ids that are not given are derived from the vectors, so
    that they do not depend on the order of the rows.

    Args:
        embeddings: the vectors and what belongs together.
        store: its directory, made when absent.
        name: of the encoder. It decides the fingerprint: heads and indices serve every import of
            the same name.
        split: of all these images.
        overwrite: throw away what the store holds.
        progress: told about every image.

    Raises:
        SourceError: a row is NaN, infinite or zero; the message names it.
        FingerprintMismatch: the store is another encoder's.
    """
    began, progress = time.perf_counter(), progress or Silent()
    embeddings.check()
    spec = external_spec(name)
    features = _features(embeddings, spec)
    writing = _Import(embeddings, f"external:{name}", split)
    with StoreWriter.open(store, spec=spec, features=features, overwrite=overwrite) as writer:
        progress.start("importing", len(embeddings.images))
        for start in range(0, len(embeddings.images), _PART_ROWS):
            stop = min(start + _PART_ROWS, len(embeddings.images))
            writing.write_part(writer, start, stop)
            progress.advance(stop - start)
        progress.stop()
    texts = embeddings.texts
    return ImportReport(
        store=str(store),
        name=name,
        fingerprint=spec.fingerprint,
        images=len(embeddings.images),
        captions=len(texts or ()),
        image_width=embeddings.images.width,
        text_width=texts.width if texts else 0,
        features=tuple(form.name for form in features[Modality.IMAGES]),
        seconds=time.perf_counter() - began,
        remarks=tuple(
            f"at least half of {side.name} is one and the same vector: has its encoder collapsed?"
            for side in writing.collapsed
        ),
    )


def _features(embeddings: Embeddings, spec: EncoderSpec) -> dict[Modality, list[Feature]]:
    images, texts = embeddings.images, embeddings.texts
    one_space = texts is None or texts.width == images.width
    features: dict[Modality, list[Feature]] = {}
    for modality, side, parts in (
        (Modality.IMAGES, images, ("vision", "image")),
        (Modality.CAPTIONS, texts, ("text",)),
    ):
        if side is not None:
            shapes: dict[str, tuple[int, ...]] = {"pooled": (side.width,)}
            if one_space:
                shapes["itc"] = (1, side.width)
            features[modality] = [
                Feature(name=n, shape=shape, dtype=side.dtype, fingerprint=spec.part(*parts))
                for n, shape in shapes.items()
            ]
    return features


class _Import:
    """The state of one import: which names were given out, and what each sentence is."""

    def __init__(self, embeddings: Embeddings, source: str, split: str) -> None:
        self.embeddings, self.source, self.split = embeddings, source, split
        self.by_image = np.argsort(embeddings.caption_image, kind="stable")
        self.sorted_image = embeddings.caption_image[self.by_image]
        self.given: dict[str, int] = {}
        sides = [side for side in (embeddings.images, embeddings.texts) if side is not None]
        self.collapsed = [side for side in sides if _is_collapsed(side)]
        # Of all texts: what they are called where they have no words, and their keys.
        self.names = self._text_names()
        self.text_keys = np.empty(len(embeddings.texts or ()), KEY_RAW)
        for start in range(0, len(self.text_keys), _PART_ROWS):
            some = slice(start, start + _PART_ROWS)
            words = [c.encode() for c in embeddings.captions[some]] or [
                b"text " + name for name in self.names[some].tolist()
            ]
            self.text_keys[some] = _digests(words)
        self.spoken = self._spoken()

    def write_part(self, writer: StoreWriter, start: int, stop: int) -> None:
        """Write images [start, stop) with their captions, as one part."""
        keys = self._keys(self.embeddings.images, np.arange(start, stop))
        edges = np.searchsorted(self.sorted_image, np.arange(start, stop + 1))
        named = [key.decode() for key in hex_keys(keys).tolist()]
        items = list(self._items(start, named, edges))
        changed = [n for n, item in enumerate(items) if not writer.unchanged(item, self.source)]
        if not changed:
            return
        part, rows = writer.part(), np.array(changed)
        self._add(writer, part, Modality.IMAGES, keys[rows], start + rows)
        texts = np.concatenate([self.by_image[edges[n] : edges[n + 1]] for n in changed])
        self._add(writer, part, Modality.CAPTIONS, self.text_keys[texts], self.spoken[texts])
        part.add_items(self.source, [(items[n], named[n]) for n in changed])
        part.commit()

    def _add(
        self,
        writer: StoreWriter,
        part: PartWriter,
        modality: Modality,
        keys: NDArray[np.bytes_],
        rows: NDArray[np.int64],
    ) -> None:
        """Add the rows whose keys the store does not hold, each once."""
        side = self.embeddings.images if modality is Modality.IMAGES else self.embeddings.texts
        first = np.sort(np.unique(keys, return_index=True)[1])
        keys, rows = keys[first], rows[first]
        new = ~writer.present(modality, keys)
        if side is None or not new.any():
            return
        vectors = side.rows[rows[new]].astype(np.float32)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        arrays = {"pooled": vectors, "itc": (vectors / lengths).astype(np.float32)[:, None]}
        forms = writer.features[modality]
        part.add(modality, keys[new], {form.name: arrays[form.name] for form in forms})

    def _items(self, start: int, keys: Sequence[str], edges: NDArray[np.int64]) -> Iterator[Item]:
        given, bounds = self.embeddings, edges.tolist()
        texts = self.by_image[bounds[0] : bounds[-1]].tolist()
        for row, key in enumerate(keys, start):
            item_id = given.ids[row] if given.ids else self._fresh(key[:16])
            first, last = (bounds[row - start + n] - bounds[0] for n in (0, 1))
            uri = given.uris[row] if given.uris else f"{self.source}/{item_id}"
            captions = tuple(
                Caption(id=f"{item_id}#{n}", text=self._text(text))
                for n, text in enumerate(texts[first:last])
            )
            meta = {"row": row, **(given.meta[row] if given.meta else {})}
            yield Item(id=item_id, uri=uri, captions=captions, split=self.split, meta=meta)

    def _keys(self, side: Vectors, rows: NDArray[np.int64]) -> NDArray[np.bytes_]:
        """sha256 of vectors' values, the same for float16 and float32 of equal values.

        Equal vectors stand for equal contents, except where the encoder gives one vector to
        nearly everything: there the row counts too.
        """
        values = np.asarray(side.rows[rows], dtype="<f4", order="C")
        if side not in self.collapsed:
            return _digests(values)
        salted = zip(values, rows.tolist(), strict=True)
        return _digests(row.tobytes() + str(n).encode() for row, n in salted)

    def _fresh(self, name: str) -> str:
        """The name, with a number behind it when an equal vector has it already."""
        count = self.given[name] = self.given.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _text_names(self) -> NDArray[np.bytes_]:
        """(m,) a name for each text, made from its vector; none where there are words."""
        texts = self.embeddings.texts
        if texts is None or self.embeddings.captions:
            return np.empty(0, "S16")
        names = np.empty(len(texts), "S16")
        for start in range(0, len(texts), _PART_ROWS):
            some = np.arange(start, min(start + _PART_ROWS, len(texts)))
            names[some] = hex_keys(self._keys(texts, some)).astype("S16")
        return names

    def _text(self, row: int) -> str:
        """The sentence of a text row, or a name made from its vector."""
        given = self.embeddings.captions
        return given[row] if given else f"text {self.names[row].decode()}"

    def _spoken(self) -> NDArray[np.int64]:
        """(m,) the text row whose vector each sentence has: of equal ones, that of the first.

        Raises:
            SourceError: one sentence has different vectors.
        """
        spoken = np.arange(len(self.text_keys))
        rank = KeyTable(self.text_keys[self.by_image]).ranks()[1]
        first = self.by_image[np.unique(rank, return_index=True)[1]]
        spoken[self.by_image] = first[rank]
        texts = self.embeddings.texts
        for row in self.by_image[spoken[self.by_image] != self.by_image].tolist():
            before = int(spoken[row])
            if texts and _distance(texts.rows[before], texts.rows[row]) > _SAME_TEXT:
                raise SourceError(
                    f"texts {before} and {row} are the same sentence, {self._text(row)[:60]!r}, "
                    "with different vectors",
                    hint="a store keeps one vector a sentence; leave `captions` out to keep both",
                )
        return spoken


def _digests(values: Iterable[Any]) -> NDArray[np.bytes_]:
    """(n,) `S32` sha256 of each of what has bytes."""
    return np.frombuffer(b"".join(hashlib.sha256(v).digest() for v in values), KEY_RAW)


def _is_collapsed(side: Vectors) -> bool:
    """Whether at least half of the rows equal the first one."""
    equal = 0
    for start in range(0, len(side), _PART_ROWS):
        block = side.rows[start : start + _PART_ROWS]
        alike = np.flatnonzero(block[:, 0] == side.rows[0, 0])
        equal += int((block[alike] == side.rows[0]).all(axis=1).sum())
    return len(side) > 1 and 2 * equal >= len(side)


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
