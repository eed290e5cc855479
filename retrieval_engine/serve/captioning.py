"""Sentences about the images of one request."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.errors import DecodeError, UsageError
from retrieval_engine.models.captioner import Captioner
from retrieval_engine.serve.questions import Picture, Write, Written
from retrieval_engine.serve.refusals import Refused
from retrieval_engine.serve.room import Room
from retrieval_engine.serve.schema import CaptionRequest


async def caption_rows(
    room: Room, asked: CaptionRequest, files: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Write sentences; an image that cannot be read fails alone.

    Args:
        room: what writes.
        asked: the images, and how to choose words.
        files: names of those that were sent, in their order; numbers where there are none.

    Returns:
        For each image a row as `schema.Caption`.

    Raises:
        UsageError: the options contradict each other.
        Refused: too much waits, or there is no such model.
    """
    model = asked.model or room.live.caption_models[0]
    captioner = await room.off_loop(room.live.captioner, model)
    options = _decoding(asked, captioner)
    wanted: list[tuple[bytes | None, str | None]] = [(data, None) for data in asked.images]
    wanted += [(None, item_id) for item_id in asked.ids]
    names = [*(files or [f"image {n}" for n in range(1, len(asked.images) + 1)]), *asked.ids]
    pictures = await asyncio.gather(
        *(room.picture(*which, reader=lambda: captioner) for which in wanted),
        return_exceptions=True,
    )
    good = [picture for picture in pictures if isinstance(picture, Picture)]
    written = iter(await room.captioner.ask_all([Write(model, p, options) for p in good]))
    return [_row(n, p, written) for n, p in zip(names, pictures, strict=True)]


def _decoding(asked: CaptionRequest, captioner: Captioner) -> DecodingOptions:
    drawn = asked.temperature is not None
    if drawn and (asked.beams or 1) > 1:
        raise UsageError("`temperature` draws words at random, `beams` keep the likeliest: choose")
    prompt = captioner.prompt if asked.prompt is None else asked.prompt
    beside = 0 if captioner.prompt_counts else len(captioner.prompt_ids(prompt))
    longest = captioner.longest - beside  # a model that writes less keeps "at most" as well
    return DecodingOptions(
        sample=drawn,
        temperature=asked.temperature,
        seed=asked.seed if drawn else None,
        beams=None if drawn else (asked.beams or max(3, asked.n)),
        num_captions=asked.n,
        max_length=None if asked.length is None else max(1, min(asked.length, longest)),
        prompt=asked.prompt,
    )


def _row(name: str, picture: Any, written: Iterator[Written]) -> dict[str, Any]:
    """What was written about one image, or why nothing was.

    Args:
        name: of the image.
        picture: it, or what made reading it fail.
        written: what was written about those that could be read; one is taken.

    Raises:
        Exception: what made it fail, where that is no fault of the image.
    """
    if isinstance(picture, Picture):
        found = next(written)
        scores = [round(score, 4) for score in found.scores]
        return {"image": name, "captions": list(found.captions), "scores": scores, "error": None}
    if isinstance(picture, DecodeError) or (isinstance(picture, Refused) and picture.status == 404):
        return {"image": name, "captions": [], "scores": [], "error": picture.message}
    raise picture
