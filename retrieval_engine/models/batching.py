"""How a batch is cut: to what fits the device, and by length."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Self = TypeVar("Self")
EncodeImages = Callable[[Self, NDArray[np.uint8], Sequence[str]], Arrays]

TEXTS_PER_BATCH = 256
_CPU_TOKENS, _CUDA_TOKENS = 8_192, 131_072


def default_batch_size(tokens: int, device: str) -> int:
    """Images per batch to begin with, from the tokens an image becomes.

    On a CPU larger batches gain nothing; on CUDA what does not fit is halved by `halve_on_oom`.
    """
    budget = _CUDA_TOKENS if device.startswith("cuda") else _CPU_TOKENS
    return max(1, 1 << (budget // tokens).bit_length() - 1)


def halve_on_oom(method: EncodeImages[Self]) -> EncodeImages[Self]:
    """Run a batch in halves when it does not fit into the device's memory."""

    @wraps(method)
    def encode(self: Self, pixels: NDArray[np.uint8], features: Sequence[str]) -> Arrays:
        import torch

        try:
            return method(self, pixels, features)
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
        torch.cuda.empty_cache()
        middle = len(pixels) // 2
        halves = [encode(self, part, features) for part in (pixels[:middle], pixels[middle:])]
        return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}

    return encode


def pad_tokens(
    ids: Sequence[Sequence[int]], length: int, *, pad: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids padded on the right, and their mask.

    Args:
        ids: n lists of at most `length` ids.
        length: width of the result.
        pad: id that fills.

    Returns:
        (n, length) ids and (n, length) mask, 1 on tokens and 0 on padding.
    """
    padded = np.full((len(ids), length), pad, dtype=np.int64)
    mask = np.zeros((len(ids), length), dtype=np.int64)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return padded, mask


def in_batches(
    ids: Sequence[Sequence[int]],
    states: Callable[[Sequence[Sequence[int]]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Run texts in batches of about equal length, so that little is spent on padding.

    Args:
        ids: token ids of n texts, at least one.
        states: gives (b, width) states of b texts.

    Returns:
        (n, width) states in the order of `ids`.
    """
    order = np.argsort([len(tokens) for tokens in ids], kind="stable")
    sorted_states = np.concatenate(
        [
            states([ids[row] for row in order[start : start + TEXTS_PER_BATCH]])
            for start in range(0, len(order), TEXTS_PER_BATCH)
        ]
    )
    result = np.empty_like(sorted_states)
    result[order] = sorted_states
    return result
