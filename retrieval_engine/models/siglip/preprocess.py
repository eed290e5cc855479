"""Images as SigLIP reads them: squashed to a square, bicubic or (SigLIP 2) bilinear."""

from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.preprocess import (
    SquashToSquare,
    normalisation,
    refuse_others,
    said_by_files,
)

_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers
_HALF = [0.5, 0.5, 0.5]


def siglip_preprocessor(checkpoint: Checkpoint, image_size: int) -> SquashToSquare:
    """The preprocessor of a checkpoint; mean and deviation are .5 where its files say nothing.

    Raises:
        CheckpointInvalid: the files ask for pixels that are made in another way.
    """
    said = {"image_mean": _HALF, "image_std": _HALF} | said_by_files(checkpoint.path)
    is_bilinear = said.get("resample") == _BILINEAR
    refuse_others(checkpoint.path, said | ({"resample": _BICUBIC} if is_bilinear else {}))
    mean, std = normalisation(checkpoint.path, said)
    return SquashToSquare(
        image_size=image_size,
        mean=mean,
        std=std,
        draft=checkpoint.fast_decode,
        bilinear=is_bilinear,
    )
