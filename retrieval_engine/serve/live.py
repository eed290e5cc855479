"""The searcher that requests use: replaced when the store or the index changes, under load too.

A new one is opened and warmed beside the old one, in the thread that looks for changes; requests
go on with the old one until it is ready. What a change takes from under a request is asked again.
"""

import gc
import logging
import threading
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.engine import Engine
from retrieval_engine.errors import IndexFailure, StoreChanged, StoreDamaged, VlreError
from retrieval_engine.index.catalog import Catalog, Entry
from retrieval_engine.models.captioner import Captioner, open_captioner
from retrieval_engine.search import Searcher
from retrieval_engine.serve.refusals import Refused, Stopping, not_found
from retrieval_engine.store import Store

if TYPE_CHECKING:
    from retrieval_engine.encoding import EncodeReport

T = TypeVar("T")
EXTERNAL = "external"  # vectors that were imported: no encoder is at hand
_KEPT_ENTRIES = 20_000
_WARM = "a dog"
_PATIENCE_S = 20.0
_log = logging.getLogger(__name__)


class Live:
    """An engine's searcher as it is now, and its captioners.

    Args:
        engine: what is served.
        caption_models: checkpoints of the captioners; by default the store's.
        reload_s: how often is looked for changes.

    Attributes:
        reloads: how often the searcher was replaced.
        fault: why the newest state cannot be served; empty where it is.
    """

    def __init__(
        self, engine: Engine, *, caption_models: tuple[str, ...] = (), reload_s: float = 0.5
    ) -> None:
        self.engine = engine
        self.reloads = -1
        self.fault = ""
        self._caption_models = caption_models
        self._reload_s = reload_s
        self._searcher: Searcher | None = None
        self._opened: Searcher | None = None
        self._captioners: dict[str, Captioner] = {}
        self._is_whole = False
        self._turn = threading.Lock()
        self._loading = threading.RLock()  # two models cannot be built at once in a process
        self._stop, self._settled = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vlre-reload", daemon=True)

    def start(self) -> None:
        """Begin to open the store, in the background."""
        self._thread.start()

    def close(self) -> None:
        """Look for no more changes, and close the store."""
        self._stop.set()
        self._settled.set()
        if self._thread.is_alive():
            self._thread.join()
        self.engine.close()

    @property
    def is_ready(self) -> bool:
        """Whether questions can be answered."""
        return self._searcher is not None

    @property
    def searcher(self) -> Searcher:
        """The newest that is ready; the first is waited for.

        Raises:
            Stopping: there is none.
        """
        if self._searcher is None:
            self._settled.wait(_PATIENCE_S)
        if self._searcher is None:
            raise Stopping(self.fault or "the model is being loaded")
        return self._searcher

    @property
    def store(self) -> Store:
        """Its store.

        Raises:
            Stopping: an index is served without one.
        """
        store = self.searcher.store
        if store is None:
            raise Stopping("there is no store, only an index")
        return store

    def steadily(self, act: Callable[[Searcher], T]) -> T:
        """What `act` gives; once more, if the store was changed under its hands."""
        searcher = self.searcher
        try:
            return act(searcher)
        except (StoreChanged, StoreDamaged, IndexFailure):
            self.refresh()
            if self.searcher is searcher:
                raise
            return act(self.searcher)

    def filtered(self, where: str) -> int:
        """How many items satisfy a filter; its answer is kept.

        Raises:
            UsageError: it is none.
        """
        return self.steadily(lambda searcher: int(searcher.filter.mask(where).sum()))

    def entry(self, item_id: str) -> Entry:
        """The item with an id.

        Raises:
            Refused: there is none.
        """
        catalog = self.searcher.catalog
        return catalog.entries([self.number(item_id, catalog)])[0]

    def number(self, item_id: str, catalog: Catalog | None = None) -> int:
        """The number of the item with an id.

        Raises:
            Refused: there is none.
        """
        number = (catalog or self.searcher.catalog).number_of(item_id)
        if number < 0:
            raise not_found(f"no item has the id {item_id[:200]!r}")
        return number

    @property
    def caption_models(self) -> tuple[str, ...]:
        """Names of the captioners; the first answers where none is named."""
        return self._caption_models or (self.searcher.spec.checkpoint,)

    def captioner(self, name: str = "") -> Captioner:
        """A model that writes captions, opened when it is first needed.

        Args:
            name: one of `caption_models`; empty for the first.

        Raises:
            Refused: there is none of that name; no other is ever opened.
            EncoderError: it cannot be opened, or writes none.
        """
        from retrieval_engine.caption.loaded import arithmetic, follows_fast

        known = self.caption_models
        name = name or known[0]
        if name not in known:
            raise Refused(
                422, "unknown_model", f"`model` is {name[:200]!r}; there are {', '.join(known)}"
            )
        with self._loading:
            if name not in self._captioners:
                self._open_towers()
                store = self.searcher.store
                self._captioners[name] = open_captioner(
                    name,
                    device=self.engine.device,
                    dtype=arithmetic("auto", store),
                    fast_decode=follows_fast(store, name),
                )
            return self._captioners[name]

    def add(self, images: list[bytes], captions: list[str] | None) -> "EncodeReport":
        """Encode images into the store, and search them too.

        Raises:
            VlreError: the store cannot be written to.
        """
        with self._loading:
            report = self.engine.add(images, captions)
        self.refresh()
        return report

    def refresh(self) -> None:
        """Open and warm what is there now, if it is something new.

        Raises:
            VlreError: it cannot be opened; the old one goes on.
        """
        with self._turn:
            found = self.engine.searcher()
            if found is self._opened:
                return
            if not isinstance(found.catalog, Remembering):
                found.catalog = Remembering(found.catalog)
            if found.spec.family != EXTERNAL and len(found.catalog):
                # With torch there the text tower uses it: of many words at once it is twice as
                # quick as NumPy, which a command takes for one sentence.
                import torch  # noqa: F401

                found.search(_WARM, 1)
            self._opened = self._searcher = found
            self.reloads += 1

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                was_ready = self.is_ready
                self.refresh()
                if was_ready:  # the first words are answered before images are made ready
                    self._open_towers()
                self.fault = ""
            except VlreError as error:
                if self.fault != error.message:
                    _log.error("what is served stays as it is: %s", error.message)
                self.fault = error.message
            except Exception:  # noqa: BLE001
                # Whatever faiss, HDF5 or torch make of files that are just being written: a thread
                # that ended would never look again, and what is served is still whole.
                _log.exception("looking for changes failed; it is tried again")
                self.fault = "looking for changes failed"
            self._settled.set()
            self._stop.wait(self._reload_s)

    def _open_towers(self) -> None:
        """Build the whole model once words can be asked for: the first image need not wait."""
        searcher = self._searcher
        if searcher is None or self._is_whole or searcher.spec.family == EXTERNAL:
            return
        with self._loading:
            look = searcher.encoder.preprocessor
            pixels = look.pixels(Image.new("RGB", (64, 64)))
            searcher.encoder.encode_images(pixels[None], [searcher.feature])
            self._is_whole = True
            gc.freeze()  # the collector would stop all threads to look at half a million objects


class Remembering:
    """A catalogue that makes each entry once: reading one out of a table costs a tenth of a ms.

    Args:
        catalog: the catalogue.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        keep = lru_cache(maxsize=_KEPT_ENTRIES)
        self._one = keep(lambda number: catalog.entries([number])[0])
        self._content = keep(lambda number: catalog.contents(np.array([number]))[0])
        self.number_of: Callable[[str], int] = keep(catalog.number_of)

    def __len__(self) -> int:
        return len(self._catalog)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)

    def entries(self, numbers: Iterable[int]) -> list[Entry]:
        """As `Catalog.entries`."""
        return [self._one(int(number)) for number in numbers]

    def contents(self, numbers: NDArray[np.int64]) -> list[str | int]:
        """As `Catalog.contents`."""
        return [self._content(number) for number in numbers.tolist()]

    def image_rows(self, store: Store, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `Catalog.image_rows`."""
        return self._catalog.image_rows(store, numbers)

    def of_sources(self, names: Collection[str]) -> NDArray[np.bool_]:
        """As `Catalog.of_sources`."""
        return self._catalog.of_sources(names)
