"""What every encoder must do, whatever its family: values, not only shapes."""

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.encoder import Arrays, Encoder, ReadsTokens
from retrieval_engine.records import Modality
from retrieval_engine.testing.images import photo

# Of very different lengths, the longest in the middle: batches are made by length.
TEXTS = (
    "a dog on grass",
    "two birds",
    "a man and a woman on the street at night and a red car and a house and a tree at sunset",
    "dog",
    "A red car, on the street at night.",
)
SIZES = ((48, 32), (1, 1), (7, 300), (33, 33), (640, 3))


def image_batch(encoder: Any, count: int = 5) -> NDArray[np.uint8]:
    """(count, s, s, 3) pixels of different images, as the encoder's preprocessor makes them."""
    rng = np.random.default_rng(0)
    drawn = [photo(seed).rotate(int(rng.integers(0, 360))) for seed in range(count)]
    return np.stack([encoder.preprocessor.pixels(image) for image in drawn])


class EncoderContract(ABC):
    """Subclass it with `open`, which writes a small checkpoint and opens it."""

    texts: Sequence[str] = TEXTS
    # Largest difference of a number of the same image or text in another batch; of `itc`, which
    # has unit length.
    tolerance = 1e-5
    itc_tolerance = 1e-6

    @abstractmethod
    def open(self, folder: Path) -> Encoder:
        """An encoder that computes in float32 on the CPU.

        Args:
            folder: for its checkpoint; the same one when it is opened a second time.
        """

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("encoder")

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls, folder: Path) -> Encoder:
        return cls().open(folder)

    def encode(
        self, encoder: Encoder, modality: Modality, features: Sequence[str], order: Any = None
    ) -> Arrays:
        """Features of five images, or of the texts; all, or those in `order`."""
        if modality is Modality.IMAGES:
            pixels = image_batch(encoder)
            return encoder.encode_images(pixels if order is None else pixels[order], features)
        chosen = range(len(self.texts)) if order is None else order
        return encoder.encode_texts([self.texts[int(i)] for i in chosen], features)

    @pytest.mark.parametrize("modality", Modality)
    def test_features_are_of_the_declared_form(self, encoder: Encoder, modality: Modality) -> None:
        forms = encoder.features(modality)
        found = self.encode(encoder, modality, list(forms))
        assert forms.keys() == found.keys()
        for name, form in forms.items():
            assert form.name == name
            assert form.fingerprint
            assert found[name].shape == (5, *form.shape)
            assert found[name].dtype == form.dtype
            assert np.isfinite(found[name]).all()

    def test_there_is_something_to_search_or_train_on(self, encoder: Encoder) -> None:
        sides = [set(encoder.features(modality)) for modality in Modality]
        assert set.intersection(*sides) & {"itc", "pooled"}
        assert ("itc" in sides[0]) == ("itc" in sides[1])

    @pytest.mark.parametrize("modality", Modality)
    def test_different_inputs_have_different_vectors(
        self, encoder: Encoder, modality: Modality
    ) -> None:
        for name in {"itc", "pooled"} & set(encoder.features(modality)):
            rows = self.encode(encoder, modality, [name])[name].reshape(5, -1)
            assert len(np.unique(rows.round(4), axis=0)) == 5, f"{name}: some are all alike"

    @pytest.mark.parametrize("modality", Modality)
    def test_itc_rows_have_unit_length(self, encoder: Encoder, modality: Modality) -> None:
        form = encoder.features(modality).get("itc")
        if form is None:
            return  # a checkpoint without a common space; nothing is promised
        assert len(form.shape) == 2
        if modality is Modality.CAPTIONS:
            assert form.shape == (1, encoder.features(Modality.IMAGES)["itc"].shape[1])
        rows = self.encode(encoder, modality, ["itc"])["itc"]
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)

    @pytest.mark.parametrize("modality", Modality)
    def test_alone_is_as_in_a_batch(self, encoder: Encoder, modality: Modality) -> None:
        names = list(encoder.features(modality))
        whole = self.encode(encoder, modality, names)
        for part in ([0], [2], [3, 4]):
            self._same(self.encode(encoder, modality, names, part), whole, part)

    def test_threads_that_encode_at_once_get_what_each_gets_alone(self, encoder: Encoder) -> None:
        if not hasattr(encoder, "batches_at_once"):
            return  # a run asks it for one batch after the other
        work = [(m, [1, 0, 3][: 1 + n % 3]) for n in range(12) for m in Modality]

        def encoded(modality: Modality, order: list[int]) -> Arrays:
            return self.encode(encoder, modality, list(encoder.features(modality)), order)

        alone = [encoded(*one) for one in work]
        with ThreadPoolExecutor(4) as pool:
            for found, whole in zip(pool.map(lambda one: encoded(*one), work), alone, strict=True):
                self._same(found, whole)

    @pytest.mark.parametrize("modality", Modality)
    def test_rows_come_in_the_order_asked(self, encoder: Encoder, modality: Modality) -> None:
        names = list(encoder.features(modality))
        whole = self.encode(encoder, modality, names)
        order = [3, 1, 4, 0, 2, 1]
        self._same(self.encode(encoder, modality, names, order), whole, order)

    @pytest.mark.parametrize("modality", Modality)
    def test_only_what_was_asked_comes(self, encoder: Encoder, modality: Modality) -> None:
        names = list(encoder.features(modality))
        whole = self.encode(encoder, modality, names)
        for asked in ([name] for name in names):
            self._same(self.encode(encoder, modality, asked), {asked[0]: whole[asked[0]]})
        for pair in combinations(reversed(names), 2):
            assert self.encode(encoder, modality, pair, [0]).keys() == set(pair)
        assert self.encode(encoder, modality, [], [0]) == {}

    @pytest.mark.parametrize("modality", Modality)
    def test_an_unknown_feature_is_refused_with_those_there_are(
        self, encoder: Encoder, modality: Modality
    ) -> None:
        known = list(encoder.features(modality))
        with pytest.raises(UsageError, match="colour") as caught:
            self.encode(encoder, modality, [known[0], "colour"])
        assert "\n" not in caught.value.message
        for name in known:
            assert name in caught.value.message

    def test_no_texts_give_no_rows(self, encoder: Encoder) -> None:
        forms = encoder.features(Modality.CAPTIONS)
        found = encoder.encode_texts([], list(forms))
        for name, form in forms.items():
            assert found[name].shape == (0, *form.shape)
            assert found[name].dtype == form.dtype

    def test_opened_twice_it_is_the_same(self, encoder: Encoder, folder: Path) -> None:
        again = type(self)().open(folder)
        assert again.spec == encoder.spec
        assert again.spec.fingerprint == encoder.spec.fingerprint
        for modality in Modality:
            forms = encoder.features(modality)
            assert again.features(modality) == forms
            found = self.encode(again, modality, list(forms))
            for name, rows in self.encode(encoder, modality, list(forms)).items():
                np.testing.assert_array_equal(found[name], rows)

    def test_its_spec_survives_json(self, encoder: Encoder) -> None:
        written = json.dumps(encoder.spec.to_json(), allow_nan=False)
        back = EncoderSpec.from_json(json.loads(written))
        assert back.fingerprint == encoder.spec.fingerprint
        assert back.to_json() == encoder.spec.to_json()
        for part in encoder.spec.weights:
            assert back.part(part) == encoder.spec.part(part)

    def test_its_spec_names_how_images_are_read(self, encoder: Encoder) -> None:
        assert encoder.spec.preprocessing == encoder.preprocessor.name
        assert encoder.spec.image_size == encoder.preprocessor.image_size
        assert min(encoder.preprocessor.std) > 0
        assert encoder.default_batch_size >= 1

    def test_its_preprocessor_makes_squares_of_any_image_in_any_process(
        self, encoder: Encoder
    ) -> None:
        side = encoder.preprocessor.image_size
        copy = pickle.loads(pickle.dumps(encoder.preprocessor))
        for size in (*SIZES, (side, side)):
            pixels = encoder.preprocessor.pixels(photo(1, size))
            assert (pixels.shape, pixels.dtype) == ((side, side, 3), np.dtype(np.uint8))
            np.testing.assert_array_equal(copy.pixels(photo(1, size)), pixels)

    def test_stored_tokens_give_what_the_image_gave(self, encoder: Encoder) -> None:
        names = list(encoder.features(Modality.IMAGES))
        if not isinstance(encoder, ReadsTokens) or "tokens" not in names:
            return  # what it does not offer it need not do
        found = self.encode(encoder, Modality.IMAGES, names)
        self._same(encoder.encode_tokens(found["tokens"], names), found)
        with pytest.raises(UsageError, match="colour"):
            encoder.encode_tokens(found["tokens"], ["colour"])

    def test_its_matcher_scores_or_says_that_there_is_none(self, encoder: Encoder) -> None:
        try:
            matcher = encoder.matcher()
        except UsageError:
            return
        tokens = self.encode(encoder, Modality.IMAGES, ["tokens"])["tokens"]
        pairs = np.array([(4, 0), (0, 1), (2, 2)])
        scores = matcher.score_pairs(lambda rows: tokens[rows], self.texts, pairs)
        assert (scores.shape, scores.dtype) == ((3,), np.dtype(np.float32))
        assert np.isfinite(scores).all()

    def _same(self, found: Arrays, whole: Arrays, rows: Any = slice(None)) -> None:
        assert found.keys() == whole.keys()
        for name, array in found.items():
            atol = self.itc_tolerance if name == "itc" else self.tolerance
            np.testing.assert_allclose(array, whole[name][rows], atol=atol, rtol=0, err_msg=name)
