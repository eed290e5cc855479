"""Images as CLIP reads them: the short side resized, the middle square kept.

Trap: the edges of a long image are never seen. Sizes are those of `CLIPImageProcessor`: the long
side is cut to a whole number, and an odd rest falls to the right and below.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    DRAFT,
    Channels,
    normalisation,
    said_by_files,
)

_VERSION = "decode1-short-side-crop-bicubic-pil"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeAndCrop:
    """The short side to `image_size`, then the middle square; see `ImagePreprocessor`.

    Attributes:
        image_size: side of the square in pixels.
        mean: of each channel, on the scale 0-1.
        std: of each channel, on the scale 0-1.
        draft: as of `SquashToSquare`.
    """

    image_size: int
    mean: Channels = CLIP_MEAN
    std: Channels = CLIP_STD
    draft: bool = False

    @property
    def least_side(self) -> int:
        """See `ImagePreprocessor.least_side`."""
        return self.image_size if self.draft else 0

    @property
    def name(self) -> str:
        """See `ImagePreprocessor.name`."""
        numbers = ",".join(f"{v:g}" for v in (*self.mean, *self.std))
        return f"{_VERSION}({numbers})" + (DRAFT if self.draft else "")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """(image_size, image_size, 3) pixels of an RGB image of any size."""
        side, short = self.image_size, min(image.size)
        width, height = (int(side * length / short) for length in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        return np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.uint8)


def read_preprocessor(checkpoint: Checkpoint, image_size: int) -> ResizeAndCrop:
    """The preprocessor of a checkpoint.

    Args:
        checkpoint: may have preprocessor_config.json or processor_config.json.
        image_size: side of the model's images.

    Raises:
        CheckpointInvalid: the files ask for pixels that are made in another way.
    """
    said = said_by_files(checkpoint.path)
    asks = {
        "do_resize": said.get("do_resize") is False,
        "do_center_crop": said.get("do_center_crop") is False,
        "resample": said.get("resample", 3) not in (3, None),
        "size": _short_side(said.get("size", image_size)) != image_size,
        "crop_size": _side(said.get("crop_size", image_size)) != image_size,
    }
    if found := [f"{name}={said[name]!r}" for name, is_other in asks.items() if is_other]:
        raise CheckpointInvalid(
            f"{checkpoint.name}: its preprocessor file asks for {', '.join(found)}; the short side "
            f"is resized to {image_size} with the bicubic filter and the middle kept, as CLIP does",
            hint="if the model was trained so, set these as CLIP's own files have them",
        )
    mean, std = normalisation(checkpoint.path, said)
    return ResizeAndCrop(image_size=image_size, mean=mean, std=std, draft=checkpoint.fast_decode)


def _short_side(size: Any) -> object:
    return size.get("shortest_edge") if isinstance(size, dict) else size


def _side(size: Any) -> object:
    if not isinstance(size, dict):
        return size
    height, width = size.get("height"), size.get("width")
    return height if height == width else None
