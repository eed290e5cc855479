"""The score of an image and a caption: fast and nearly right in blocks, exact for single pairs.

It is the largest inner product of their vectors; never a sum, never a mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor

Vectors = NDArray[np.floating[Any]]
Scores = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Lengths = TypeVar("Lengths", float, NDArray[np.float32])

_ELEMENTS = 1 << 21  # float64 numbers gathered at once
_PAIRS = 64  # of a product of matrices take as long as one alone
_FEW_PAIRS = 4096  # are summed in this thread: OpenBLAS shares a product out


def exact_scores(images: Vectors, captions: Vectors, image: Ints, caption: Ints) -> Scores:
    """The score of each (image, caption) pair, in float64.

    The sum runs over one pair alone, so a pair's score never depends on its neighbours.

    Args:
        images: (n, q, d).
        captions: (m, r, d).
        image: (p,) rows of `images`.
        caption: (p,) rows of `captions`.

    Returns:
        (p,) float64: the largest of the q*r inner products of each pair.
    """
    q, d = images.shape[1:]
    best = np.full(len(image), -np.inf)
    step = max(1, _ELEMENTS // (q * d))
    for start in range(0, len(image), step):
        part = slice(start, start + step)
        left = images[image[part]].astype(np.float64).reshape(-1, d)  # (b, q, d) -> (b*q, d)
        for row in range(captions.shape[1]):
            right = captions[caption[part], row].astype(np.float64).repeat(q, axis=0)
            dots = np.einsum("ij,ij->i", left, right).reshape(-1, q)
            np.maximum(best[part], dots.max(axis=1), out=best[part])
    return best


def rounded_scores(images: Vectors, captions: Vectors, image: Ints, caption: Ints) -> Singles:
    """`exact_scores` rounded to float32, to the bit; of many pairs in less time.

    A model whose vectors are nearly one leaves most pairs to be told apart. Then all are multiplied
    in float64, and those that might be rounded otherwise once more.

    Args:
        images: (n, q, d).
        captions: (m, r, d).
        image: (p,) rows of `images`.
        caption: (p,) rows of `captions`, ascending.

    Returns:
        (p,) float32.
    """
    (n, q, d), (m, r, _) = images.shape, captions.shape
    if len(image) <= max(_FEW_PAIRS, n * (m + _PAIRS // 4) // _PAIRS):
        return exact_scores(images, captions, image, caption).astype(np.float32)
    rows = images.reshape(n * q, d).astype(np.float64)
    texts = captions.reshape(m * r, d).astype(np.float64)
    scores, step = np.empty(len(image)), max(1, _ELEMENTS // (n * q * r))
    for first in range(0, m, step):
        part = slice(*np.searchsorted(caption, (first, first + step)))
        dots = texts[first * r : (first + step) * r] @ rows.T
        best = dots.reshape(-1, r, n, q).max(axis=(1, 3))
        scores[part] = best[caption[part] - first, image[part]]
    lengths = [np.sqrt(np.vecdot(each, each).max()) for each in (rows, texts)]
    error = 2 * _error(d, 2.0**-53, lengths[0] * lengths[1])  # of this sum and of the other
    rounded: Singles = scores.astype(np.float32)
    unsure = np.flatnonzero(
        (scores - error).astype(np.float32) != (scores + error).astype(np.float32)
    )
    rounded[unsure] = exact_scores(images, captions, image[unsure], caption[unsure])
    return rounded


def block_scores(vectors: "Tensor", captions: "Tensor") -> "Tensor":
    """(b, q, d) and (c, r, d) -> (b, c): largest inner product of each pair, float32."""
    (b, q, d), (c, r, _) = vectors.shape, captions.shape
    dots = vectors.reshape(b * q, d) @ captions.reshape(c * r, d).T
    if q == r == 1:
        return dots
    return dots.view(b, q, c, r).amax((1, 3))


def float32_error(dim: int, lengths: Lengths) -> Lengths:
    """How far a product of float32 numbers may be from the exact one, whoever adds it up.

    Args:
        dim: length of a vector.
        lengths: |x||y|, the product of both norms.
    """
    return _error(dim, 2.0**-24, lengths)


def _error(dim: int, unit_roundoff: float, lengths: Lengths) -> Lengths:
    # |fl(x.y) - x.y| <= g |x||y| with g = d u / (1 - d u) in any order of summation (Higham,
    # Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); 4 more roundings and 1 %
    # cover the lengths and what is compared with the product.
    return (dim + 4) * unit_roundoff * 1.01 * lengths


def largest_norm(what: str, vectors: Vectors, *, first: int = 0) -> float:
    """Largest L2 norm among rows of vectors, after a look that every number is finite.

    Args:
        what: `image` or `caption`, for the message.
        vectors: (n, q, d).
        first: index of row 0, for the message.

    Raises:
        EvaluationError: NaN or infinity; the message counts the rows and names the first.
    """
    largest = 0.0
    step = max(1, _ELEMENTS // int(np.prod(vectors.shape[1:])))
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step].astype(np.float32)
        norms = np.sqrt(np.einsum("nqd,nqd->nq", part, part)).max(axis=1)
        if not np.isfinite(norms).all():
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=(1, 2)))
            raise EvaluationError(
                f"{len(bad)} of {len(vectors)} {what} vectors hold NaN or infinity, "
                f"the first at row {first + int(bad[0])}",
                hint="encode again with `EncodeOptions(overwrite=True)`, and if it persists with "
                "`open_encoder(dtype='float32')`",
            )
        largest = max(largest, float(norms.max()))
    return largest


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """How float32 is multiplied, whatever the process has set.

    Args:
        precision: `highest` for float32 itself, `high` for TF32 where the device has it; see
            `torch.set_float32_matmul_precision`.
    """
    import torch  # a search by words does without

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
