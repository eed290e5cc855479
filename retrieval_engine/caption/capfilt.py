"""CapFilt: a captioner adds sentences to a noisy corpus, a filter takes wrong ones out.

BLIP's own bootstrapping (Li et al., ICML 2022, section 3.3): every image gets a synthetic
caption, and of the original and the synthetic ones those stay that the ITM head calls a match. Both
models start from stored vision states. What the models said is kept in `decisions.jsonl`, so that
a killed run goes on, and another threshold costs nothing.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retrieval_engine.caption.caption_run import Captioned
from retrieval_engine.caption.caption_writer import CaptionWriter
from retrieval_engine.caption.cleaned import CleaningTally, write_cleaned
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.loaded import ImagesRequest, states_notes
from retrieval_engine.errors import UsageError
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Failure, Json

DECISIONS = "decisions.jsonl"
THRESHOLD = 0.5  # the head's own decision: the larger of its two logits


@dataclass(frozen=True, slots=True, kw_only=True)
class CapFiltRequest(ImagesRequest):
    """What is to be cleaned, by whom and where to; see `ImagesRequest` for the rest.

    Attributes:
        out: directory of the cleaned data set.
        options: how to write; by default sampled from the nucleus, as BLIP did: beams give safer
            and duller captions.
        threshold: least probability of a match that a caption is kept with.
        with_images: put the images' bytes into the Parquet file, so that it is a source alone.
    """

    out: Path
    options: DecodingOptions = field(default_factory=lambda: DecodingOptions(sample=True))
    threshold: float = THRESHOLD
    with_images: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: a threshold that is no probability.
        """
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"`threshold` is {self.threshold}, must be between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapFiltReport:
    """How many images and captions a CapFilt run saw, kept and dropped.

    Attributes:
        out: directory of the cleaned data set.
        images: that were looked at, in this run and earlier ones.
        encoded: of this run, those whose vision states were not stored.
        original: captions the images came with.
        synthetic: captions that were written.
        empty: images that kept no caption and are left out.
        failures: one for each image that could not be read.
    """

    out: str
    images: int
    encoded: int
    original: CleaningTally
    synthetic: CleaningTally
    empty: int
    failures: list[Failure]

    def to_json(self) -> dict[str, Json]:
        """The report as one JSON object."""
        return {
            "out": self.out,
            "pictures": self.images,
            "encoded": self.encoded,
            "original": asdict(self.original),
            "synthetic": asdict(self.synthetic),
            "pictures_without_captions": self.empty,
            "failed": len(self.failures),
        }


class CapFiltJob:
    """One run of CapFilt: writes, judges and cleans captions.

    Attributes:
        notes: lines for people.
    """

    def __init__(self, request: CapFiltRequest) -> None:
        self.request = request
        self.notes: list[str] = []

    def run(self, progress: Progress | None = None) -> CapFiltReport:
        """Caption, filter and write the cleaned data set.

        Raises:
            UsageError: nothing can judge captions, or `out` holds another run.
            CheckpointInvalid: the model writes no captions.
        """
        request, progress = self.request, progress or Silent()
        store, asked = request.find()
        failures: list[Failure] = []
        with ExitStack() as stack:
            opened = request.opened_run(store, request.options, is_judged=True, judge_own=True)
            run = stack.enter_context(opened)
            self.notes += [*asked.notes, *states_notes(run, store, request.model)]
            file = stack.enter_context(
                CaptionWriter(
                    request.out / DECISIONS,
                    run.settings,
                    run.name,
                    overwrite=request.overwrite,
                    to_row=_row_of,
                )
            )
            progress.start("captioning and filtering", asked.count)
            for done in run(asked.left(file.has, progress), progress):
                file.add(done)
                failures.extend(done.failures)
            file.finish()
            written = write_cleaned(
                file.rows,
                request.out,
                threshold=request.threshold,
                with_images=request.with_images,
            )
        progress.stop()
        if written.unreachable and not request.with_images:
            self.notes.append(
                f"{written.unreachable:,} images are no files of their own: read the cleaned "
                "set as a source with `with_images`"
            )
        return CapFiltReport(
            out=str(request.out),
            images=written.images,
            encoded=run.encoded,
            original=written.original,
            synthetic=written.synthetic,
            empty=written.empty,
            failures=failures,
        )


def _row_of(captioned: Captioned, run: str) -> dict[str, Any]:
    """What was said of an image: original and synthetic captions with their matches."""
    item = captioned.image.item
    return {
        "image": item.id,
        "source": captioned.image.source,
        "uri": item.uri,
        "split": item.split,
        "original": [
            {"id": caption.id, "text": caption.text, "match": round(match, 5)}
            for caption, match in zip(item.captions, captioned.own_matches, strict=True)
        ],
        "synthetic": [
            {"id": f"{item.id}#synthetic{number}", "text": text, "match": round(match, 5)}
            for number, (text, match) in enumerate(
                zip(captioned.captions, captioned.matches, strict=True)
            )
        ],
        "run": run,
    }
