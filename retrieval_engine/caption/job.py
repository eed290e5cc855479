"""A whole captioning job: from what was asked for to files, counts and failures."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval_engine.caption.caption_writer import CaptionWriter, TextFiles, row_of
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.explain import draw_explanation
from retrieval_engine.caption.loaded import find_store, open_judge, open_writer, states_notes
from retrieval_engine.caption.run import CaptionRun, Done
from retrieval_engine.caption.source_images import Asked, SourceImage, Targets
from retrieval_engine.errors import UsageError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import DEFAULT_MODEL, Failure
from retrieval_engine.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRequest:
    """What is to be captioned, by whom and where to.

    Attributes:
        targets: image files, folders and sources; none means the whole store.
        store: directory of the store whose `tokens` are used, and which is captioned where there
            are no targets; it need not exist where there are.
        model: checkpoint of the captioner.
        adapter: directory of an adapter for it.
        options: how to choose words.
        split: only the items of this split.
        limit: only the first images.
        out: file of captions, `.jsonl`, `.csv` or `.json`.
        overwrite: begin `out` anew.
        txt_beside: write a `.txt` beside each image that has none.
        rank: order variations by the judge.
        ranker: checkpoint of the judge; default the model's own head, or the store's encoder.
        explain: PNG file that shows where the model looked.
        device: `auto`, `cpu`, `cuda`, …
        dtype: arithmetic; `auto` follows the store.
        batch_size: images at once; None lets the device decide.
        workers: decode workers; None means one for each core.
    """

    targets: tuple[str, ...] = ()
    store: Path = Path("embeddings")
    model: str = DEFAULT_MODEL
    adapter: str = ""
    options: DecodingOptions = field(default_factory=DecodingOptions)
    split: str | None = None
    limit: int | None = None
    out: Path | None = None
    overwrite: bool = False
    txt_beside: bool = False
    rank: bool = False
    ranker: str | None = None
    explain: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts.

        Raises:
            UsageError: an option that would have no effect.
        """
        if self.overwrite and not self.out:
            raise UsageError("`overwrite` needs `out`")
        if self.ranker and not self.rank:
            raise UsageError(f"`ranker={self.ranker!r}` has no effect without `rank`")
        if self.explain and not self.is_single:
            raise UsageError("`explain` draws one image: name one image file")
        if self.explain and (self.out or self.txt_beside or self.options.num_captions > 1):
            raise UsageError("`explain` draws one caption and writes no other file")

    @property
    def is_single(self) -> bool:
        """Whether one image file is all there is."""
        return len(self.targets) == 1 and Path(os.path.expanduser(self.targets[0])).is_file()


class CaptionJob:
    """One captioning run over everything that a request names.

    Attributes:
        captioned: images that got captions in this run.
        skipped: images that had theirs already.
        encoded: images whose vision states were not stored.
        failures: one for each image that could not be read.
        notes: lines for people.
        seconds: wall time.
    """

    def __init__(self, request: CaptionRequest) -> None:
        self.request = request
        self.captioned = self.skipped = self.encoded = 0
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.seconds = 0.0

    def run(self, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
        """Caption everything; a row for each image, as in a `.jsonl` file.

        Raises:
            UsageError: options contradict each other or what is in `out`.
            CheckpointInvalid: the model writes no captions.
            StoreNotFound: there is neither a target nor a store.
        """
        request, progress = self.request, progress or Silent()
        store = find_store(request.store, needed=not request.targets)
        asked = Asked.of(request.targets, store, split=request.split, limit=request.limit)
        self.notes.extend(asked.notes)
        run = self._open(store)
        start = time.perf_counter()
        with ExitStack() as stack:
            file = stack.enter_context(self._file(run)) if request.out else None
            texts = TextFiles() if request.txt_beside else None
            progress.start("captioning", asked.count)
            for done in run(self._left(iter(asked.images), file, texts, progress), progress):
                if file:
                    file.add(done)
                if texts:
                    texts.add(done)
                self._count(done)
                yield from (row_of(captioned, run.name) for captioned in done.captioned)
            if file:
                file.finish()
        progress.stop()
        self.seconds = time.perf_counter() - start
        self.encoded = run.encoded
        if texts and texts.kept:
            self.notes.append(f"{texts.kept:,} images had a .txt, which was left as it was")
        if texts and texts.outside:
            self.notes.append(
                f"{texts.outside:,} images lie outside the folder of their source: no .txt was "
                "written beside them"
            )

    def _open(self, store: Store | None) -> CaptionRun:
        request = self.request
        where = {"device": request.device, "dtype": request.dtype}
        captioner = open_writer(request.model, store, adapter=request.adapter, **where)
        judge = open_judge(request.ranker, request.model, store, **where) if request.rank else None
        run = CaptionRun(
            captioner,
            request.options,
            store=store,
            judge=judge,
            batch_size=request.batch_size or 0,
            workers=request.workers or 0,
        )
        if request.options.prompt is None and not captioner.says_prompt:
            self.notes.append(
                f"{request.model} does not say what prompt it was trained with: its authors' is "
                f"taken, {captioner.prompt!r}; `prompt=''` is none"
            )
        if not request.is_single:
            self.notes.extend(states_notes(run, store, request.model))
        return run

    def _file(self, run: CaptionRun) -> CaptionWriter:
        assert self.request.out is not None
        return CaptionWriter(
            self.request.out, run.settings, run.name, overwrite=self.request.overwrite
        )

    def _left(
        self,
        images: Iterator[SourceImage],
        file: CaptionWriter | None,
        texts: TextFiles | None,
        progress: Progress,
    ) -> Iterator[SourceImage]:
        """The images that still lack what is to be written."""
        for image in images:
            had = file is not None and image.name in file.done
            if file is None and texts is not None:
                had = texts.has(image)
            if had:
                self.skipped += 1
                progress.advance()
            else:
                yield image

    def _count(self, done: Done) -> None:
        self.captioned += len(done.captioned)
        self.failures.extend(done.failures)

    def explain(self) -> str:
        """Caption the one image and draw where the model looked; the caption.

        Raises:
            UsageError: this kind of model cannot be looked into.
            DecodeError: the image cannot be read.
        """
        request = self.request
        assert request.explain is not None
        (image,) = Targets(request.targets)
        where = {"device": request.device, "dtype": request.dtype}
        captioner = open_writer(request.model, None, adapter=request.adapter, **where)
        return draw_explanation(captioner, image, request.options, request.explain)
