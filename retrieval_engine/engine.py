"""`Engine`: the front door of the library, as short as the commands."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.records import DEFAULT_STORE, Json
from retrieval_engine.search import Hits
from retrieval_engine.search.followed import FollowedStore, default_model
from retrieval_engine.sources import Source, names_source
from retrieval_engine.sources.from_python import GivenSource, given_images
from retrieval_engine.sources.image_forms import is_image

if TYPE_CHECKING:
    from retrieval_engine.caption import CaptionJob, CaptionRequest, DecodingOptions
    from retrieval_engine.duplicates import DuplicateReport, DuplicateSettings
    from retrieval_engine.encoding import EncodeOptions, EncodeReport
    from retrieval_engine.evaluate import Evaluation, RecallSettings
    from retrieval_engine.index import IndexReport, UpdateReport
    from retrieval_engine.models import Encoder
    from retrieval_engine.progress import Progress


class Engine(FollowedStore):
    """A searchable collection of images: a store, an index where there is one, and their model.

    What other processes add to the store or take out of it shows at the next call.

    Args:
        path: a store; or a folder of pictures or another source, which is encoded into `store`
            as far as it is new, and whose items alone are then searched.
        store: directory of the store; made by the first `add`. Default `$VLRE_STORE`, else
            `embeddings`.
        index: an index over it, which must be there. Default `$VLRE_INDEX`, else
            `indices/built/default`, where that is there and goes with the store.
        model: checkpoint for a new store, default `$VLRE_MODEL`, else the model that ships with
            the package; for a store that is there, where its checkpoint is now. Or an open encoder.
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

    Examples:
        >>> engine = Engine("scenes:8?seed=7", model="vlre-tiny")  # or a folder of pictures
        >>> engine.search("a dog on grass", k=1)[0].uri
        'scenes:7/4'
    """

    def __init__(  # noqa: PLR0913 (a front door)
        self,
        path: str | os.PathLike[str] = "",
        *,
        store: str | os.PathLike[str] | None = None,
        index: str | os.PathLike[str] | None = None,
        model: "str | Encoder" = "",
        head: str | os.PathLike[str] | None = None,
        split: str | None = None,
        device: str = "auto",
        progress: "Progress | None" = None,
    ) -> None:
        source = "" if _is_store(path) else os.fspath(path)
        if source and not names_source(source):
            raise UsageError(
                f"{source} is neither a folder of pictures nor a store",
                hint=f"a new store begins with Engine(store={source!r}).add(images)",
            )
        place = store or (path if path and not source else os.environ.get("VLRE_STORE"))
        place = place or DEFAULT_STORE
        super().__init__(place, index, model=model, head=head, split=split, device=device)
        self.added: EncodeReport | None = None
        if source:
            self.added = self.add(source, progress=progress)
            self._scope = frozenset({self._added_name})

    def add(
        self,
        images: Any,
        captions: Any = None,
        ids: Iterable[str] | str | None = None,
        meta: Iterable[Mapping[str, Json]] | Mapping[str, Json] | None = None,
        *,
        options: "EncodeOptions | None" = None,
        on: str = "",
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
            on: a Ray cluster to encode on, see `encode`.
            progress: told about every item.

        Returns:
            Counts, times, and one `Failure` for each image that could not be encoded.

        Raises:
            SourceError: none of the images given could be encoded, or a source cannot be read.
            UsageError: something is no image, or numbers of captions and images differ.
        """
        from retrieval_engine.encoding import EncodeOptions, encode, open_changed

        source: Source
        named = isinstance(images, str | os.PathLike) and names_source(os.fspath(images))
        if named or (hasattr(images, "items") and hasattr(images, "is_partial")):
            if captions is not None or ids is not None or meta is not None:
                raise UsageError("a source says itself what `captions`, `ids` and `meta` are")
            source = open_changed(os.fspath(images), self.store_path) if named else images
        else:
            kept = self.store_path.with_name(f"{self.store_path.name}-pictures")
            source = GivenSource(given_images(images, captions, ids, meta), kept)
        with self._lock:
            encoder, there = self._base_encoder(), self._store()
            how = options or (EncodeOptions.like(there, encoder) if there else EncodeOptions())
            where = self.store_path
            report = encode(source, where, encoder=encoder, options=how, on=on, progress=progress)
            self._added_name = source.name
            if self._scope:
                self._scope |= {source.name}
        none = report.failures and not report.images.encoded + report.images.reused
        if none and isinstance(source, GivenSource):
            first = report.failures[0]
            raise SourceError(f"no image could be encoded; {first.item_id}: {first.reason}")
        return report

    def build_index(
        self, recipe: str = "auto", *, progress: "Progress | None" = None, **how: Any
    ) -> "IndexReport":
        """Build an index over the store, which searches use from then on; see `build_index`."""
        from retrieval_engine.index import build_index

        store, index, split = self._seen_store(), self.index_path, self._split
        return build_index(store, index, recipe=recipe, split=split, progress=progress, **how)

    def update_index(self, *, progress: "Progress | None" = None) -> "UpdateReport":
        """Add to the index what is newer, and take out what is gone; see `update_index`."""
        from retrieval_engine.index import update_index

        return update_index(self._seen_store(), self.index_path, progress=progress)

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
        where: str = "",
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
            where: only items of which this holds, as SQL writes it: `taken >= '2023-05'`.

        Returns:
            `Hits` of one query, or a list of them; on a CPU with the same scores alone or among others.

        Raises:
            VlreError: nothing was added yet; and see `Searcher.search`.
        """
        with self._lock:
            return self.searcher().search(
                queries,
                k,
                offset=offset,
                rerank=rerank,
                rerank_model=rerank_model,
                captions=captions,
                distinct=distinct,
                min_match=min_match,
                where=where,
            )

    async def asearch(self, queries: Any, k: int = 10, **how: Any) -> Any:
        """`search` for async callers: it runs in a thread and does not hold up the loop."""
        import asyncio  # a twentieth of a cold search

        return await asyncio.to_thread(self.search, queries, k, **how)

    def similar(self, item_id: str, k: int = 10, where: str = "") -> Hits:
        """The k images most like one of the store's, without itself and its copies."""
        with self._lock:
            return self.searcher().similar(self._number(item_id), k, where)

    def duplicates(
        self,
        settings: "DuplicateSettings | None" = None,
        *,
        progress: "Progress | None" = None,
    ) -> "DuplicateReport":
        """Groups of images that are one picture, the best of each first; see `find_duplicates`.

        Near ones are found with the index, where the engine was given one.
        """
        from retrieval_engine.duplicates import DuplicateSettings, find_duplicates
        from retrieval_engine.search.near_rows import NearRows

        settings, store = settings or DuplicateSettings(split=self._split), self._seen_store()
        near = None if self._index is None else NearRows(self._index, store, settings.split)
        return find_duplicates(store, settings, index=near, progress=progress)

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
        model = model or self._model or (store.spec.checkpoint if store else default_model())
        found = caption_given(asked, n, model=model, store=store, device=self._device, how=options)
        return found[0] if one else found

    def caption_all(self, request: "CaptionRequest") -> "CaptionJob":
        """Captions of whole sources into files, as far as they are not there; see `CaptionJob`.

        Args:
            request: what, how and where to; where it names no images, the store's are meant.
        """
        from retrieval_engine.caption import CaptionJob

        return CaptionJob(replace(request, store=self.store_path))

    def evaluate(
        self,
        rerank: int = 0,
        *,
        settings: "RecallSettings | None" = None,
        progress: "Progress | None" = None,
    ) -> "Evaluation":
        """Exact recall of the store, both ways; see `evaluate_store`.

        Args:
            rerank: candidates per query that the cross-encoder puts in a new order as well.
            settings: all that may be chosen, instead of `rerank`.
            progress: told about re-ranking.
        """
        from retrieval_engine.evaluate import RecallSettings, evaluate_store

        settings = settings or RecallSettings(
            rerank=rerank, split=self._split, device=self._device, model=self._model
        )
        return evaluate_store(self._seen_store(), settings, progress=progress)


def _is_store(path: str | os.PathLike[str]) -> bool:
    return bool(path) and (Path(path).expanduser() / "store.json").is_file()
