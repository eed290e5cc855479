"""A whole captioning job: from what was asked for to files, counts and failures."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval_engine.caption.caption_run import CaptionRun
from retrieval_engine.caption.caption_writer import CaptionWriter, TextFiles, row_of
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.explain import draw_explanation
from retrieval_engine.caption.loaded import ImagesRequest, states_notes
from retrieval_engine.caption.source_images import SourceImage, Targets
from retrieval_engine.errors import UsageError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Failure
from retrieval_engine.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRequest(ImagesRequest):
    """What is to be captioned, by whom and where to; see `ImagesRequest` for the rest.

    Attributes:
        adapter: directory of an adapter for the captioner.
        options: how to choose words.
        out: file of captions, `.jsonl`, `.csv` or `.json`.
        txt_beside: write a `.txt` beside each image that has none.
        rank: order variations by the judge.
        explain: PNG file that shows where the model looked.
    """

    adapter: str = ""
    options: DecodingOptions = field(default_factory=DecodingOptions)
    out: Path | None = None
    txt_beside: bool = False
    rank: bool = False
    explain: Path | None = None

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
        store, asked = request.find()
        self.notes.extend(asked.notes)
        with ExitStack() as stack:
            run = stack.enter_context(
                request.opened_run(
                    store,
                    request.options,
                    adapter=request.adapter,
                    is_judged=request.rank,
                    progress=progress,
                )
            )
            self._remark(run, store)
            start = time.perf_counter()
            file = texts = None
            if request.out:
                file = stack.enter_context(
                    CaptionWriter(request.out, run.settings, run.name, overwrite=request.overwrite)
                )
            if request.txt_beside:
                texts = TextFiles()

            def had(image: SourceImage) -> bool:
                there = file.has(image) if file else texts is not None and texts.has(image)
                self.skipped += there
                return there

            progress.start("captioning", asked.count)
            for done in run(asked.left(had, progress), progress):
                if file:
                    file.add(done)
                if texts:
                    texts.add(done)
                self.captioned += len(done.captioned)
                self.failures.extend(done.failures)
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

    def _remark(self, run: CaptionRun, store: Store | None) -> None:
        request, facts = self.request, run.facts
        if request.options.prompt is None and not facts.says_prompt:
            self.notes.append(
                f"{request.model} does not say what prompt it was trained with: its authors' is "
                f"taken, {facts.prompt!r}; `prompt=''` is none"
            )
        if not request.is_single:
            self.notes.extend(states_notes(run, store, request.model))

    def explain(self) -> str:
        """Caption the one image and draw where the model looked; the caption.

        Raises:
            UsageError: this kind of model cannot be looked into.
            DecodeError: the image cannot be read.
        """
        request = self.request
        assert request.explain is not None
        (image,) = Targets(request.targets)
        captioner = request.captioner(None, adapter=request.adapter)
        return draw_explanation(captioner, image, request.options, request.explain)
