"""Writes vectors of another encoder into a store, as if they had been encoded here."""

import hashlib
import time
from collections.abc import Iterator
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
    """The state of one import: names that were given out, texts that were written."""

    def __init__(self, embeddings: Embeddings, source: str, split: str) -> None:
        self.embeddings, self.source, self.split = embeddings, source, split
        self.by_image = np.argsort(embeddings.caption_image, kind="stable")
        self.sorted_image = embeddings.caption_image[self.by_image]
        self.given: dict[str, int] = {}
        self.texts: dict[str, int] = {}
        sides = [side for side in (embeddings.images, embeddings.texts) if side is not None]
        self.collapsed = [side for side in sides if _is_collapsed(side)]

    def write_part(self, writer: StoreWriter, start: int, stop: int) -> None:
        """Write images [start, stop) with their captions, as one part."""
        items = list(self._items(start, stop))
        changed = [
            (row, item, key)
            for row, (item, key) in enumerate(items, start)
            if not writer.unchanged(item, self.source)
        ]
        if not changed:
            return
        part = writer.part()
        self._add(writer, part, Modality.IMAGES, {key: row for row, _, key in changed})
        sentences = {c.key: self.texts[c.key] for _, item, _ in changed for c in item.captions}
        self._add(writer, part, Modality.CAPTIONS, sentences)
        part.add_items(self.source, [(item, key) for _, item, key in changed])
        part.commit()

    def _add(
        self, writer: StoreWriter, part: PartWriter, modality: Modality, rows: dict[str, int]
    ) -> None:
        """Add the rows whose keys the store does not hold."""
        side = self.embeddings.images if modality is Modality.IMAGES else self.embeddings.texts
        keys = list(rows)
        if side is None or not keys:
            return
        new = np.flatnonzero(~writer.present(modality, keys))
        if not len(new):
            return
        vectors = side.rows[[rows[keys[i]] for i in new]].astype(np.float32)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        arrays = {"pooled": vectors, "itc": (vectors / lengths).astype(np.float32)[:, None]}
        forms = writer.features[modality]
        kept = {form.name: arrays[form.name] for form in forms}
        part.add(modality, [keys[i] for i in new], kept)

    def _items(self, start: int, stop: int) -> Iterator[tuple[Item, str]]:
        given = self.embeddings
        edges = np.searchsorted(self.sorted_image, np.arange(start, stop + 1))
        for row in range(start, stop):
            key = self._key(given.images, row)
            item_id = given.ids[row] if given.ids else self._fresh(key[:16])
            first, last = edges[row - start], edges[row - start + 1]
            uri = given.uris[row] if given.uris else f"{self.source}/{item_id}"
            captions = tuple(
                Caption(id=f"{item_id}#{n}", text=self._text(int(text)))
                for n, text in enumerate(self.by_image[first:last])
            )
            meta = {"row": row, **(given.meta[row] if given.meta else {})}
            yield Item(id=item_id, uri=uri, captions=captions, split=self.split, meta=meta), key

    def _key(self, side: Vectors, row: int) -> str:
        """sha256 of a vector's values, the same for float16 and float32 of equal values.

        Equal vectors stand for equal contents, except where the encoder gives one vector to
        nearly everything: there the row counts too.
        """
        values = np.ascontiguousarray(side.rows[row], dtype="<f4").tobytes()
        salt = str(row).encode() if side in self.collapsed else b""
        return hashlib.sha256(values + salt).hexdigest()

    def _fresh(self, name: str) -> str:
        """The name, with a number behind it when an equal vector has it already."""
        count = self.given[name] = self.given.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _text(self, row: int) -> str:
        """The sentence of a text row, or a name made from its vector."""
        texts = self.embeddings.texts
        if texts is None:
            raise SourceError("a caption has no vector")
        given = self.embeddings.captions
        text = given[row] if given else f"text {self._key(texts, row)[:16]}"
        before = self.texts.setdefault(Caption(id="", text=text).key, row)
        if before != row and _distance(texts.rows[before], texts.rows[row]) > _SAME_TEXT:
            raise SourceError(
                f"texts {before} and {row} are the same sentence, {text[:60]!r}, with different "
                "vectors",
                hint="a store keeps one vector a sentence; leave `captions` out to keep both",
            )
        return text


def _is_collapsed(side: Vectors) -> bool:
    """Whether at least half of the rows equal the first one."""
    alike = np.flatnonzero(side.rows[:, 0] == side.rows[0, 0])
    equal = sum(bool((side.rows[row] == side.rows[0]).all()) for row in alike)
    return len(side) > 1 and 2 * equal >= len(side)


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
