"""The arithmetic of a BERT text tower, twice: torch's own operations, and the same in NumPy.

A search from the command line reads one sentence. Importing torch takes longer than all the rest
of it; NumPy gives the same vectors to about 1e-6, and to its rounding where a store was made in
half precision. Where torch is in the process anyway, its operations are used, and vectors are equal
bit by bit to the encoder's.

Arrays are torch's tensors for the one and NumPy's for the other; both know `reshape`, `swapaxes`,
`@` and `+`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from retrieval_engine.machine import ONE_THREAD_PRODUCT
from retrieval_engine.models.text import pooled

_FEW_ROWS = 48  # tokens, of one query, that are multiplied in this thread
_ROWS = 4096  # of a GELU at once: what it needs besides stays in the processor's cache


class Arithmetic(Protocol):
    """The operations that a tower consists of; (n, l, w) float32 states."""

    def tensors(self, files: Sequence[Path], starts: tuple[str, ...]) -> dict[str, Any]:
        """Tensors whose names start so, to be computed with in float32; no cross-attention."""

    def array(self, values: NDArray[Any]) -> Any:
        """An array of its own kind."""

    def computing(self) -> Any:
        """The context that the layers run in."""

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        """Rows times the matrix, plus the bias: x Wᵀ + b."""

    def norm(self, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
        """Layer normalisation over the last axis."""

    def gelu(self, x: Any) -> Any:
        """The exact GELU, x Φ(x)."""

    def attention(self, q: Any, k: Any, v: Any, padding: Any | None) -> Any:
        """(n, h, l, d) each, and (n, l) True where a key is padding -> (n, h, l, d)."""

    def pooled(self, states: Any, mask: Any, pooling: str) -> NDArray[np.float32]:
        """See `text.pooled`."""

    def unit(self, x: Any) -> NDArray[np.float32]:
        """Rows divided by their L2 norm."""


class TorchArithmetic:
    """Torch on a CPU, as transformers' `BlipTextModel` with our fused attention computes.

    Args:
        dtype: torch dtype of the layers; weights are float32.
    """

    def __init__(self, dtype: Any) -> None:
        import torch
        from torch.nn import functional

        from retrieval_engine.models.device import autocast

        self._torch, self._f = torch, functional
        self._autocast, self._dtype = autocast, dtype
        self.linear, self.gelu = functional.linear, functional.gelu

    def tensors(self, files: Sequence[Path], starts: tuple[str, ...]) -> dict[str, Any]:
        """See `Arithmetic`."""
        return {name: tensor.float() for name, tensor in _read(files, starts, "pt")}

    def array(self, values: NDArray[Any]) -> Any:
        """See `Arithmetic`."""
        return self._torch.from_numpy(values)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `Arithmetic`."""
        with self._torch.inference_mode(), self._autocast(self._torch.device("cpu"), self._dtype):
            yield

    def norm(self, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
        """See `Arithmetic`."""
        return self._f.layer_norm(x, weight.shape, weight, bias, epsilon)

    def attention(self, q: Any, k: Any, v: Any, padding: Any | None) -> Any:
        """See `Arithmetic`."""
        mask = None  # with nothing padded it must be left out, or another kernel rounds otherwise
        if padding is not None:
            n, _, length, _ = q.shape
            lowest = self._torch.finfo(q.dtype).min
            mask = self._torch.zeros(n, 1, length, length, dtype=q.dtype)
            mask = mask.masked_fill(padding[:, None, None], lowest)
        return self._f.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def pooled(self, states: Any, mask: Any, pooling: str) -> NDArray[np.float32]:
        """See `Arithmetic`."""
        found: NDArray[np.float32] = pooled(states, mask, pooling).float().numpy()
        return found

    def unit(self, x: Any) -> NDArray[np.float32]:
        """See `Arithmetic`."""
        found: NDArray[np.float32] = self._f.normalize(x, dim=-1).numpy()
        return found


class NumpyArithmetic:
    """The same in float32 by NumPy."""

    def tensors(self, files: Sequence[Path], starts: tuple[str, ...]) -> dict[str, Any]:
        """See `Arithmetic`; TypeError for a file in bfloat16, which NumPy does not know."""
        # Of the words a few rows are read; added to float32 they become that.
        return {
            name: tensor if name.endswith("word_embeddings.weight") else tensor.astype(np.float32)
            for name, tensor in _read(files, starts, "numpy")
        }

    def array(self, values: NDArray[Any]) -> Any:
        """See `Arithmetic`."""
        return values

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `Arithmetic`."""
        yield

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        """See `Arithmetic`."""
        # One product of two matrices: for each text alone NumPy would call BLAS again.
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > _FEW_ROWS:
            flat = rows @ weight.T
        else:
            step = max(1, ONE_THREAD_PRODUCT // rows.size)
            parts = (weight[at : at + step].T for at in range(0, len(weight), step))
            flat = np.concatenate([rows @ part for part in parts], axis=1)
        flat += bias
        return flat.reshape(*x.shape[:-1], -1)

    def norm(self, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
        """See `Arithmetic`."""
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(epsilon))
        return centred / spread * weight + bias

    def gelu(self, x: Any) -> Any:
        """See `Arithmetic`."""
        flat = x.reshape(-1)
        made = np.empty_like(flat)
        for start in range(0, len(flat), _ROWS):
            some = flat[start : start + _ROWS]
            made[start : start + _ROWS] = some * (0.5 + 0.5 * _erf(some * math.sqrt(0.5)))
        return made.reshape(x.shape)

    def attention(self, q: Any, k: Any, v: Any, padding: Any | None) -> Any:
        """See `Arithmetic`."""
        scores = q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5)
        if padding is not None:
            scores = np.where(padding[:, None, None], np.finfo(np.float32).min, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v

    def pooled(self, states: Any, mask: Any, pooling: str) -> NDArray[np.float32]:
        """See `Arithmetic`."""
        if pooling == "cls":
            return np.ascontiguousarray(states[:, 0])
        weights = mask.astype(np.float32)[..., None]
        found: NDArray[np.float32] = (states * weights).sum(1) / weights.sum(1)
        return found

    def unit(self, x: Any) -> NDArray[np.float32]:
        """See `Arithmetic`."""
        norms = np.linalg.norm(x, axis=-1, keepdims=True)
        found: NDArray[np.float32] = x / np.maximum(norms, np.float32(1e-12))
        return found


# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: at most 1.5e-7 off.
_P = 0.3275911
_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _erf(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The error function, which NumPy lacks, in float64."""
    size = np.abs(x, dtype=np.float64)
    t = 1 / (1 + _P * size)
    series = np.zeros_like(t)
    for coefficient in _COEFFICIENTS:
        series = (series + coefficient) * t
    found: NDArray[np.float64] = np.copysign(1 - series * np.exp(-size * size), x)
    return found


def _read(
    files: Sequence[Path], starts: tuple[str, ...], framework: str
) -> Iterator[tuple[str, Any]]:
    for file in files:
        with safe_open(file, framework=framework) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if name.startswith(starts) and ".cross" not in name:
                    yield name, tensors.get_tensor(name)
