"""Position embeddings of a vision tower for another image size."""

import math

import torch
from torch.nn import functional

from retrieval_engine.errors import CheckpointInvalid, UsageError


def grid_side(positions: torch.Tensor) -> int:
    """Patches along one side of the picture that a position embedding is made for.

    Args:
        positions: (1, 1 + g * g, width); the first is that of the class token.

    Raises:
        CheckpointInvalid: the patches do not make a square.
    """
    patches = positions.shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointInvalid(f"the position embedding is for {patches} patches: not a square")
    return side


def patches_of(image_size: int, patch_size: int) -> int:
    """Patches along one side of a picture.

    Raises:
        UsageError: the picture does not divide into whole patches.
    """
    if image_size < patch_size or image_size % patch_size:
        raise UsageError(
            f"image size {image_size} is not a multiple of the patch size {patch_size}",
            hint=f"try `image_size={max(1, round(image_size / patch_size)) * patch_size}`",
        )
    return image_size // patch_size


def interpolate(positions: torch.Tensor, side: int) -> torch.Tensor:
    """A position embedding for `side` x `side` patches, as BLIP's and LAVIS's loaders make it.

    Bicubic with `align_corners=False`, in float32, the class token's position untouched.

    Args:
        positions: (1, 1 + g * g, width).
        side: patches along one side of the new picture.

    Returns:
        (1, 1 + side * side, width); the argument itself where g == side.
    """
    old = grid_side(positions)
    if old == side:
        return positions
    positions = positions.float()
    width = positions.shape[2]
    patches = positions[:, 1:].reshape(1, old, old, width).permute(0, 3, 1, 2)
    resized = functional.interpolate(
        patches, size=(side, side), mode="bicubic", align_corners=False
    )
    return torch.cat((positions[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
