"""How a batch is cut: to what fits the device, and by length."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

TEXTS_PER_BATCH = 256
_CPU_TOKENS, _CUDA_TOKENS = 2_560, 131_072
_CPU_PADDING, _CUDA_PADDING = 64, 4_096


def default_batch_size(tokens: int, device: str) -> int:
    """Images per batch to begin with, from the tokens an image becomes.

    On a CPU larger batches lose: what a layer writes must stay in its caches, and below 32 MB, where
    glibc takes every array from the system anew. On CUDA what does not fit is halved by the encoder.
    """
    budget = _CUDA_TOKENS if device.startswith("cuda") else _CPU_TOKENS
    return max(1, 1 << (budget // tokens).bit_length() - 1)


def piece_size(tokens: int, device: str) -> int:
    """Images of a batch that are computed while the next ones are copied; 0 for all at once.

    A quarter of the usual batch keeps a GPU busy, and the copies of the other three cost nothing.
    """
    return max(1, default_batch_size(tokens, device) // 4) if device.startswith("cuda") else 0


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
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Run texts in batches of about equal length, so that little is spent on padding.

    Args:
        ids: token ids of n texts, at least one.
        states: gives (b, width) states of b texts.
        device: where it does so; one more pass costs a CPU what some tokens of padding do.

    Returns:
        (n, width) states in the order of `ids`.
    """
    order = np.argsort([len(tokens) for tokens in ids], kind="stable")
    ranked = [ids[row] for row in order]
    most_padding = _CUDA_PADDING if device.startswith("cuda") else _CPU_PADDING
    cuts = [*_cuts([len(tokens) for tokens in ranked], most_padding), len(ranked)]
    found = np.concatenate([states(ranked[a:b]) for a, b in pairwise(cuts)])
    result = np.empty_like(found)
    result[order] = found
    return result


def _cuts(lengths: Sequence[int], most_padding: int) -> Iterator[int]:
    """Where batches of rising lengths begin."""
    start, tokens = 0, 0
    yield start
    for row, length in enumerate(lengths):
        padding = (row - start) * length - tokens
        if row - start == TEXTS_PER_BATCH or padding > most_padding:
            yield row
            start, tokens = row, 0
        tokens += length
