"""A linear head without a single step: regularised canonical correlation analysis.

With centred features X of the images and Y of their captions, both are whitened and the whitened
cross-covariance is decomposed: U S V^T = Cxx^-1/2 Cxy Cyy^-1/2. Image i is mapped to
(x Cxx^-1/2 U) S^1/2 and a text to (y Cyy^-1/2 V) S^1/2 (Hotelling, Biometrika 1936; ridge terms as in Vinod,
J. Econometrics 1976). The ridge is a share of a side's whole variance over the number of pairs, the
size of what sampling adds to every direction of a covariance. Training starts here: on a few
hundred pairs hardly anything better can be learned, on thousands it saves most epochs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_engine.train.heads.data import Pairs
from retrieval_engine.train.heads.precision import half_precision
from retrieval_engine.train.heads.ranks import scores, val_recall

_RIDGES = (0.3, 1.0, 3.0, 10.0)
_USUAL_RIDGE = 2.0
_FEW_IMAGES = 1000  # up to here the ridge is chosen by cross-validation
_FOLDS = 5
_MOST_PAIRS = 8192  # more would hardly change the covariances


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMaps:
    """x -> x @ weight.T + bias for standardised features of both sides.

    Attributes:
        image: (dim, w) weight and (dim,) bias.
        text: (dim, v) weight and (dim,) bias.
        ridge: what it was made with; 0 for the identity.
    """

    image: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor]
    ridge: float = 0.0


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """(w,) mean and (w,) factor that bring (n, w) rows to mean 0 and mean square 1.

    One factor for all dimensions: their ratios are the encoder's own and mean something.
    """
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    spread = variance.mean().sqrt().clamp_min(1e-12)
    return mean, (1 / spread).expand_as(mean)


def one_to_one(pairs: Pairs, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """True pairs as rows: (m, w) images, (m, v) texts and (m,) image numbers, float32.

    Of several vectors of an image the one nearest to the text is taken where the two sides have
    one width, else their mean.
    """
    image, row = pairs.owners
    if len(image) > _MOST_PAIRS:
        chosen = torch.randperm(len(image), generator=generator)[:_MOST_PAIRS].to(image.device)
        chosen = chosen.sort().values
        image, row = image[chosen], row[chosen]
    texts = pairs.texts[row].float()
    if pairs.images.shape[1] == 1:
        return pairs.images[image, 0].float(), texts, image
    vectors = pairs.images[image].float()
    if vectors.shape[2] != texts.shape[1]:
        return vectors.mean(1), texts, image
    nearest = torch.einsum("mqd,md->mq", vectors, texts).argmax(1)
    return vectors[torch.arange(len(vectors), device=vectors.device), nearest], texts, image


class Moments:
    """Means and covariances of paired rows.

    Where a side has fewer rows than dimensions it is kept in a basis of their span, in which the
    solution lies anyway: a hundred pairs of 2,048 dimensions are a problem of size 100.

    Args:
        x: (n, w) standardised images.
        y: (n, v) standardised texts; row i belongs to row i of x.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.rows = len(x)
        self.means = x.mean(0), y.mean(0)
        (x, x_basis), (y, y_basis) = (_spanned(side - side.mean(0)) for side in (x, y))
        self.bases = x_basis, y_basis
        # The rounding of bfloat16 is a tenth of the smallest ridge in use, and four times faster.
        with half_precision(x):
            products = x.T @ x, y.T @ y, x.T @ y
        xx, yy, self.cross = (p.to(x.dtype) / self.rows for p in products)
        self.own = xx, yy


