"""Pictures to pixels, exactly as BLIP does it, without torch.

Trap: BLIP and BLIP-2 squash the picture to a square (the aspect ratio is not kept) with Pillow's
antialiased bicubic filter. The same resize through torch or OpenCV moves cosines by up to .03.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = "decode1-squash-bicubic-pil"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessor:
    """Resizes a decoded picture; the normalisation is left to the device that runs the model.

    Attributes:
        image_size: side of the square in pixels.
        mean: of each channel, on the scale 0-1.
        std: of each channel, on the scale 0-1.
    """

    image_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def name(self) -> str:
        """Name and version for the fingerprint: all that decides the normalised pixels."""
        numbers = ",".join(f"{v:g}" for v in (*self.mean, *self.std))
        return f"{VERSION}({numbers})"

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """A picture as the model reads it.

        Args:
            image: RGB, any size.

        Returns:
            (image_size, image_size, 3) uint8.
        """
        side = self.image_size
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.uint8)
