"""A store, an index where there is one, and their model, followed as they change."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import NoImages, StoreNotFound
from retrieval_engine.records import DEFAULT_INDEX, DEFAULT_MODEL, Modality, data_frame
from retrieval_engine.search.opened import open_searcher
from retrieval_engine.store import Store, open_store
from retrieval_engine.store.mirror import local_store

if TYPE_CHECKING:
    from retrieval_engine.index.catalog import Entry
    from retrieval_engine.models import Encoder
    from retrieval_engine.search.searcher import Searcher

_BLOCK = 1024  # entries read at once


class FollowedStore:
    """A store and an index as they are now: opened again when another process has changed them.

    Args:
        store: directory of the store; it may be made later.
        index: an index that must be used; None uses the default one where it goes with the store.
        model: checkpoint, see `Engine`.
        head: directory of a head through which the store is seen.
        split: only the items of this split.
        device: `auto`, `cpu`, `cuda`, …

    Attributes:
        store_path: directory of the store.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        index: str | os.PathLike[str] | None,
        *,
        model: "str | Encoder",
        head: str | os.PathLike[str] | None,
        split: str | None,
        device: str,
    ) -> None:
        self.store_path = local_store(Path(store).expanduser())
        self._index = None if index is None else Path(index).expanduser()
        self._default_index = Path(os.environ.get("VLRE_INDEX") or DEFAULT_INDEX).expanduser()
        self._encoder: Encoder | None = None if isinstance(model, str) else model
        self._model = model if isinstance(model, str) else model.spec.checkpoint
        self._device, self._split = device, split
        self._head = None if head is None else Path(head).expanduser()
        self._scope: frozenset[str] = frozenset()  # sources that are searched; none for all
        self._searcher: Searcher | None = None
        self._seen: object = None
        self._lock = threading.RLock()

    @property
    def device(self) -> str:
        """Where models run, as it was asked for."""
        return self._device

    def searcher(self) -> "Searcher":
        """What searches run on: the store and the index as they are now.

        It stays as it is when they change; ask again for one that knows what is new.
        """
        with self._lock:
            seen = (self._scope, *map(_state, self._watched()))
            if self._searcher is None or seen != self._seen:
                if self._searcher is not None:
                    self._encoder = self._searcher.opened or self._encoder
                self._searcher = open_searcher(
                    self.store_path,
                    self._index,
                    default_index=self._default_index,
                    head=self._head,
                    split=self._split,
                    sources=self._scope,
                    device=self._device,
                    model=self._model,
                    encoder=self._encoder,
                )
                self._seen = seen
            return self._searcher

    def _watched(self) -> list[Path]:
        of_store = [self.store_path / name for name in ("store.json", "manifest.json")]
        return [*of_store, self.index_path / "manifest.json"]

    @property
    def index_path(self) -> Path:
        """Directory of the index, whether or not one is there."""
        return self._index or self._default_index

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
                self._encoder = open_encoder(self._model or default_model(), device=self._device)
        return self._encoder

    def _any_images(self) -> "Searcher | None":
        try:
            return self.searcher()
        except (StoreNotFound, NoImages):
            return None

    def __len__(self) -> int:
        searcher = self._any_images()
        return len(searcher.numbers) if searcher else 0

    def __iter__(self) -> "Iterator[Entry]":
        if not (searcher := self._any_images()):
            return
        for start in range(0, len(searcher.numbers), _BLOCK):
            yield from searcher.catalog.entries(searcher.numbers[start : start + _BLOCK])

    def __getitem__(self, item_id: str) -> "Entry":
        """The item with an id.

        Raises:
            KeyError: there is none.
        """
        return self.searcher().catalog.entries([self._number(item_id)])[0]

    def __contains__(self, item_id: object) -> bool:
        searcher = self._any_images()
        if searcher is None or not isinstance(item_id, str):
            return False
        return searcher.catalog.number_of(item_id) >= 0

    def vectors(self, feature: str = "itc") -> NDArray[np.float32]:
        """(n, d) float32 features of all items in their order; (n, 32, d) of BLIP-2's `itc`."""
        from retrieval_engine.encoding.without_store import narrowed

        store, searcher = self._seen_store(), self.searcher()
        rows = searcher.catalog.image_rows(store, searcher.numbers)
        return narrowed(store.read(Modality.IMAGES, feature, rows))

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
            encoder = self.searcher().encoder if self._store() else self._base_encoder()
            return encode_given(encoder, inputs, feature)

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
        return self.searcher().notes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(store={str(self.store_path)!r}): {len(self):,} images"

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

    def _number(self, item_id: str) -> int:
        number = self.searcher().catalog.number_of(item_id)
        if number < 0:
            raise KeyError(f"no item has the id {item_id!r}")
        return number


def default_model() -> str:
    """The checkpoint of a new store: `$VLRE_MODEL`, else the one that ships with the package."""
    return os.environ.get("VLRE_MODEL") or DEFAULT_MODEL


def _state(path: Path) -> object:
    """What differs after a file was replaced; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
