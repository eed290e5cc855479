"""What every learner must do: give gradients to all its weights, and the numbers of its encoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.models.learner import CaptionLearner, Learner, RetrievalLearner
from retrieval_engine.testing.encoder_contract import TEXTS, image_batch

IMAGES = 3


class LearnerContract(ABC):
    """What both tasks share; subclass `RetrievalLearnerContract` or `CaptionLearnerContract`."""

    # Largest difference of a number of the same image or text in another batch.
    tolerance = 1e-4

    @abstractmethod
    def open(self, folder: Path, *, with_tower: bool) -> Learner:
        """A learner of a small float32 checkpoint, on the CPU.

        Args:
            folder: for the checkpoint; the same one when it is opened a second time.
            with_tower: load the vision tower too.
        """

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("learner")

    @pytest.fixture(scope="class")
    @classmethod
    def states(cls, folder: Path) -> Tensor:
        """(3, t, w) states of different images."""
        with torch.inference_mode():
            states = _seen(cls().open(folder, with_tower=True))
        return torch.from_numpy(states.numpy().copy())

    @pytest.fixture
    def learner(self, folder: Path) -> Learner:
        """A fresh one for each test, without its tower, in evaluation mode: nothing drops out."""
        learner = self.open(folder, with_tower=False)
        learner.model.eval()
        return learner

    def test_the_tower_is_there_when_asked_for(self, folder: Path, learner: Learner) -> None:
        seeing = self.open(folder, with_tower=True)
        assert seeing.vision == learner.vision != ""
        without = dict(learner.model.named_parameters())
        tower = [n for n, _ in seeing.model.named_parameters() if n not in without]
        assert tower
        assert without.keys() < dict(seeing.model.named_parameters()).keys()
        states = _seen(seeing)
        assert states.ndim == 3
        assert (states[0] - states[1]).abs().max() > 1e-3, "images are all alike to it"
        states.square().mean().backward()  # type: ignore[no-untyped-call]
        parameters = dict(seeing.model.named_parameters())
        assert any(parameters[name].grad is not None for name in tower)

    def test_it_says_what_a_trainer_must_know(self, learner: Learner) -> None:
        assert learner.width > 0
        assert learner.pad_id >= 0
        assert learner.targets
        names = [name for name, _ in learner.model.named_parameters()]
        for start in learner.frozen:
            assert any(name.startswith(start) for name in names)

    def check_gradients(self, learner: Learner, loss: Tensor) -> None:
        """Every weight takes part in the loss, and nearly all have a gradient."""
        loss.backward()  # type: ignore[no-untyped-call]
        left = [
            n for n, p in learner.model.named_parameters() if p.requires_grad and p.grad is None
        ]
        assert left == []
        norms = {
            name: float(parameter.grad.norm())
            for name, parameter in learner.model.named_parameters()
            if parameter.grad is not None
        }
        assert np.isfinite(list(norms.values())).all()
        assert sum(norm > 0 for norm in norms.values()) > 0.9 * len(norms)


class RetrievalLearnerContract(LearnerContract):
    """Subclass it with `open`, which gives a `RetrievalLearner`."""

    def test_embeddings_have_unit_length(self, learner: RetrievalLearner, states: Tensor) -> None:
        images, texts = learner.embed_images(states), self._texts(learner, TEXTS)
        assert images.ndim == 3
        assert texts.shape == (len(TEXTS), images.shape[2])
        for found in (images, texts):
            assert found.dtype == torch.float32
            torch.testing.assert_close(
                found.norm(dim=-1), torch.ones(found.shape[:-1]), atol=1e-5, rtol=0
            )
        assert (images[0] - images[1]).abs().max() > 1e-3
        assert (texts[0] - texts[1]).abs().max() > 1e-3

    def test_alone_is_as_in_a_batch(self, learner: RetrievalLearner, states: Tensor) -> None:
        images, texts = learner.embed_images(states), self._texts(learner, TEXTS)
        logits = self._logits(learner, states, TEXTS)
        for i in range(IMAGES):
            self._close(learner.embed_images(states[i : i + 1])[0], images[i])
        for j, one in enumerate(TEXTS):
            self._close(self._texts(learner, [one])[0], texts[j])
            self._close(self._logits(learner, states[:1], [one])[0, 0], logits[0, j])

    def test_pairs_have_two_logits_that_depend_on_both(
        self, learner: RetrievalLearner, states: Tensor
    ) -> None:
        logits = self._logits(learner, states, TEXTS)
        assert logits.shape == (IMAGES, len(TEXTS), 2)
        assert (logits[0] - logits[1]).abs().max() > 1e-3
        assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3

    def test_gradients_reach_the_weights(self, learner: RetrievalLearner, states: Tensor) -> None:
        images, texts = learner.embed_images(states), self._texts(learner, TEXTS[:IMAGES])
        scores = torch.einsum("iqd,td->itq", images, texts).amax(-1)
        contrast = torch.nn.functional.cross_entropy(scores / 0.07, torch.arange(IMAGES))
        logits = self._logits(learner, states, TEXTS)
        matching = torch.nn.functional.cross_entropy(
            logits.reshape(-1, 2), torch.arange(logits[..., 0].numel()) % 2
        )
        self.check_gradients(learner, contrast + matching)

    def test_a_copy_shares_nothing(self, learner: RetrievalLearner, states: Tensor) -> None:
        images, texts = learner.embed_images(states), self._texts(learner, TEXTS)
        logits = self._logits(learner, states, TEXTS)
        twin = learner.copy()
        assert torch.equal(twin.embed_images(states), images)
        assert torch.equal(self._texts(twin, TEXTS), texts)
        assert torch.equal(self._logits(twin, states, TEXTS), logits)
        mine = {parameter.data_ptr() for parameter in learner.model.parameters()}
        assert not mine & {parameter.data_ptr() for parameter in twin.model.parameters()}
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in twin.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise))
        assert not torch.equal(twin.embed_images(states), images)
        assert not torch.equal(self._texts(twin, TEXTS), texts)
        assert not torch.equal(self._logits(twin, states, TEXTS), logits)
        assert torch.equal(learner.embed_images(states), images)
        assert torch.equal(self._texts(learner, TEXTS), texts)
        assert torch.equal(self._logits(learner, states, TEXTS), logits)

    def _texts(self, learner: RetrievalLearner, texts: Sequence[str]) -> Tensor:
        return learner.embed_texts(*_padded(learner.tokenize(texts), learner.pad_id))

    def _logits(self, learner: RetrievalLearner, states: Tensor, texts: Sequence[str]) -> Tensor:
        """(i, n, 2) of each image with each text."""
        ids, mask = _padded(learner.tokenize(texts), learner.pad_id)
        ids = learner.match_ids(ids)
        many = (len(states), 1, 1)
        return learner.cross.logits(
            learner.cross.keys_values(states), ids.repeat(many), mask.repeat(many)
        )

    def _close(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=self.tolerance, rtol=0)


class CaptionLearnerContract(LearnerContract):
    """Subclass it with `open`, which gives a `CaptionLearner`."""

    def test_captions_begin_as_given_and_end(self, learner: CaptionLearner) -> None:
        rows, given = learner.encode(TEXTS)
        assert len(rows) == len(TEXTS)
        assert given >= 1
        assert len({tuple(row[:given]) for row in rows}) == 1
        for row, one in zip(rows, TEXTS, strict=True):
            assert len(row) > given
            text = learner.decode(row[given:])
            assert text.split()[:1] == one.lower().split()[:1]
        assert rows[3][-1] == learner.end_id
        assert learner.decode(rows[3][given:]) == "dog"

    def test_a_word_depends_on_those_before_it_alone(
        self, learner: CaptionLearner, states: Tensor
    ) -> None:
        logits = self._logits(learner, states, TEXTS[:1])
        ids, mask = _padded(learner.encode(TEXTS[:1])[0], learner.pad_id)
        changed = ids.clone()
        changed[0, -2] = ids[0, -3]
        seen = learner.read(states[:1])
        found = learner.logits(seen, changed[None], mask[None])
        self._close(found[0, 0, :-2], logits[0, 0, :-2])
        assert (found[0, 0, -2] - logits[0, 0, -2]).abs().max() > 1e-3

    def test_captions_are_alone_as_beside_others(
        self, learner: CaptionLearner, states: Tensor
    ) -> None:
        together = self._logits(learner, states, TEXTS)
        assert together.shape[:2] == (IMAGES, len(TEXTS))
        assert (together[0] - together[1]).abs().max() > 1e-3, "images are all alike to it"
        for i in range(IMAGES):
            for j, one in enumerate(TEXTS):
                alone = self._logits(learner, states[i : i + 1], [one])[0, 0]
                self._close(together[i, j, : len(alone)], alone)

    def test_gradients_reach_the_weights(self, learner: CaptionLearner, states: Tensor) -> None:
        rows, _ = learner.encode(TEXTS)
        labels, mask = _padded([row[1:] for row in rows], -100)
        logits = self._logits(learner, states, TEXTS)[0, :, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.where(mask == 1, -100).flatten()
        )
        self.check_gradients(learner, loss)

    def _logits(self, learner: CaptionLearner, states: Tensor, texts: Sequence[str]) -> Tensor:
        """(i, n, l, v) of every text for each image."""
        ids, mask = _padded(learner.encode(texts)[0], learner.pad_id)
        many = (len(states), 1, 1)
        return learner.logits(learner.read(states), ids.repeat(many), mask.repeat(many))

    def _close(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=self.tolerance, rtol=0)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    ids, mask = pad_tokens(rows, max(map(len, rows)), pad=pad)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _seen(learner: Learner) -> Tensor:
    """States of images, through the learner's own tower."""
    learner.model.eval()
    pixels = image_batch(learner, IMAGES)
    return learner.see(normalized_pixels(pixels, learner.preprocessor, torch.device("cpu")))