def _spanned(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows and the (w, r) basis they are given in; None for the usual one."""
    if len(x) > x.shape[1]:
        return x, None
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u * s, vh.T


def solve(moments: Moments, ridge: float, dim: int) -> LinearMaps:
    """The closed-form maps.

    Args:
        moments: of the pairs.
        ridge: of each side, as a multiple of its whole variance over the number of pairs.
        dim: of the common space; directions beyond the rank are zero.
    """
    x_root, y_root = (_root(own, ridge / moments.rows) for own in moments.own)
    cross = torch.linalg.solve_triangular(x_root, moments.cross, upper=False)
    cross = torch.linalg.solve_triangular(y_root, cross.T, upper=False).T
    # Singular vectors of the smaller side through a symmetric eigenproblem: a fifth of the time.
    narrow = cross if cross.shape[0] <= cross.shape[1] else cross.T
    values, vectors = torch.linalg.eigh(narrow @ narrow.T)
    keep = slice(-min(dim, len(values)), None)
    vectors = vectors[:, keep].flip(1)
    singular = values[keep].flip(0).clamp_min(1e-10).sqrt()
    ours, theirs = vectors * singular.sqrt(), narrow.T @ vectors / singular.sqrt()
    axes = (ours, theirs) if narrow is cross else (theirs, ours)
    maps = []
    for side, root in enumerate((x_root, y_root)):
        weight = torch.linalg.solve_triangular(root.T, axes[side], upper=True)
        basis = moments.bases[side]
        if basis is not None:
            weight = basis @ weight
        weight = torch.nn.functional.pad(weight, (0, dim - weight.shape[1])).T
        maps.append(_at_unit_size(weight, -weight @ moments.means[side]))
    return LinearMaps(image=maps[0], text=maps[1], ridge=ridge)


def _root(covariance: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of a covariance with a share of its trace on the diagonal."""
    added = ridge * covariance.trace()
    unit = torch.eye(len(covariance), device=covariance.device)
    root: Tensor = torch.linalg.cholesky(covariance + added * unit)
    return root


def _at_unit_size(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same directions, entries of the size that layers start with (lengths are divided out)."""
    size = weight.square().mean().sqrt() * weight.shape[1] ** 0.5
    return weight / size, bias / size


def identity(x_form: tuple[Tensor, Tensor], y_form: tuple[Tensor, Tensor]) -> LinearMaps:
    """Maps that give standardised features back as they were before, up to one factor.

    Args:
        x_form: mean and factor of the images.
        y_form: of the texts; of the same width.
    """
    made = []
    for mean, factor in (x_form, y_form):
        made.append(_at_unit_size(torch.diag(1 / factor), mean.clone()))
    return LinearMaps(image=made[0], text=made[1])


def choose_maps(
    x: Tensor, y: Tensor, image: Tensor, dim: int, as_is: LinearMaps | None
) -> LinearMaps:
    """The maps that find held-out pairs best, by five folds of images, made from all pairs.

    Args:
        x: (n, w) standardised images.
        y: (n, v) standardised texts.
        image: (n,) image number of each row.
        dim: of the common space.
        as_is: the identity, as another candidate: features that are aligned already, such as
            CLIP's, are hard to better with few pairs.
    """
    _, number = torch.unique(image, return_inverse=True)
    candidates = _RIDGES if int(number.max()) < _FEW_IMAGES else (_USUAL_RIDGE,)
    if int(number.max()) < 2 * _FOLDS:
        return as_is or solve(Moments(x, y), _USUAL_RIDGE, dim)
    if len(candidates) == 1 and as_is is None:
        return solve(Moments(x, y), _USUAL_RIDGE, dim)
    totals = dict.fromkeys((*candidates, 0.0), 0.0)
    for fold in range(_FOLDS if len(candidates) > 1 else 1):  # one fold of many images is enough
        out = number % _FOLDS == fold
        held = x[out], y[out], number[out]
        moments = Moments(x[~out], y[~out])
        for ridge in candidates:
            totals[ridge] += reciprocal_rank(solve(moments, ridge, dim), *held)
        if as_is is not None:
            totals[0.0] += reciprocal_rank(as_is, *held)
    best = max(totals, key=lambda ridge: totals[ridge])
    return as_is if as_is and best == 0.0 else solve(Moments(x, y), best, dim)


def reciprocal_rank(maps: LinearMaps, x: Tensor, y: Tensor, image: Tensor) -> float:
    """Mean reciprocal rank, both directions, of rows that belong together."""
    kept, number = torch.unique(image, return_inverse=True)
    first = torch.full((len(kept),), len(number), device=x.device)
    row = torch.arange(len(number), device=x.device)
    first = first.scatter_reduce(0, number, row, "amin")
    pictures = _mapped(x[first], maps.image)
    return val_recall(scores(pictures[:, None], _mapped(y, maps.text)), number).reciprocal


def _mapped(x: Tensor, form: tuple[Tensor, Tensor]) -> Tensor:
    return torch.nn.functional.normalize(x @ form[0].T + form[1], dim=-1)
