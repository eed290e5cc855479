"""One side of a head: the linear and the multi-layer projection, and what both have in common."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retrieval_engine.errors import UsageError, accept_words
from retrieval_engine.records import Json

_WIDEST = 32_768


class HeadKind(StrEnum):
    """Kind of a head's two projections."""

    LINEAR = "linear"
    MLP = "mlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Kind and sizes of a head: all that its weights must fit.

    Attributes:
        kind: linear, or Linear -> GELU -> Linear.
        feature: name of the stored feature it reads: `pooled`, `itc`.
        image_width: of an image's feature vectors.
        text_width: of a caption's.
        dim: of what it emits.
        hidden: units between the layers of an MLP; 0 for a linear head.
        dropout: share of hidden units dropped in training.
        residual: whether an MLP has a linear path beside it.
        bias: whether a linear head has one.
    """

    kind: HeadKind
    feature: str
    image_width: int
    text_width: int
    dim: int
    hidden: int = 0
    dropout: float = 0.0
    residual: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        accept_words(self, kind=HeadKind)
        for name in ("image_width", "text_width", "dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"a head's {name} must be at least 1, got {getattr(self, name)}")
        for name in ("dim", "hidden"):
            if getattr(self, name) > _WIDEST:
                raise UsageError(
                    f"a head's {name} is {getattr(self, name)}, must be at most {_WIDEST}"
                )
        if self.kind is HeadKind.MLP and self.hidden < 2:
            raise UsageError(f"an MLP head needs at least 2 hidden units, got {self.hidden}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"`dropout` is a share in [0, 1), got {self.dropout}")

    def to_json(self) -> dict[str, Json]:
        """The form as JSON values; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "HeadConfig":
        """A form from what `to_json` wrote.

        Raises:
            TypeError, ValueError: a field is missing, unknown or out of range.
        """
        return cls(**{**value, "kind": HeadKind(value["kind"])})


class Projection(nn.Module, ABC):
    """(…, width) stored features -> (…, dim), not normalised.

    The input is standardised by numbers taken from the training set, so that features of any
    scale are learned at the same pace. They are part of the saved head.

    Args:
        width: of the input.
        dim: of the output.
    """

    if TYPE_CHECKING:
        mean: Tensor
        scale: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width = width
        self.dim = dim
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """From now on map x to (x - mean) * scale before anything else; both (width,)."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) of any floating dtype -> (…, dim)."""
        out: Tensor = self.net((x - self.mean) * self.scale)
        return out

    @abstractmethod
    def net(self, x: Tensor) -> Tensor:
        """(…, width) standardised -> (…, dim)."""

    @abstractmethod
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Compute x @ weight.T + bias of standardised x from now on.

        Args:
            weight: (dim, width); the rows that matter most come first.
            bias: (dim,).
        """


class LinearProjection(Projection):
    """A linear projection: x @ weight.T + bias.

    Args:
        width: of the input.
        dim: of the output.
        bias: whether there is one.
    """

    def __init__(self, width: int, dim: int, *, bias: bool = True) -> None:
        super().__init__(width, dim)
        self.linear = nn.Linear(width, dim, bias=bias)

    def net(self, x: Tensor) -> Tensor:
        """See `Projection.net`."""
        out: Tensor = self.linear(x)
        return out

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """See `Projection`; a projection without a bias drops it."""
        self.linear.weight.copy_(weight)
        if self.linear.bias is not None:
            self.linear.bias.copy_(bias)


class MlpProjection(Projection):
    """Linear -> GELU -> dropout -> Linear, with a linear path beside it when asked for.

    It can begin exactly at a linear solution without such a path, because
    gelu(x) - gelu(-x) = x: two hidden units of opposite sign carry one output each. Training then
    bends what is worth bending, and the units that are left over learn what no linear map can.

    Args:
        width: of the input.
        dim: of the output.
        hidden: units between; at least 2 * dim to begin at any linear solution, fewer begin at
            its leading hidden // 2 outputs.
        dropout: share of hidden units dropped in training.
        residual: add a linear map of the input to the output.
    """

    def __init__(
        self, width: int, dim: int, *, hidden: int, dropout: float = 0.0, residual: bool = False
    ) -> None:
        super().__init__(width, dim)
        self.first = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, dim)
        self.skip = nn.Linear(width, dim, bias=False) if residual else None

    def net(self, x: Tensor) -> Tensor:
        """See `Projection.net`."""
        out: Tensor = self.second(self.dropout(nn.functional.gelu(self.first(x))))
        return out if self.skip is None else out + self.skip(x)

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """See `Projection`; units that the linear map does not need keep their random input."""
        self.second.weight.zero_()
        if self.skip is not None:
            self.skip.weight.copy_(weight)
            self.second.bias.copy_(bias)
            return
        carried = min(self.dim, self.first.out_features // 2)
        pair = slice(0, carried), slice(carried, 2 * carried)
        for units, sign in zip(pair, (1.0, -1.0), strict=True):
            self.first.weight[units] = sign * weight[:carried]
            self.first.bias[units] = sign * bias[:carried]
            self.second.weight[:carried, units] = sign * torch.eye(carried)
        self.second.bias.zero_()


def make_projection(config: HeadConfig, width: int) -> Projection:
    """A projection of a head's kind, with random weights.

    Args:
        config: of the head.
        width: of the side's features.
    """
    if config.kind is HeadKind.LINEAR:
        return LinearProjection(width, config.dim, bias=config.bias)
    return MlpProjection(
        width,
        config.dim,
        hidden=config.hidden,
        dropout=config.dropout,
        residual=config.residual,
    )
