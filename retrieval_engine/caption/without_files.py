"""Sentences about images that a program holds, without files of captions."""

import tempfile
from pathlib import Path
from typing import Any

from retrieval_engine.caption.caption_run import CaptionRun
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.loaded import ImagesRequest
from retrieval_engine.caption.source_images import of_source
from retrieval_engine.errors import SourceError, UsageError
from retrieval_engine.sources.from_python import GivenSource, given_images
from retrieval_engine.store import Store


def caption_given(
    images: Any,
    n: int,
    *,
    model: str,
    store: Store | None,
    device: str = "auto",
    how: DecodingOptions | None = None,
) -> list[list[str]]:
    """N different sentences for each image, best first.

    Args:
        images: see `given_images`.
        n: at least 1.
        model: checkpoint of the captioner.
        store: its vision states are used where it has the images'.
        device: see `open_captioner`.
        how: how to choose words; n sentences are written whatever it says of them.

    Raises:
        CheckpointInvalid: the model writes no captions.
        SourceError: an image cannot be read.
    """
    if n < 1:
        raise UsageError(f"`n` is {n}; it must be at least 1")
    how = how or DecodingOptions(num_captions=n, beams=max(n, 3))
    request = ImagesRequest(model=model, device=device)
    run = CaptionRun(request.captioner(store), how, store=store)
    written: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = GivenSource(given_images(images), Path(folder))
        for done in run(of_source(source)):
            if done.failures:
                failure = done.failures[0]
                raise SourceError(f"{failure.item_id}: {failure.reason}")
            written += [list(captioned.captions) for captioned in done.captioned]
    return written
