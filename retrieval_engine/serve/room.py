"""The engine room: the models' threads, the threads that decode, and what they share."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from retrieval_engine.engine import Engine
from retrieval_engine.machine import cache_folder, usable_cores
from retrieval_engine.search import Hits
from retrieval_engine.serve.answering import captioner_work, encoder_work, matcher_work, prepare
from retrieval_engine.serve.batcher import Batcher
from retrieval_engine.serve.figures import Figures
from retrieval_engine.serve.heat_maps import sheet
from retrieval_engine.serve.live import EXTERNAL, Live
from retrieval_engine.serve.pictures import ServedPictures
from retrieval_engine.serve.questions import (
    Explain,
    Explained,
    Like,
    Match,
    Picture,
    Question,
    Rerank,
    Vectors,
    Write,
    Written,
)
from retrieval_engine.serve.refusals import Overloaded, Stopping
from retrieval_engine.serve.settings import ServeSettings
from retrieval_engine.serve.thumbnails import Thumbnails
from retrieval_engine.sources.decode import decode

T = TypeVar("T")
_HEALTH_WORDS = "a dog"


class Room:
    """All that requests are answered with.

    Args:
        engine: what is served.
        settings: how many wait and are worked on at once.
        figures: where is counted.

    Attributes:
        live: the searcher as it is now.
        pictures: images of items.
        encoder, matcher, captioner: each model's thread.
    """

    def __init__(self, engine: Engine, settings: ServeSettings, figures: Figures) -> None:
        self.settings = settings
        self.live = Live(engine, caption_models=settings.caption_models, reload_s=settings.reload_s)
        folder = Path(settings.cache) if settings.cache else cache_folder()
        kept = Thumbnails(folder / "thumbnails", settings.cache_bytes)
        self.pictures = ServedPictures(self.live, max_pixels=settings.max_pixels, kept=kept)
        self.encoder: Batcher[Question | Like, Hits | Vectors] = self._batcher(
            "encoder", partial(encoder_work, self.live), figures
        )
        self.matcher: Batcher[Match | Rerank | Explain, Hits | Vectors | Explained] = self._batcher(
            "matcher", partial(matcher_work, self.live), figures
        )
        self.captioner: Batcher[Write, Written] = self._batcher(
            "captioner", partial(captioner_work, self.live), figures
        )
        self._hands = ThreadPoolExecutor(
            max_workers=max(2, usable_cores()), thread_name_prefix="vlre-io"
        )
        self._in_hand = 0
        self._adding = asyncio.Lock()
        figures.watch("vlre_items", "Images that are searched", self._items)
        figures.watch("vlre_reloads", "Times the store was opened again", self._reloads)

    def _batcher(
        self, name: str, work: Callable[[Sequence[Any]], Sequence[Any]], figures: Figures
    ) -> Batcher[Any, Any]:
        made: Batcher[Any, Any] = Batcher(
            name,
            work,
            max_batch=self.settings.max_batch,
            max_waiting=self.settings.max_waiting,
            observe=figures.note_batches(name),
        )
        figures.watch(f"vlre_waiting_{name}", f"Questions for the {name}", lambda: made.waiting)
        return made

    def _items(self) -> float:
        return len(self.live.searcher.catalog) if self.live.is_ready else 0

    def _reloads(self) -> float:
        return max(0, self.live.reloads)

    async def off_loop(self, act: Callable[..., T], *given: Any) -> T:
        """What reads files or decodes, in a thread of a few.

        Raises:
            Overloaded: too much of it waits.
        """
        if self._in_hand >= self.settings.max_waiting:
            raise Overloaded("decoder", 1)
        self._in_hand += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._hands, act, *given)
        finally:
            self._in_hand -= 1

    async def picture(
        self, data: bytes | None, item_id: str | None, *, reader: Any = None
    ) -> Picture:
        """An image that was sent, or an item's, ready for the encoder or for `reader`.

        Args:
            data: the file that was sent; None for an item.
            item_id: the item.
            reader: gives the model that needs its vision states; None where `itc` is needed.
        """
        return await self.off_loop(self._picture, data, item_id, reader)

    def _picture(self, data: bytes | None, item_id: str | None, reader: Any) -> Picture:
        content = self.pictures.read(item_id or "") if data is None else data
        return self.live.steadily(
            lambda searcher: prepare(
                content,
                searcher,
                max_pixels=self.settings.max_pixels,
                reader=reader() if reader else None,
            )
        )

    async def add(self, images: Sequence[bytes], captions: Sequence[str]) -> dict[str, int]:
        """Add images to the store, those of one request after those of another.

        Returns:
            How many were `added`, were `known`, and are searched now (`items`).

        Raises:
            DecodeError: one is no usable image; none was added.
        """
        async with self._adding:
            return await self.off_loop(self._add, images, captions)

    def _add(self, images: Sequence[bytes], captions: Sequence[str]) -> dict[str, int]:
        for image in images:
            decode(image, max_pixels=self.settings.max_pixels)
        found = self.live.add(list(images), list(captions) or None).images
        items = len(self.live.searcher.catalog)
        return {"added": found.encoded, "known": found.reused, "items": items}

    def sheet(self, data: bytes, found: Explained) -> bytes:
        """A PNG of an image and of it for each word; see `heat_maps.sheet`."""
        return sheet(decode(data, max_pixels=self.settings.max_pixels), found)

    async def is_healthy(self, within_s: float = 5.0) -> bool:
        """Whether the encoder answers: a real forward pass, before all that waits."""
        if not self.live.is_ready:
            return False
        if self.live.searcher.spec.family == EXTERNAL:
            return True
        question = Question(((_HEALTH_WORDS, 1.0),), k=1)
        try:
            async with asyncio.timeout(within_s):
                await self.encoder.ask_all([question], is_urgent=True)
        except (TimeoutError, Stopping):
            return False
        return True

    def close(self) -> None:
        """Answer what was taken on, and end."""
        for batcher in (self.encoder, self.matcher, self.captioner):
            batcher.close()
        self._hands.shutdown()
        self.live.close()
