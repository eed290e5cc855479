"""A linear head beside the maps that were there: both cosines together rank better than either.

Two ways to the same features err differently, and the sum of their scores averages that out, as
ensembles do (Breiman, Bagging predictors, 1996; for a model as it was and as it was adapted
Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). It costs nothing here: linear
maps side by side are one linear map, of which as many principal components are kept as there were
dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrieval_engine.heads import Head
from retrieval_engine.heads.projection import LinearProjection, Projection
from retrieval_engine.train.head.pairs import FeaturePairs

_MOST_ROWS = 32_768  # that lengths and directions are taken from


@dataclass(frozen=True, slots=True)
class Affine:
    """x -> x @ weight.T + bias.

    Attributes:
        weight: (d, w) float64.
        bias: (d,) float64.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(n, w) -> (n, d)."""
        return x @ self.weight.T + self.bias

    @classmethod
    def of_layer(cls, layer: nn.Linear) -> "Affine":
        """What a layer computes."""
        return cls(layer.weight.double(), layer.bias.double())

    @classmethod
    def of_projection(cls, projection: Projection) -> "Affine":
        """What a side of a linear head computes, its standardisation included."""
        assert isinstance(projection, LinearProjection)
        weight = projection.linear.weight.double() * projection.scale.double()
        return cls(weight, projection.linear.bias.double() - weight @ projection.mean.double())


Maps = tuple[Affine, Affine]  # of images and of texts


@torch.no_grad()
def lay_beside(head: Head, pairs: FeaturePairs, share: float) -> None:
    """Make a linear head compare the features as they are, and what it made of them until now.

    Args:
        head: whose output is as wide as the features of both sides.
        pairs: to take the usual lengths from, and the directions that are kept.
        share: of the head's cosine beside that of the features.
    """
    sides, dim = (head.image, head.text), head.config.dim
    features = (
        pairs.images[:_MOST_ROWS].flatten(0, 1).double(),
        pairs.texts[:_MOST_ROWS].double(),
    )
    one = torch.eye(dim, dtype=torch.float64, device=pairs.images.device)
    as_is = Affine(one, one.new_zeros(dim))
    theirs = Affine.of_projection(head.image), Affine.of_projection(head.text)
    both = narrowed(side_by_side((as_is, as_is), theirs, features, share), features, dim)
    for side, found in zip(sides, both, strict=True):
        side.standardise(torch.zeros_like(side.mean), torch.ones_like(side.scale))
        side.start_from(found.weight, found.bias)


def side_by_side(ours: Maps, theirs: Maps, features: tuple[Tensor, Tensor], share: float) -> Maps:
    """Maps whose cosine is about the mean of two maps' cosines, the second of weight `share`.

    It is the mean itself where all features of a side are mapped to one length.

    Args:
        ours: of images and of texts, to (d,).
        theirs: likewise, to (e,).
        features: (n, w) and (m, v) to take the usual lengths from.
        share: above 0.

    Returns:
        Maps to (d + e,).
    """
    found = []
    for first, second, x in zip(ours, theirs, features, strict=True):
        lengths = [each(x).norm(dim=1).mean().detach() for each in (first, second)]
        parts = [
            (factor / length, each)
            for factor, length, each in zip((1, share**0.5), lengths, (first, second), strict=True)
        ]
        weight = torch.cat([factor * each.weight for factor, each in parts])
        found.append(Affine(weight, torch.cat([factor * each.bias for factor, each in parts])))
    return found[0], found[1]


def narrowed(maps: Maps, features: tuple[Tensor, Tensor], dim: int) -> Maps:
    """Maps to the `dim` directions in which images and texts reach farthest from the origin."""
    reached = [each(x) for each, x in zip(maps, features, strict=True)]
    spread = sum(points.T @ points / len(points) for points in reached)
    assert isinstance(spread, Tensor)
    kept = torch.linalg.eigh(spread).eigenvectors[:, -dim:].T
    images, texts = (Affine(kept @ each.weight, kept @ each.bias) for each in maps)
    return images, texts
