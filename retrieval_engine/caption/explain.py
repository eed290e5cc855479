"""Draws where a captioner looked when it wrote each word.

The maps are the decoder's cross-attention weighted by what it did for the word; see
`token_relevance` in `models/blip/captioner.py`. Each word has a scale of its own: bright is where it looked
most, and says nothing about how sure it was.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import complete, write_captions
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.durable import writing
from retrieval_engine.errors import MissingExtra, UsageError, VlreError
from retrieval_engine.models.captioner import Captioner, ExplainingCaptioner
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_COLUMNS = 4
_SHOWN_PIXELS = 480
_INK, _SOFT = "#1c1d21", "#6a6d76"
_DIMMED = 0.22  # what is left of the image where nobody looked


def draw_explanation(
    captioner: Captioner, image: SourceImage, options: DecodingOptions, out: Path
) -> str:
    """Caption an image and draw a map for each word.

    Args:
        captioner: the model.
        image: the image.
        options: how to choose words.
        out: image file to write; its ending says the format.

    Returns:
        The caption.

    Raises:
        UsageError: the model does not tell where it looked, or the format is unknown.
        DecodeError: the image cannot be read.
        MissingExtra: matplotlib is not installed.
    """
    if not isinstance(captioner, ExplainingCaptioner):
        raise UsageError(
            f"`explain`: {captioner.spec.checkpoint} looks at the image through a Q-Former, "
            "whose queries have no place in it",
            hint="use a BLIP captioner, e.g. Salesforce/blip-image-captioning-base",
        )
    look = captioner.preprocessor
    decoded = decode(read_bytes(image.item.uri), least_side=look.least_side)
    pixels = look.pixels(decoded)
    tokens = torch.from_numpy(captioner.encode_images(pixels[None], ["tokens"])["tokens"])
    prompt = complete(options, captioner).prompt or ""
    sentence = write_captions(captioner, tokens, [image.name], options)[0][0]
    caption = captioner.text(sentence.ids, prompt).strip()
    words = captioner.relevance(tokens, prompt, sentence.ids)
    _save(decoded, caption, words, out)
    return caption


def _save(
    image: Image.Image, caption: str, words: list[tuple[str, NDArray[np.float32]]], out: Path
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    image.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS), Image.Resampling.LANCZOS)
    columns = min(_COLUMNS, len(words) + 1)
    rows = math.ceil((len(words) + 1) / columns)
    width = 2.6
    height = width * image.height / image.width + 0.35
    figure: Any = Figure(
        figsize=(columns * width, rows * height + 0.5), layout="constrained", facecolor="white"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(image)
    axes[0].set_title("the image", color=_SOFT, fontsize=11)
    for axis, (word, seen) in zip(axes[1:], words, strict=False):
        axis.imshow(lit(image, seen))
        axis.set_title(word, color=_INK, fontsize=13)
    figure.suptitle(caption or "(no words)", color=_INK, fontsize=14, wrap=True)
    try:
        with writing(out):
            figure.savefig(out, dpi=130)
    except ValueError as error:
        raise UsageError(
            f"`explain={str(out)!r}`: {error}", hint="use .png, .svg or .pdf"
        ) from error
    except OSError as error:
        raise VlreError(f"cannot write {out}: {error.strerror}") from error


def lit(image: Image.Image, seen: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image, bright where a map is high and dim where it is low.

    Args:
        image: RGB.
        seen: (g, g) map over the image, at least 0; its largest value is full light.

    Returns:
        (h, w, 3) uint8.
    """
    level = seen / max(float(seen.max()), 1e-12)
    grown = Image.fromarray(level.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    light = np.clip(np.asarray(grown), 0, 1)[..., None]
    colours = np.asarray(image, dtype=np.float32)
    grey = colours.mean(-1, keepdims=True)
    dim = _DIMMED * grey + 16
    shown: NDArray[np.uint8] = np.rint(dim + light * (colours - dim)).astype(np.uint8)
    return shown
