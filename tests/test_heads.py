"""Head modules, losses, the closed-form start, and what is saved."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    ShapeError,
    UsageError,
)
from retrieval_engine.heads import (
    Head,
    HeadConfig,
    HeadKind,
    SavedHead,
    TrainedOn,
    load_head,
    save_head,
)
from retrieval_engine.heads.projection import LinearProjection, MlpProjection, Projection
from retrieval_engine.metrics.pair_scores import block_scores
from retrieval_engine.records import Modality
from retrieval_engine.testing import HeadContract, ProjectionContract
from retrieval_engine.train.head import closed_form, fitting
from retrieval_engine.train.head.val_recall import val_recall
from tests.paired_vectors import views

CONFIG = HeadConfig(
    kind=HeadKind.MLP, feature="pooled", image_width=6, text_width=9, dim=4, hidden=16
)


def saved(tmp_path: Path, config: HeadConfig = CONFIG) -> SavedHead:
    torch.manual_seed(0)
    head = SavedHead(
        path=tmp_path / "head",
        head=Head(config).eval(),
        encoder="e" * 64,
        checkpoint="somebody/blip",
        inputs={m: f"{m}-print" for m in Modality},
        record={"store": "embeddings"},
    )
    trained = TrainedOn(
        sources=["s", "s"], ids=["a", "b"], keys=["k1", "k2"], roles=["train", "val"]
    )
    return save_head(head, trained)


class TestLinearProjection(ProjectionContract):
    def open(self, width: int, dim: int) -> Projection:
        return LinearProjection(width, dim)


class TestMlpProjection(ProjectionContract):
    def open(self, width: int, dim: int) -> Projection:
        return MlpProjection(width, dim, hidden=11)


class TestMlpProjectionBesideALinearPath(ProjectionContract):
    def open(self, width: int, dim: int) -> Projection:
        return MlpProjection(width, dim, hidden=11, dropout=0.3, residual=True)


class TestMlpHead(HeadContract):
    def open(self) -> Head:
        return Head(dataclasses.replace(CONFIG, dropout=0.5))


class TestLinearHead(HeadContract):
    def open(self) -> Head:
        return Head(dataclasses.replace(CONFIG, kind=HeadKind.LINEAR, hidden=0))


class TestLinearHeadWithoutBias(HeadContract):
    def open(self) -> Head:
        return Head(dataclasses.replace(CONFIG, kind=HeadKind.LINEAR, hidden=0, bias=False))


def test_an_mlp_with_few_units_begins_at_the_leading_outputs() -> None:
    torch.manual_seed(1)
    weight, bias, x = torch.randn(4, 6), torch.randn(4), torch.randn(50, 6)
    mlp = MlpProjection(6, 4, hidden=5)
    mlp.start_from(weight, bias)
    expected = x @ weight.T + bias
    assert torch.allclose(mlp(x)[:, :2], expected[:, :2], atol=1e-5)
    assert torch.equal(mlp(x)[:, 2:], torch.zeros(50, 2))


def test_projections_are_unit_vectors_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = Head(CONFIG)
    x = np.random.default_rng(0).standard_normal((37, 3, 6)).astype(np.float16)
    whole = head.project(Modality.IMAGES, x)
    monkeypatch.setattr("retrieval_engine.heads.head._BLOCK_VECTORS", 8)
    assert whole.shape == (37, 3, 4)
    assert np.allclose(np.linalg.norm(whole, axis=-1), 1, atol=1e-6)
    assert np.allclose(head.project(Modality.IMAGES, x), whole, atol=1e-6)
    with pytest.raises(ShapeError, match="captions of width 9, got"):
        head.project(Modality.CAPTIONS, x)


def test_damaged_heads_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"head.json is not there"):
        load_head(tmp_path)
    path = saved(tmp_path).path
    (path / "head.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointInvalid, match=r"not the file that head.json describes"):
        load_head(path)
    record = json.loads((path / "head.json").read_text())
    (path / "head.json").write_text(json.dumps({**record, "format": 7}))
    with pytest.raises(CheckpointInvalid, match="format 7, known is 1"):
        load_head(path)
    (path / "head.json").write_text("{")
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        load_head(path)


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 0}, {"dim": 10**6}, {"hidden": 1}, {"dropout": 1.0}, {"image_width": -1}],
)
def test_forms_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 3))
def test_captions_of_one_image_are_never_its_negatives(seed: int, b: int, each: int) -> None:
    """The loss equals its definition, pair by pair, in float64."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((b, b * each)) * 4
    positive = np.repeat(np.eye(b, dtype=bool), each, axis=1)
    positive[0, -1] = True  # a sentence that two images share
    expected = 0.0
    for i, j in zip(*np.nonzero(positive), strict=True):
        e = np.exp(logits)
        to_text = -np.log(e[i, j] / (e[i, j] + e[i][~positive[i]].sum()))
        to_image = -np.log(e[i, j] / (e[i, j] + e[:, j][~positive[:, j]].sum()))
        expected += to_text / positive[i].sum() / b / 2
        expected += to_image / positive[:, j].sum() / (b * each) / 2
    got = fitting.info_nce_loss(torch.from_numpy(logits), torch.from_numpy(positive))
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_loss_without_any_negative_is_nothing_and_has_gradients() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = fitting.info_nce_loss(logits, torch.ones(3, 4, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_with_one_caption_each_the_loss_is_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 8) * 3
    ours = fitting.info_nce_loss(logits, torch.eye(8, dtype=torch.bool))
    assert float(ours) == pytest.approx(float(fitting.diagonal_loss(logits)), rel=1e-5)


def test_sigmoid_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    signs = np.array([[1, -1], [-1, 1]])
    expected = np.log1p(np.exp(-signs * logits.numpy())).sum() / 2
    assert float(fitting.sigmoid_loss(logits, torch.eye(2).bool())) == pytest.approx(
        expected, rel=1e-6
    )


def true_pairs(x: torch.Tensor, y: torch.Tensor) -> closed_form.TruePairs:
    return closed_form.TruePairs(images=x, texts=y, image=torch.arange(len(x)))


def solve(x: torch.Tensor, y: torch.Tensor, ridge: float, dim: int) -> closed_form.LinearMaps:
    axes = closed_form.Axes(closed_form.Moments(true_pairs(x, y)), ridge, dim)
    return axes.maps(0.5, dim)


def test_closed_form_is_canonical_correlation() -> None:
    """Without a ridge, mapped sides are uncorrelated across axes, and scipy-free CCA agrees."""
    images, texts, owner = views(400, (12, 9))
    x, y = torch.from_numpy(images[owner]).double(), torch.from_numpy(texts).double()
    maps = solve(x, y, 0.0, 9)
    a, b = (
        (side - side.mean(0)) @ weight.T for side, (weight, _) in ((x, maps.image), (y, maps.text))
    )
    mixed = torch.corrcoef(torch.cat([a.T, b.T]))
    across = mixed[:9, 9:]
    q, r = (np.linalg.qr(side - side.mean(0))[0] for side in (x.numpy(), y.numpy()))
    expected = np.linalg.svd(q.T @ r, compute_uv=False)
    assert np.allclose(across.diagonal().abs().numpy(), expected, atol=1e-6)
    assert (across - across.diagonal().diag()).abs().max() < 1e-6


def test_few_rows_are_solved_in_their_span() -> None:
    """The same ridge gives the same scores with the span's basis and without it."""
    images, texts, owner = views(30, (60, 50), captions=1)
    x, y = torch.from_numpy(images[owner]).double(), torch.from_numpy(texts).double()
    maps = solve(x, y, 1.0, 29)
    # More rows than dimensions; three times the rows make a third of the ridge each.
    again = solve(torch.cat([x, x, x]), torch.cat([y, y, y]), 3.0, 29)

    def similarity(form: closed_form.LinearMaps) -> torch.Tensor:
        a, b = (side @ w.T + c for side, (w, c) in ((x, form.image), (y, form.text)))
        return torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T

    assert torch.allclose(similarity(maps), similarity(again), atol=1e-4)


def test_features_that_agree_already_stay_as_they_are() -> None:
    """With few pairs of one space, nothing beats leaving them alone."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((40, 64))).float() + 1
    y = x + 0.8 * torch.from_numpy(rng.standard_normal((40, 64))).float()
    forms = closed_form.standardisation(x), closed_form.standardisation(y)
    rows = [(side - mean) * factor for side, (mean, factor) in zip((x, y), forms, strict=True)]
    pairs = true_pairs(rows[0], rows[1])
    maps = closed_form.choose_maps(pairs, 64, closed_form.identity(*forms), pairs)
    assert maps.ridge == 0
    back = rows[0] @ maps.image[0].T + maps.image[1]
    assert torch.allclose(
        torch.nn.functional.normalize(back), torch.nn.functional.normalize(x), atol=1e-5
    )


def test_validation_recall_gives_ties_to_the_lower_index() -> None:
    images = torch.nn.functional.one_hot(torch.arange(3), 3).float()[:, None]
    texts = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0, 0.8], [0, 0.8, 0.6]])
    found = val_recall(images, texts, torch.tensor([0, 1, 2, 2]))
    assert found.text_to_image[0] == 75
    assert found.image_to_text[0] == 100
    collapsed = val_recall(torch.ones(20, 1), torch.ones(20, 1), torch.arange(20))
    assert collapsed.image_to_text == collapsed.text_to_image == (5, 25, 50)


def test_score_of_several_vectors_is_their_maximum() -> None:
    images = torch.randn(5, 4, 8)
    texts = torch.randn(6, 8)
    expected = torch.einsum("nqd,md->nqm", images, texts).amax(1)
    assert torch.allclose(block_scores(images, texts[:, None]), expected, atol=1e-5)
