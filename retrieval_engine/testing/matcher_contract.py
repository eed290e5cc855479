"""What every matcher must do: a pair's score is its own, whatever else is scored beside it."""

from abc import ABC, abstractmethod
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retrieval_engine.models.encoder import Encoder
from retrieval_engine.models.matcher import Matcher
from retrieval_engine.testing.encoder_contract import TEXTS, image_batch

IMAGES = 5
ALL_PAIRS = np.array(list(product(range(IMAGES), range(len(TEXTS)))))
# One image with many texts, one with a single one, one with none; and a pair that comes twice.
UNEVEN = np.array([(4, 0), (0, 1), (0, 3), (2, 2), (0, 0), (4, 3), (0, 1)])


class Scored(NamedTuple):
    """A matcher, the states of some images, and the logits of every pair by itself.

    Attributes:
        matcher: what is tested.
        tokens: (i, t, w) float32 states.
        logits: (i, n, 2) no match and match, each pair computed alone and without padding.
    """

    matcher: Matcher
    tokens: NDArray[np.float32]
    logits: NDArray[np.float32]

    def score(
        self, pairs: NDArray[np.int64], *, as_probability: bool = False
    ) -> NDArray[np.float32]:
        """Scores of pairs from the stored states."""
        return self.matcher.score_pairs(
            lambda rows: self.tokens[rows], TEXTS, pairs, as_probability=as_probability
        )


class MatcherContract(ABC):
    """Subclass it with `open`; the encoder's own matcher is tested."""

    tolerance = 1e-5

    @abstractmethod
    def open(self, folder: Path) -> Encoder:
        """An encoder with a matching head that computes in float32 on the CPU.

        Args:
            folder: for its checkpoint.
        """

    @pytest.fixture(scope="class")
    @classmethod
    def scored(cls, tmp_path_factory: pytest.TempPathFactory) -> Scored:
        encoder = cls().open(tmp_path_factory.mktemp("matcher"))
        tokens = encoder.encode_images(image_batch(encoder, IMAGES), ["tokens"])["tokens"]
        matcher = encoder.matcher()
        logits = np.empty((IMAGES, len(TEXTS), 2), np.float32)
        with torch.inference_mode():
            for j, ids in enumerate(matcher._tokenize(TEXTS)):
                words = torch.tensor(ids)[None, None]
                for i, states in enumerate(tokens):
                    seen = matcher.cross.keys_values(torch.from_numpy(states)[None])
                    logits[i, j] = matcher.cross.logits(seen, words, torch.ones_like(words))[0, 0]
        return Scored(matcher, tokens, logits)

    def test_pairs_differ(self, scored: Scored) -> None:
        assert np.ptp(scored.logits[..., 1], axis=0).max() > 1e-3, "images are all alike to it"
        assert np.ptp(scored.logits[..., 1], axis=1).max() > 1e-3, "texts are all alike to it"

    def test_a_score_is_the_match_logit_of_the_pair_alone(self, scored: Scored) -> None:
        pairs = np.random.default_rng(0).permutation(ALL_PAIRS)
        expected = scored.logits[pairs[:, 0], pairs[:, 1], 1]
        found = scored.score(pairs)
        assert (found.shape, found.dtype) == ((len(pairs),), np.dtype(np.float32))
        np.testing.assert_allclose(found, expected, atol=self.tolerance)

    def test_uneven_pairs_keep_their_places(self, scored: Scored) -> None:
        found = scored.score(UNEVEN)
        expected = scored.logits[UNEVEN[:, 0], UNEVEN[:, 1], 1]
        np.testing.assert_allclose(found, expected, atol=self.tolerance)
        for pair, score in zip(UNEVEN, found, strict=True):
            np.testing.assert_allclose(scored.score(pair[None]), [score], atol=self.tolerance)

    def test_progress_is_told_of_each_pair_once(self, scored: Scored) -> None:
        done: list[int] = []
        scored.matcher.score_pairs(
            lambda rows: scored.tokens[rows], TEXTS, UNEVEN, advance=done.append
        )
        assert sum(done) == len(UNEVEN)

    def test_a_probability_is_the_softmax_of_both_logits(self, scored: Scored) -> None:
        shifted = scored.logits - scored.logits.max(axis=-1, keepdims=True)
        expected = np.exp(shifted[..., 1]) / np.exp(shifted).sum(axis=-1)
        found = scored.score(ALL_PAIRS, as_probability=True)
        np.testing.assert_allclose(found, expected.ravel(), atol=self.tolerance)

    def test_states_kept_in_half_precision_score_nearly_the_same(self, scored: Scored) -> None:
        half = scored.tokens.astype(np.float16)
        found = scored.matcher.score_pairs(lambda rows: half[rows], TEXTS, ALL_PAIRS)
        expected = scored.logits[..., 1].ravel()
        np.testing.assert_allclose(found, expected, atol=5e-3, rtol=5e-3)

    def test_images_are_read_once_for_all_their_texts(self, scored: Scored) -> None:
        read: list[int] = []

        def read_tokens(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            read.extend(rows.tolist())
            return scored.tokens[rows]

        scored.matcher.score_pairs(read_tokens, TEXTS, UNEVEN)
        assert sorted(read) == [0, 2, 4]

    def test_no_pairs_have_no_scores(self, scored: Scored) -> None:
        assert scored.score(np.empty((0, 2), np.int64)).shape == (0,)
