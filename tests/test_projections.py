"""Projections of two trainings in one: their cosine, their directions, and who decides."""

from pathlib import Path

import pytest
import torch

from retrieval_engine.progress import Silent
from retrieval_engine.train.head.beside import Affine, Maps, narrowed, side_by_side
from retrieval_engine.train.head.pairs import FeaturePairs
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.cached.projections import improve_projections


def affine(d: int, w: int, seed: int, *, turned: bool = False) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d, w, dtype=torch.float64, generator=generator)
    if turned:  # lengths stay
        weight = torch.linalg.qr(weight).Q
        return Affine(weight, torch.zeros(d, dtype=torch.float64))
    return Affine(weight, torch.randn(d, dtype=torch.float64, generator=generator))


def unit(n: int, w: int, seed: int) -> torch.Tensor:
    points = torch.randn(n, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(points, dim=1)


def cosine(maps: Maps, features: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    a, b = (torch.nn.functional.normalize(m(x), dim=1) for m, x in zip(maps, features, strict=True))
    return a @ b.T


def test_side_by_side_the_cosines_are_added() -> None:
    features = unit(20, 6, 0), unit(30, 6, 1)
    ours = affine(6, 6, 2, turned=True), affine(6, 6, 3, turned=True)
    theirs = affine(6, 6, 4, turned=True), affine(6, 6, 5, turned=True)
    both = side_by_side(ours, theirs, features, 0.5)
    expected = (cosine(ours, features) + 0.5 * cosine(theirs, features)) / 1.5
    torch.testing.assert_close(cosine(both, features), expected)
    assert both[0].weight.shape == (12, 6)


def test_narrowed_to_what_is_reached_nothing_is_lost() -> None:
    features = unit(200, 6, 0), unit(300, 6, 1)
    wide = side_by_side(
        (affine(8, 6, 2), affine(8, 6, 3)), (affine(8, 6, 4), affine(8, 6, 5)), features, 0.5
    )
    exact = cosine(wide, features)
    found = narrowed(wide, features, 14)  # six channels and an origin on each side
    torch.testing.assert_close(cosine(found, features), exact)
    near = cosine(narrowed(wide, features, 10), features)
    far = cosine(narrowed(wide, features, 2), features)
    assert 1e-6 < (near - exact).abs().mean() < (far - exact).abs().mean()


class Layers:
    """As much of a model as has projections."""

    def __init__(self, width: int, dim: int) -> None:
        self.vision_proj, self.text_proj = (torch.nn.Linear(width, dim) for _ in range(2))
        self.retrieval = self


def pairs(n: int, mixing: torch.Tensor, seed: int) -> FeaturePairs:
    """Captions are their images, mixed, with noise; two of each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, len(mixing), generator=generator)
    texts = (images @ mixing).repeat_interleave(2, dim=0)
    texts += 0.3 * torch.randn(texts.shape, generator=generator)
    return FeaturePairs(
        images=images[:, None], texts=texts, captions=torch.arange(2 * n).view(n, 2)
    )


@pytest.mark.parametrize("are_good", [False, True])
def test_held_out_pictures_decide(tmp_path: Path, are_good: bool) -> None:
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(16, 16)).Q
    train, val = pairs(300, mixing, 1), pairs(100, mixing, 2)
    model = Layers(16, 16)
    with torch.no_grad():
        if are_good:  # as good as can be: a head that has seen 300 pictures knows less
            model.vision_proj.weight.copy_(torch.eye(16))
            model.text_proj.weight.copy_(mixing)
            for layer in (model.vision_proj, model.text_proj):
                layer.bias.zero_()
    before = {k: v.clone() for k, v in model.vision_proj.state_dict().items()}
    log = tmp_path / "head.jsonl"
    found = improve_projections(model, train, val, log, Silent())  # type: ignore[arg-type]
    assert found > 90
    assert bool((model.vision_proj.weight == before["weight"]).all()) == are_good
    assert log.read_text().count("\n") == 5  # the start, and four epochs
    assert CachedModel.embed_images(model, val.images).shape == (100, 16)  # type: ignore[arg-type]
