"""A linear head without a single step: regularised canonical correlation analysis.

With centred features X of the images and Y of their captions, both are whitened and the whitened
cross-covariance is decomposed: U S V^T = Cxx^-1/2 Cxy Cyy^-1/2. Image i is mapped to
(x Cxx^-1/2 U) S^p and a text to (y Cyy^-1/2 V) S^p (Hotelling, Biometrika 1936; ridge terms as in
Vinod, J. Econometrics 1976; p damps axes that hardly correlate, as the eigenvalue powers of Gong et
al., IJCV 2014, do). The ridge is a share of a side's whole variance over the number of pairs, the
size of what sampling adds to every direction of a covariance. Ridge and power are chosen on images
that were left out. Training starts here: on a few hundred pairs hardly anything better can be
learned, on thousands it saves most epochs.
"""

from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_engine.errors import TrainingError
from retrieval_engine.models.device import is_fast_at_bfloat16
from retrieval_engine.train.head.pairs import FeaturePairs
from retrieval_engine.train.head.val_recall import val_recall

_RIDGES = [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
_USUAL_RIDGE = 1.0
_POWERS = (0.5, 1.0, 2.0, 4.0)
_USUAL_POWER = 1.0
_FEW_IMAGES = 1000  # below, both are chosen by cross-validation
_FOLDS = 5
_MOST_NUMBERS = 2**27  # of the pairs' features: 512 MiB, 262,144 pairs of 256 and 256
MOST_JUDGED = 32_768  # pairs: 5,000 images with all their captions, and to spare
_BLOCK = 2048
_MANY_ROWS = 1000  # from which bfloat16 is worth it
_SMALLEST = 1e-12  # of a trace: all rows of a fold may be equal


@dataclass(frozen=True, slots=True, kw_only=True)
class TruePairs:
    """Image and text features, row by row of one pair.

    Attributes:
        images: (m, w) float32.
        texts: (m, v) float32.
        image: (m,) number of each row's image.
    """

    images: Tensor
    texts: Tensor
    image: Tensor

    def part(self, rows: Tensor) -> "TruePairs":
        """The pairs whose (m,) mask is True."""
        return TruePairs(images=self.images[rows], texts=self.texts[rows], image=self.image[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMaps:
    """x -> x @ weight.T + bias for standardised features of both sides.

    Attributes:
        image: (dim, w) weight and (dim,) bias.
        text: (dim, v) weight and (dim,) bias.
        ridge: what it was made with; 0 for the identity.
        power: likewise.
    """

    image: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor]
    ridge: float = 0.0
    power: float = 0.0

    def __call__(self, pairs: TruePairs) -> tuple[Tensor, Tensor]:
        """(m, dim) images and texts, not normalised."""
        sides = (pairs.images, self.image), (pairs.texts, self.text)
        ours, theirs = (rows @ weight.T + bias for rows, (weight, bias) in sides)
        return ours, theirs


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """(w,) mean and (w,) factor that bring (n, w) rows to mean 0 and mean square 1.

    One factor for all dimensions: their ratios are the encoder's own and mean something.
    """
    mean = x.mean(0)
    spread = ((x - mean).square_().mean()).sqrt().clamp_min(1e-12)
    return mean, (1 / spread).expand_as(mean)


def one_to_one(
    pairs: FeaturePairs, generator: torch.Generator, *, most: int | None = None
) -> TruePairs:
    """True pairs as rows, at most so many, by default as many as 512 MiB hold.

    Covariances gain by every pair: a head made of 100,000 finds 62 of 100, of a third of them 58.
    Of several vectors of an image the one nearest to the text is taken where the two sides have
    one width, else their mean.
    """
    image, row = pairs.owners
    most = most or _MOST_NUMBERS // (pairs.images.shape[-1] + pairs.texts.shape[-1])
    if len(image) > most:
        chosen = torch.randperm(len(image), generator=generator)[:most].to(image.device)
        chosen = chosen.sort().values
        image, row = image[chosen], row[chosen]
    texts = pairs.texts[row].float()
    starts = range(0, len(image), _BLOCK)
    blocks = (slice(start, start + _BLOCK) for start in starts)
    images = torch.cat([_one_vector(pairs.images[image[b]], texts[b]) for b in blocks])
    return TruePairs(images=images, texts=texts, image=image)


def _one_vector(vectors: Tensor, texts: Tensor) -> Tensor:
    """(m, w) float32 of (m, q, w) image vectors: the only one, the nearest to its text, or the mean."""
    if vectors.shape[1] == 1:
        return vectors[:, 0].float()
    vectors = vectors.float()
    if vectors.shape[2] != texts.shape[1]:
        return vectors.mean(1)
    nearest = torch.einsum("mqd,md->mq", vectors, texts).argmax(1)
    return vectors[torch.arange(len(vectors), device=vectors.device), nearest]


class Moments:
    """Means and covariances of paired rows.

    Where a side has fewer rows than dimensions it is kept in a basis of their span, in which the
    solution lies anyway: a hundred pairs of 2,048 dimensions are a problem of size 100.

    Args:
        pairs: standardised.
    """

    def __init__(self, pairs: TruePairs) -> None:
        x, y = pairs.images, pairs.texts
        self.rows = len(x)
        self.means = x.mean(0), y.mean(0)
        (x, x_basis), (y, y_basis) = (_spanned(side - side.mean(0)) for side in (x, y))
        self.bases = x_basis, y_basis
        # Trap: of real features bfloat16 leaves a matrix that is no covariance.
        self.own = x.T @ x / self.rows, y.T @ y / self.rows
        self.cross = x.T @ y / self.rows


def _spanned(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows and the (w, r) basis they are given in; None for the usual one."""
    if len(x) > x.shape[1]:
        return x, None
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u * s, vh.T


class Axes:
    """Directions of both sides that correlate, the strongest first.

    Args:
        moments: of the pairs.
        ridge: of each side, as a multiple of its whole variance over the number of pairs.
        most: directions wanted; there are no more than the smaller side has dimensions.

    Attributes:
        ridge: as given.
        correlations: (k,) canonical correlations of the pairs they were made of.
    """

    def __init__(self, moments: Moments, ridge: float, most: int) -> None:
        self.ridge = ridge
        roots = tuple(_root(own, ridge / moments.rows) for own in moments.own)
        cross = torch.linalg.solve_triangular(roots[0], moments.cross, upper=False)
        cross = torch.linalg.solve_triangular(roots[1], cross.T, upper=False).T
        # Singular vectors of the smaller side through a symmetric eigenproblem: a fifth of the time.
        narrow = cross if cross.shape[0] <= cross.shape[1] else cross.T
        values, vectors = torch.linalg.eigh(narrow @ narrow.T)
        keep = slice(-min(most, len(values)), None)
        vectors = vectors[:, keep].flip(1)
        self.correlations = values[keep].flip(0).clamp_min(1e-10).sqrt()
        both = vectors, narrow.T @ vectors / self.correlations
        self._forms = []
        sides = both if narrow is cross else both[::-1]
        for whitened, root, basis, mean in zip(
            sides, roots, moments.bases, moments.means, strict=True
        ):
            axes = torch.linalg.solve_triangular(root.T, whitened, upper=True)
            if basis is not None:
                axes = basis @ axes
            self._forms.append((axes, -mean @ axes))

    def judge(self, pairs: TruePairs) -> dict[float, float]:
        """How well other pairs are found, by the power of the correlations; see `maps`."""
        sides = (pairs.images, self._forms[0]), (pairs.texts, self._forms[1])
        images, texts = (rows @ axes + bias for rows, (axes, bias) in sides)
        weights = {power: self.correlations**power for power in _POWERS}
        return {
            power: reciprocal_rank(images * weight, texts * weight, pairs.image)
            for power, weight in weights.items()
        }

    def maps(self, power: float, dim: int) -> LinearMaps:
        """Both sides scaled by the correlations' power; dimensions beyond the axes are zero."""
        weights = self.correlations**power
        made = []
        for axes, bias in self._forms:
            beyond = dim - len(weights)
            weight = torch.nn.functional.pad(axes * weights, (0, beyond)).T
            made.append(_at_unit_size(weight, torch.nn.functional.pad(bias * weights, (0, beyond))))
        return LinearMaps(image=made[0], text=made[1], ridge=self.ridge, power=power)


def _root(covariance: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of a covariance, a share of its trace added; more if rounding asks for it."""
    added = ridge * covariance.trace().clamp_min(_SMALLEST)
    unit = torch.eye(len(covariance), device=covariance.device)
    for times in (1, 10, 100, 1000):
        found = torch.linalg.cholesky_ex(covariance + times * added * unit)
        if not found.info:
            root: Tensor = found.L
            return root
    raise TrainingError("no head can begin at these features: they are not finite, or of no spread")


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
    pairs: TruePairs, dim: int, as_is: LinearMaps | None, held_out: TruePairs | None
) -> LinearMaps:
    """Maps made from all pairs, with the ridge and the power that find left-out pairs best.

    Few images are left out in turn, in five folds; where there are many the power is chosen on
    `held_out`, at the usual ridge.

    Args:
        pairs: standardised; what the maps are made from.
        dim: of the common space.
        as_is: the identity, as another candidate: features that are aligned already, such as
            CLIP's, are hard to better with few pairs.
        held_out: standardised pairs of other images; without them folds decide.
    """
    _, number = torch.unique(pairs.image, return_inverse=True)
    images = int(number.max()) + 1
    if images < 2 * _FOLDS:
        return as_is or Axes(Moments(pairs), _USUAL_RIDGE, dim).maps(_USUAL_POWER, dim)
    if held_out is not None and images >= _FEW_IMAGES:
        trials, ridges = [(pairs, held_out)], [_USUAL_RIDGE]
    else:
        folds = [number % _FOLDS == fold for fold in range(_FOLDS)]
        trials, ridges = [(pairs.part(~out), pairs.part(out)) for out in folds], _RIDGES
    made: dict[float, Axes] = {}
    totals: defaultdict[tuple[float, float], float] = defaultdict(float)
    for learned, left_out in trials:
        moments = Moments(learned)
        for ridge in ridges:
            made[ridge] = Axes(moments, ridge, dim)
            for power, gained in made[ridge].judge(left_out).items():
                totals[ridge, power] += gained
        if as_is is not None:
            totals[0.0, 0.0] += reciprocal_rank(*as_is(left_out), left_out.image)
    ridge, power = max(totals, key=lambda choice: totals[choice])
    if as_is is not None and ridge == 0:
        return as_is
    axes = made[ridge] if len(trials) == 1 else Axes(Moments(pairs), ridge, dim)
    return axes.maps(power, dim)


def reciprocal_rank(images: Tensor, texts: Tensor, image: Tensor) -> float:
    """Mean reciprocal rank, both directions, of mapped rows that belong together.

    Args:
        images: (n, d).
        texts: (n, d).
        image: (n,) number of each row's image.
    """
    kept, number = torch.unique(image, return_inverse=True)
    first = torch.full((len(kept),), len(number), device=images.device)
    row = torch.arange(len(number), device=images.device)
    first = first.scatter_reduce(0, number, row, "amin")
    unit = torch.nn.functional.normalize
    return val_recall(unit(images[first], dim=-1), unit(texts, dim=-1), number).reciprocal


def half_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast to bfloat16 where the device is fast at it and the (n, …) rows are many."""
    fast = len(x) > _MANY_ROWS and (x.is_cuda or is_fast_at_bfloat16())
    return torch.autocast(x.device.type, torch.bfloat16, enabled=fast)
