"""What every kind of head must do: unit vectors out, and the same ones after it was saved."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retrieval_engine.errors import FingerprintMismatch, ShapeError
from retrieval_engine.heads import Head, HeadConfig, SavedHead, TrainedOn, load_head, save_head
from retrieval_engine.heads.projection import Projection
from retrieval_engine.records import Feature, Modality

WIDTH, DIM = 6, 4


class ProjectionContract(ABC):
    """Subclass it with `open`: one side of a head."""

    @abstractmethod
    def open(self, width: int, dim: int) -> Projection:
        """A new projection, large enough to be any linear map from `width` to `dim` numbers."""

    @pytest.fixture
    def projection(self) -> Projection:
        torch.manual_seed(1)
        return self.open(WIDTH, DIM).eval()

    @pytest.fixture
    def x(self) -> torch.Tensor:
        return torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(2))

    def test_each_vector_is_mapped_by_itself(self, projection: Projection, x: torch.Tensor) -> None:
        assert (projection.width, projection.dim) == (WIDTH, DIM)
        out = projection(x)
        assert out.shape == (50, DIM)
        assert (out[0] - out[1]).abs().max() > 1e-3
        torch.testing.assert_close(projection(x[7:8])[0], out[7], atol=1e-5, rtol=0)
        folded = projection(x.view(10, 5, WIDTH))
        torch.testing.assert_close(folded.view(50, DIM), out, atol=1e-5, rtol=0)

    def test_it_can_begin_exactly_at_a_linear_map(
        self, projection: Projection, x: torch.Tensor
    ) -> None:
        weight, bias = torch.randn(DIM, WIDTH), torch.randn(DIM)
        projection.start_from(weight, bias)
        assert torch.allclose(projection(x), x @ weight.T + bias, atol=1e-5)

    def test_what_it_reads_is_standardised(self, projection: Projection, x: torch.Tensor) -> None:
        mean, scale = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
        plain = projection((x - mean) * scale)
        projection.standardise(mean, scale)
        torch.testing.assert_close(projection(x), plain, atol=1e-5, rtol=0)

    def test_gradients_reach_the_weights_and_leave_the_standardisation(
        self, projection: Projection, x: torch.Tensor
    ) -> None:
        projection(x).square().mean().backward()
        parameters = dict(projection.named_parameters())
        assert parameters
        assert not {"mean", "scale"} & parameters.keys()
        assert [n for n, p in parameters.items() if p.grad is None or not p.grad.any()] == []

    def test_its_weights_make_another_the_same(
        self, projection: Projection, x: torch.Tensor
    ) -> None:
        projection.standardise(torch.randn(WIDTH), torch.rand(WIDTH) + 0.5)
        twin = self.open(WIDTH, DIM).eval()
        assert not torch.equal(twin(x), projection(x))
        twin.load_state_dict(projection.state_dict())
        assert torch.equal(twin(x), projection(x))


class HeadContract(ABC):
    """Subclass it with `open`."""

    @abstractmethod
    def open(self) -> Head:
        """A new head with random weights; it reads `pooled`."""

    @pytest.fixture
    def head(self) -> Head:
        torch.manual_seed(0)
        return self.open()

    @pytest.fixture
    def saved(self, head: Head, tmp_path: Path) -> SavedHead:
        written = SavedHead(
            path=tmp_path / "head",
            head=head.eval(),
            encoder="e" * 64,
            checkpoint="somebody/blip",
            inputs={m: f"{m}-print" for m in Modality},
            record={"store": "embeddings"},
        )
        trained = TrainedOn(
            sources=["s", "s"], ids=["a", "b"], keys=["k1", "k2"], roles=["train", "val"]
        )
        return save_head(written, trained)

    @pytest.mark.parametrize("modality", Modality)
    def test_what_it_emits_has_unit_length(self, head: Head, modality: Modality) -> None:
        x = _features(head, modality)
        found = head.project(modality, x)
        assert found.shape == (37, 3, head.config.dim)
        assert found.dtype == np.float32
        assert np.allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
        assert np.ptp(found, axis=0).max() > 1e-3
        assert np.allclose(head.project(modality, x[5:6]), found[5:6], atol=1e-6)
        assert np.allclose(head.project(modality, x[:, 1]), found[:, 1:2], atol=1e-6)

    @pytest.mark.parametrize("modality", Modality)
    def test_projecting_drops_nothing_out_and_leaves_training_as_it_was(
        self, head: Head, modality: Modality
    ) -> None:
        x = _features(head, modality)
        for training in (True, False):
            head.train(training)
            assert np.array_equal(head.project(modality, x), head.project(modality, x))
            assert head.training == training

    @pytest.mark.parametrize("modality", Modality)
    def test_another_width_is_refused(self, head: Head, modality: Modality) -> None:
        width = _width(head, modality)
        with pytest.raises(ShapeError, match=f"{modality} of width {width}, got"):
            head.project(modality, np.ones((2, width + 1), np.float32))

    def test_its_form_survives_json(self, head: Head) -> None:
        assert HeadConfig.from_json(head.config.to_json()) == head.config

    def test_saved_it_comes_back_as_it_was(self, saved: SavedHead) -> None:
        after = load_head(saved.path)
        assert (after.config, after.weights) == (saved.config, saved.weights)
        assert (after.encoder, after.checkpoint) == ("e" * 64, "somebody/blip")
        assert after.inputs == saved.inputs
        assert after.record["store"] == "embeddings"
        assert after.trained_on().seen(["s", "t", "t"], ["a", "b", "c"], ["x", "y", "k2"]) == [
            "train",
            "",
            "val",
        ]
        for modality in Modality:
            x = _features(saved.head, modality)
            assert np.array_equal(after.head.project(modality, x), saved.head.project(modality, x))

    def test_features_of_another_encoder_are_refused(self, saved: SavedHead) -> None:
        def forms(prints: dict[Modality, str]) -> dict[Modality, dict[str, Feature]]:
            name = saved.config.feature
            return {
                m: {name: Feature(name=name, shape=(6,), dtype="float16", fingerprint=p)}
                for m, p in prints.items()
            }

        saved.check(forms({m: f"{m}-print" for m in Modality}), "f" * 64)
        for changed in Modality:
            other = {m: "adapter" if m is changed else f"{m}-print" for m in Modality}
            with pytest.raises(
                FingerprintMismatch, match=r"somebody/blip.*eeeeeeeeeeee, expected ffff"
            ):
                saved.check(forms(other), "f" * 64)


def _width(head: Head, modality: Modality) -> int:
    return head.config.image_width if modality is Modality.IMAGES else head.config.text_width


def _features(head: Head, modality: Modality) -> NDArray[np.float16]:
    """(37, 3, width) features as a store keeps them."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((37, 3, _width(head, modality))).astype(np.float16)
