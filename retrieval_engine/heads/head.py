"""A head: projections of both sides into one space, where inner products are scores."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval_engine.errors import ShapeError
from retrieval_engine.heads.projection import HeadConfig, Projection, make_projection
from retrieval_engine.records import Modality

_BLOCK_VECTORS = 8192
_LARGEST_SCALE = 100.0  # as CLIP clamps it: a larger one makes training unstable


class Head(nn.Module):
    """Projects images and texts so that matching ones have large inner products.

    An image may have several vectors (32 for BLIP-2): each is projected by itself, and the score
    of a pair is the largest inner product, as it is for the encoder's own `itc`.

    Args:
        config: its form.

    Attributes:
        log_scale: logarithm of what scores are multiplied with inside the loss (one over the
            temperature); ranks do not depend on it.
        offset: added to scaled scores by the sigmoid loss only.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.image = make_projection(config, config.image_width)
        self.text = make_projection(config, config.text_width)
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
        self.offset = nn.Parameter(torch.tensor(0.0))

    @property
    def scale(self) -> Tensor:
        """What scores are multiplied with inside the loss, at most 100."""
        return self.log_scale.clamp(max=float(np.log(_LARGEST_SCALE))).exp()

    def side(self, modality: Modality) -> Projection:
        """The projection of one side."""
        return self.image if modality is Modality.IMAGES else self.text

    def images(self, x: Tensor) -> Tensor:
        """(…, image_width) -> (…, dim) float32, L2-normalised."""
        return nn.functional.normalize(self.image(x).float(), dim=-1)

    def texts(self, x: Tensor) -> Tensor:
        """(…, text_width) -> (…, dim) float32, L2-normalised."""
        return nn.functional.normalize(self.text(x).float(), dim=-1)

    @torch.inference_mode()
    def project(self, modality: Modality, features: NDArray[Any]) -> NDArray[np.float32]:
        """Project stored features, a block at a time, in float32.

        Args:
            modality: which side they are of.
            features: (n, width) or (n, q, width).

        Returns:
            (n, q, dim) float32, L2-normalised; q is 1 for one vector each.

        Raises:
            ShapeError: the width is another one than the head was trained on.
        """
        side = self.side(modality)
        if features.ndim not in (2, 3) or features.shape[-1] != side.width:
            raise ShapeError(
                f"this head maps {modality} of width {side.width}, got {list(features.shape)}"
            )
        project = self.images if modality is Modality.IMAGES else self.texts
        q = 1 if features.ndim == 2 else features.shape[1]
        out = np.empty((len(features), q, self.config.dim), np.float32)
        training = self.training
        self.eval()
        for rows in _blocks(len(features), max(1, _BLOCK_VECTORS // q)):
            x = torch.from_numpy(features[rows].astype(np.float32)).to(side.mean.device)
            out[rows] = project(x).reshape(-1, q, self.config.dim).cpu().numpy()
        self.train(training)
        return out


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
