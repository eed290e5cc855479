"""Images to pixels, exactly as BLIP does it, without torch.

Trap: BLIP and BLIP-2 squash the image to a square (the aspect ratio is not kept) with Pillow's
antialiased bicubic filter. The same resize through torch or OpenCV moves cosines by up to .03.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.records import Json

VERSION = "decode1-squash-bicubic-pil"
DRAFT = "+draft"
"""Behind the name of what decodes a large JPEG at a fraction of its size."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Channels: TypeAlias = tuple[float, float, float]
_ROUNDING = 1e-6


class ImagePreprocessor(Protocol):
    """Makes of a decoded image the pixels that a tower reads; light, picklable, without torch.

    The normalisation is left to the device that runs the model.
    """

    @property
    def image_size(self) -> int:
        """Side of the square in pixels."""

    @property
    def mean(self) -> Channels:
        """Of each channel, on the scale 0-1."""

    @property
    def std(self) -> Channels:
        """Of each channel, on the scale 0-1."""

    @property
    def name(self) -> str:
        """Name and version for the fingerprint: all that decides the normalised pixels."""

    @property
    def least_side(self) -> int:
        """Pixels below which no side of a JPEG may fall in decoding; 0 decodes every pixel."""

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """(image_size, image_size, 3) pixels of an RGB image of any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SquashToSquare:
    """BLIP's and BLIP-2's: the whole image, squashed to a square; see `ImagePreprocessor`.

    Attributes:
        image_size: side of the square in pixels.
        mean: of each channel, on the scale 0-1.
        std: of each channel, on the scale 0-1.
        draft: a large JPEG may be decoded at a half, a quarter or an eighth of its size, as long
            as no side falls below `image_size`.
        bilinear: by Pillow's bilinear filter instead of the bicubic one, as SigLIP 2's.
    """

    image_size: int
    mean: Channels = CLIP_MEAN
    std: Channels = CLIP_STD
    draft: bool = False
    bilinear: bool = False

    @property
    def least_side(self) -> int:
        """See `ImagePreprocessor.least_side`."""
        return self.image_size if self.draft else 0

    @property
    def name(self) -> str:
        """See `ImagePreprocessor.name`."""
        numbers = ",".join(f"{v:g}" for v in (*self.mean, *self.std))
        version = VERSION.replace("bicubic", "bilinear") if self.bilinear else VERSION
        return f"{version}({numbers})" + (DRAFT if self.draft else "")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An image as the model reads it.

        Args:
            image: RGB, any size.

        Returns:
            (image_size, image_size, 3) uint8.
        """
        side = self.image_size
        if image.size != (side, side):
            way = Image.Resampling.BILINEAR if self.bilinear else Image.Resampling.BICUBIC
            image = image.resize((side, side), way)
        return np.asarray(image, dtype=np.uint8)


def read_preprocessor(checkpoint: Checkpoint, image_size: int) -> ImagePreprocessor:
    """The preprocessor of a checkpoint, with the normalisation its files give, else CLIP's.

    Args:
        checkpoint: may have preprocessor_config.json or processor_config.json.
        image_size: side of the model's images; it decides, not the size in those files.

    Raises:
        CheckpointInvalid: the normalisation is not three positive numbers each, or the files ask
            for pixels that are made in another way.
    """
    said = said_by_files(checkpoint.path)
    refuse_others(checkpoint.path, said)
    mean, std = normalisation(checkpoint.path, said)
    draft = checkpoint.fast_decode or said.get("decode") == "draft"
    return SquashToSquare(image_size=image_size, mean=mean, std=std, draft=draft)


def said_by_files(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's processor_config.json and preprocessor_config.json say of images.

    Raises:
        CheckpointInvalid: one of them cannot be read.
    """
    said: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (file := checkpoint / name).is_file():
            try:
                value = json.loads(file.read_text(encoding="utf-8"))
                said |= value.get("image_processor", value)
            except (OSError, ValueError, AttributeError) as error:
                raise CheckpointInvalid(f"{file} cannot be read: {error}") from error
    return said


def normalisation(checkpoint: Path, said: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and deviation of each channel on the scale 0-1, as the files say, else CLIP's.

    Args:
        checkpoint: for the message.
        said: see `said_by_files`.

    Raises:
        CheckpointInvalid: they are not three positive numbers each.
    """
    mean, std = said.get("image_mean", CLIP_MEAN), said.get("image_std", CLIP_STD)
    try:
        m, s = (tuple(float(v) for v in values) for values in (mean, std))
        if said.get("do_normalize") is False:
            m, s = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        # A device gets pixels / 255: another scale goes into mean and deviation.
        factor = 255 * float(said.get("rescale_factor", 1 / 255))
        factor = 255.0 if said.get("do_rescale") is False else factor
        if abs(factor - 1) > _ROUNDING:
            m, s = (tuple(v / factor for v in values) for values in (m, s))
    except (TypeError, ValueError, ZeroDivisionError):
        m, s = (), ()
    if len(m) != 3 or len(s) != 3 or not min(s) > 0:
        raise CheckpointInvalid(
            f"{checkpoint}: image_mean {mean} and image_std {std} are not three numbers each"
            + (f", rescale_factor {said['rescale_factor']}" if "rescale_factor" in said else "")
        )
    return m, s


def preprocessor_config(
    image_size: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Json]:
    """What `read_preprocessor` and transformers read: a square of this side, normalised so."""
    return {
        "image_processor_type": "BlipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,  # Pillow's number for bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def refuse_others(checkpoint: Path, said: Mapping[str, Any]) -> None:
    """Refuse what changes pixels and is not done here: crops, padding, other filters."""
    size = said.get("size")
    asks = {
        "do_resize": said.get("do_resize") is False,
        "resample": said.get("resample", 3) not in (3, None),
        "do_center_crop": bool(said.get("do_center_crop")),
        "do_pad": bool(said.get("do_pad")),
        "size": isinstance(size, dict) and bool(size) and not {"height", "width"} <= set(size),
    }
    if found := [f"{name}={said[name]!r}" for name, is_other in asks.items() if is_other]:
        raise CheckpointInvalid(
            f"{checkpoint}: its preprocessor file asks for {', '.join(found)}; images are squashed "
            "to a square with the bicubic filter (resample=3), as BLIP and BLIP-2 do it",
            hint="if the model was trained so, set these as BLIP's own files have them",
        )
