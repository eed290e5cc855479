"""`Engine`: the front door of the library, as short as the commands."""

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import SourceError, StoreNotFound, UsageError
from retrieval_engine.records import (
    DEFAULT_INDEX,
    DEFAULT_MODEL,
    DEFAULT_STORE,
    Json,
    Modality,
)
from retrieval_engine.search import Hits, open_searcher
from retrieval_engine.search.hits import data_frame
from retrieval_engine.sources import KINDS, Source
from retrieval_engine.sources.from_python import GivenSource, given_images
from retrieval_engine.sources.image_forms import is_image
from retrieval_engine.store import Store, open_store

if TYPE_CHECKING:
    from retrieval_engine.caption import DecodingOptions
    from retrieval_engine.encoding import EncodeOptions, EncodeReport
    from retrieval_engine.evaluate import Evaluation
    from retrieval_engine.index import IndexReport, UpdateReport
    from retrieval_engine.index.catalog import Entry
    from retrieval_engine.models import Encoder
    from retrieval_engine.progress import Progress
    from retrieval_engine.search import Searcher


class Engine:
    """A searchable collection of images: a store, an index where there is one, and their model.

        engine = Engine("photos")
        engine.search("a dog on grass")

    What other processes add to the store or take out of it shows at the next call.

    Args:
        path: a store; or a folder of pictures or another source, which is encoded into `store`
            as far as it is new, and whose items alone are then searched.
        store: directory of the store; made by the first `add`. Default `$VLRE_STORE`, else
            `embeddings`.
        index: an index over it, which must be there. Default `$VLRE_INDEX`, else
            `indices/built/default`, where that is there and goes with the store.
        model: checkpoint for a new store, default `$VLRE_MODEL`, else the model that ships with
            the package; for a store that is there, where its checkpoint is now.
        head: directory of a head through which the store is seen.
        split: only the items of this split.
        device: `auto`, `cpu`, `cuda`, …
        progress: told about every item that is encoded.

    Attributes:
        store_path: directory of the store.
        added: what opening a folder encoded, or None.

    Raises:
        UsageError: `path` is neither a folder, nor a store, nor a source.
        VlreError: the store is damaged, or of another model.
    """

    def __init__(  # noqa: PLR0913 (a front door)
        self,
        path: str | os.PathLike[str] = "",
        *,
        store: str | os.PathLike[str] | None = None,
        index: str | os.PathLike[str] | None = None,
        model: str = "",
        head: str | os.PathLike[str] | None = None,
        split: str | None = None,
        device: str = "auto",
        progress: "Progress | None" = None,
    ) -> None:
        source = "" if _is_store(path) else os.fspath(path)
        if source and not _is_source(source):
            raise UsageError(
                f"{source} is neither a folder of pictures nor a store",
                hint=f"a new store begins with Engine(store={source!r}).add(images)",
            )
        place = store or (path if path and not source else os.environ.get("VLRE_STORE"))
        self.store_path = Path(place or DEFAULT_STORE).expanduser()
        self._index = None if index is None else Path(index).expanduser()
        self._default_index = Path(os.environ.get("VLRE_INDEX") or DEFAULT_INDEX).expanduser()
        self._model, self._device, self._split = model, device, split
        self._head = None if head is None else Path(head).expanduser()
        self._scope: set[str] = set()  # names of the sources that are searched; none for all
        self._encoder: Encoder | None = None
        self._searcher: Searcher | None = None
        self._seen: object = None
        self._lock = threading.RLock()
        self.added: EncodeReport | None = None
        if source:
            self.added = self.add(source, progress=progress)
            self._scope = {self._added_name}

    # Images in

    def add(
        self,
        images: Any,
        captions: Any = None,
        ids: Iterable[str] | str | None = None,
        meta: Iterable[Mapping[str, Json]] | Mapping[str, Json] | None = None,
        *,
        options: "EncodeOptions | None" = None,
        progress: "Progress | None" = None,
    ) -> "EncodeReport":
        """Encode images that the store does not hold yet.

        Args:
            images: a folder or another source by its name; or one image or several: paths, PIL,
                arrays, bytes, a DataFrame, a data set of Hugging Face or torch, a generator.
                What is no file is kept in the folder `STORE-pictures`.
            captions: of each image a sentence or several.
            ids: of each image; by default its path, else a digest of its content.
            meta: of each image a mapping of plain values.
            options: see `EncodeOptions`; by default as the store is.
            progress: told about every item.

        Returns:
            Counts, times, and one `Failure` for each image that could not be encoded.

        Raises:
            SourceError: none of the images could be encoded.
            UsageError: something is no image, or numbers of captions and images differ.
        """
        from retrieval_engine.encoding import encode, open_changed

        source: Source
        named = isinstance(images, str | os.PathLike) and _is_source(os.fspath(images))
        if named or (hasattr(images, "items") and hasattr(images, "is_partial")):
            if captions is not None or ids is not None or meta is not None:
                raise UsageError("a source says itself what `captions`, `ids` and `meta` are")
            source = open_changed(os.fspath(images), self.store_path) if named else images
        else:
            kept = self.store_path.with_name(f"{self.store_path.name}-pictures")
            source = GivenSource(given_images(images, captions, ids, meta), kept)
        with self._lock:
            encoder = self._base_encoder()
            report = encode(
                source,
                self.store_path,
                encoder=encoder,
                options=options or self._options(),
                progress=progress,
            )
            self._added_name = source.name
            if self._scope:
                self._scope.add(source.name)
            self._seen = None
        if report.failures and not report.images.encoded + report.images.reused:
            first = report.failures[0]
            raise SourceError(f"no image could be encoded; {first.item_id}: {first.reason}")
        return report

    def _options(self) -> "EncodeOptions":
        """To encode as the store was encoded."""
        from retrieval_engine.encoding import EncodeOptions

        store = self._store()
        forms = store.features(Modality.IMAGES) if store else {}
        if not store or "itc" not in forms:
            return EncodeOptions()
        offered = self._base_encoder().features(Modality.IMAGES)
        names = tuple(name for name in forms if name in offered)
        return EncodeOptions(features=names, store_dtype=forms["itc"].dtype)

    def build_index(
        self,
        recipe: str = "auto",
        *,
        feature: str = "itc",
        progress: "Progress | None" = None,
    ) -> "IndexReport":
        """Build an index over the store, which searches use from then on; see `build_index`."""
        from retrieval_engine.index import build_index

        out = self._index or self._default_index
        return build_index(
            self._seen_store(),
            out,
            recipe=recipe,
            split=self._split,
            feature=feature,
            progress=progress,
        )

    def update_index(self, *, progress: "Progress | None" = None) -> "UpdateReport":
        """Add to the index what is newer, and take out what is gone; see `update_index`."""
        from retrieval_engine.index import update_index

        out = self._index or self._default_index
        return update_index(self._seen_store(), out, progress=progress)

    def encode(self, inputs: Any, feature: str = "itc") -> NDArray[np.float32]:
        """Features of sentences or images, which are not stored.

        Args:
            inputs: sentences, or images in any form that `add` takes; one or several.
            feature: name of it.

        Returns:
            (n, d) float32, `itc` of unit length; (n, 32, d) for images of BLIP-2.
        """
        from retrieval_engine.encoding.without_store import encode_given

        with self._lock:
            encoder = self._current().encoder if self._store() else self._base_encoder()
            return encode_given(encoder, inputs, feature)

    # Answers out

    def search(  # noqa: PLR0913 (a front door)
        self,
        queries: Any,
        k: int = 10,
        *,
        rerank: int = 0,
        rerank_model: str = "",
        offset: int = 0,
        captions: bool = False,
        distinct: bool = False,
        min_match: float = 0.0,
    ) -> Any:
        """The k images that fit a query best, or each of several.

        Args:
            queries: words, an image in any form, a (d,) vector, or a weighted mix of those,
                `{"a golden retriever": 2, "a cage": -1}`; or a list of them, or (n, d) vectors.
            k: at least 1.
            rerank: how many of the nearest the cross-encoder puts in a new order; for words.
            rerank_model: another checkpoint for that, such as a real BLIP.
            offset: leave out so many of the best, for the next page.
            captions: answer with captions instead of images.
            distinct: leave out near-duplicates of a better hit.
            min_match: leave out hits that match words with less than this probability.

        Returns:
            `Hits` of one query, or a list of them. The same query has the same scores alone and
            among others, on a CPU.

        Raises:
            StoreNotFound: nothing was added yet.
            VlreError: see `Searcher.search`.
        """
        with self._lock:
            searcher = self._current()
            return searcher.search(
                queries,
                k,
                offset=offset,
                rerank=rerank,
                rerank_model=rerank_model,
                captions=captions,
                distinct=distinct,
                min_match=min_match,
            )

    async def asearch(self, queries: Any, k: int = 10, **how: Any) -> Any:
        """`search` for async callers: it runs in a thread and does not hold up the loop."""
        return await asyncio.to_thread(self.search, queries, k, **how)

    def similar(self, item_id: str, k: int = 10) -> Hits:
        """The k images most like one of the store's, without itself and its copies."""
        with self._lock:
            searcher = self._current()
            return searcher.similar(self._number(item_id), k)

    def caption(
        self,
        images: Any,
        n: int = 1,
        *,
        model: str = "",
        options: "DecodingOptions | None" = None,
    ) -> list[Any]:
        """Sentences about images.

        Args:
            images: one image or several, in any form that `add` takes, or ids of the store's.
            n: different sentences for each image.
            model: checkpoint of the captioner; by default the store's, else the engine's.
            options: how to choose words.

        Returns:
            A list of n sentences for one image; a list of such lists for several.

        Raises:
            CheckpointInvalid: the model writes no captions.
            SourceError: an image cannot be read.
        """
        from retrieval_engine.caption.without_files import caption_given

        one = is_image(images) or isinstance(images, str)
        asked = [images] if one else images
        if isinstance(asked, list | tuple):
            asked = [self[x].uri if isinstance(x, str) and x in self else x for x in asked]
        store = self._store()
        model = model or self._model or (store.spec.checkpoint if store else _default_model())
        found = caption_given(asked, n, model=model, store=store, device=self._device, how=options)
        return found[0] if one else found

    def evaluate(self, rerank: int = 0) -> "Evaluation":
        """Exact recall of the store, both ways; `rerank` adds the cross-encoder's order."""
        from retrieval_engine.evaluate import RecallSettings, evaluate_store

        settings = RecallSettings(rerank=rerank, split=self._split, device=self._device)
        return evaluate_store(self._seen_store(), settings)

    # What is there

    def __len__(self) -> int:
        return len(self._numbers()) if self._store() else 0

    def __iter__(self) -> "Iterator[Entry]":
        if not self._store():
            return
        catalog = self._current().catalog
        for number in self._numbers().tolist():
            yield from catalog.entries([number])

    def __getitem__(self, item_id: str) -> "Entry":
        """The item with an id.

        Raises:
            KeyError: there is none.
        """
        return self._current().catalog.entries([self._number(item_id)])[0]

    def __contains__(self, item_id: object) -> bool:
        if not isinstance(item_id, str) or not self._store():
            return False
        return self._current().catalog.number_of(item_id) >= 0

    def vectors(self, feature: str = "itc") -> NDArray[np.float32]:
        """(n, d) float32 features of all items in their order; (n, 32, d) of BLIP-2's `itc`."""
        from retrieval_engine.encoding.without_store import narrowed

        store, catalog = self._seen_store(), self._current().catalog
        rows = catalog.image_rows(store, self._numbers())
        return narrowed(store.read(Modality.IMAGES, feature, rows))

    def to_pandas(self) -> Any:
        """The items as a DataFrame: id, uri, source, captions, and metadata as columns.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return data_frame(
            [
                {
                    "id": entry.id,
                    "uri": entry.uri,
                    "source": entry.source,
                    "captions": [caption.text for caption in entry.captions],
                    **entry.meta,
                }
                for entry in self
            ]
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people about what answers are made from."""
        return self._current().notes

    def __repr__(self) -> str:
        return f"Engine(store={str(self.store_path)!r}): {len(self):,} images"

    def close(self) -> None:
        """Close open files; the next call opens them again."""
        if self._searcher and self._searcher.store:
            self._searcher.store.close()
        self._searcher, self._seen = None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # How it stays fresh

    def searcher(self) -> "Searcher":
        """What searches run on: the store and the index as they are now.

        It stays as it is when they change; ask again for one that knows what is new.
        """
        return self._current()

    def _current(self) -> "Searcher":
        """A searcher over the store and the index as they are now."""
        with self._lock:
            seen = [_state(path) for path in self._watched()]
            if self._searcher is None or seen != self._seen:
                if self._searcher is not None:
                    self._encoder = self._searcher.opened or self._encoder
                self._searcher = open_searcher(
                    self.store_path,
                    self._index,
                    default_index=self._default_index,
                    head=self._head,
                    split=self._split,
                    sources=frozenset(self._scope),
                    device=self._device,
                    model=self._model,
                    encoder=self._encoder,
                )
                self._seen = seen
            return self._searcher

    def _watched(self) -> list[Path]:
        index = self._index or self._default_index
        return [self.store_path / name for name in ("store.json", "manifest.json")] + [
            index / "manifest.json"
        ]

    def _store(self) -> Store | None:
        try:
            return open_store(self.store_path)
        except StoreNotFound:
            return None

    def _seen_store(self) -> Store:
        from retrieval_engine.encoding.projected import open_through

        return open_through(self.store_path, self._head)

    def _base_encoder(self) -> "Encoder":
        """The model that images are encoded with: the store's, where there is one."""
        from retrieval_engine.models import open_encoder
        from retrieval_engine.models.text_tower import reopen_for_texts

        if self._encoder is None and self._searcher is not None:
            self._encoder = self._searcher.opened
        if self._encoder is None:
            store = self._store()
            if store:
                self._encoder = reopen_for_texts(store.spec, device=self._device, model=self._model)
            else:
                self._encoder = open_encoder(self._model or _default_model(), device=self._device)
        return self._encoder

    def _numbers(self) -> NDArray[np.int64]:
        """Numbers of the items that are searched."""
        searcher = self._current()
        if searcher.allowed is None:
            return np.arange(len(searcher.catalog))
        return np.flatnonzero(searcher.allowed)

    def _number(self, item_id: str) -> int:
        number = self._current().catalog.number_of(item_id)
        if number < 0:
            raise KeyError(f"no item has the id {item_id!r}")
        return number


def _default_model() -> str:
    return os.environ.get("VLRE_MODEL") or DEFAULT_MODEL


def _is_store(path: str | os.PathLike[str]) -> bool:
    return bool(path) and (Path(path).expanduser() / "store.json").is_file()


def _is_source(text: str) -> bool:
    """Whether a string names a folder or a source rather than one image."""
    kind, colon, _ = text.partition(":")
    if os.path.isdir(os.path.expanduser(text)):
        return True
    return bool(colon) and kind in KINDS.names() and "#" not in text


def _state(path: Path) -> object:
    """What differs after a file was replaced; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
