"""What every captioner must do: a sentence is its own, whatever is written beside it."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from retrieval_engine.caption.decoding import BeamRule, DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.errors import UsageError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.captioner import Captioner, DecodingState
from retrieval_engine.records import Modality
from retrieval_engine.testing.encoder_contract import image_batch

IMAGES = 5
NAMES = [f"{i}.jpg" for i in range(IMAGES)]


class CaptionCase(NamedTuple):
    """A captioner and the states of some images.

    Attributes:
        captioner: what is tested.
        tokens: (n, t, w) states.
    """

    captioner: Captioner
    tokens: Tensor

    def begin(self, images: list[int]) -> tuple[Tensor, DecodingState]:
        """Logits of the first token for some of the images, and the state to go on with."""
        return self.captioner.begin(self.tokens[images], self.captioner.prompt)

    def alone(self, image: int, ids: list[int]) -> Tensor:
        """(len(ids) + 1, v) logits of each next token of one sentence of one image."""
        first, writing = self.begin([image])
        steps = [writing.step(torch.tensor([[token]]), None)[0, 0] for token in ids]
        return torch.stack([first[0], *steps])

    def captions(self, images: list[int], options: DecodingOptions) -> list[list[tuple[int, ...]]]:
        """Token ids of the captions of some of the images."""
        names = [NAMES[i] for i in images]
        found = write_captions(self.captioner, self.tokens[images], names, options)
        return [[sentence.ids for sentence in sentences] for sentences in found]


class CaptionerContract(ABC):
    """Subclass it with `open`. Words are chosen elsewhere: what counts here are logits.

    The model must write of different images differently, which one with small random weights may
    not: give it larger or trained ones.
    """

    # Largest difference of a logit in another batch.
    tolerance = 1e-4

    @abstractmethod
    def open(self, folder: Path) -> Captioner:
        """A captioner that computes in float32 on the CPU.

        Args:
            folder: for its checkpoint; the same one when it is opened a second time.
        """

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("captioner")

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, folder: Path) -> CaptionCase:
        captioner = cls().open(folder)
        found = captioner.encode_images(image_batch(captioner, IMAGES), ["tokens"])["tokens"]
        return CaptionCase(captioner, torch.from_numpy(found))

    @pytest.fixture(autouse=True)
    def _without_gradients(self) -> object:
        with torch.inference_mode():
            yield

    def test_its_tower_gives_tokens_image_by_image(self, written: CaptionCase) -> None:
        captioner = written.captioner
        form = captioner.features(Modality.IMAGES)["tokens"]
        assert written.tokens.shape == (IMAGES, *form.shape)
        pixels = image_batch(captioner, IMAGES)
        for i in range(IMAGES):
            alone = captioner.encode_images(pixels[i : i + 1], ["tokens"])["tokens"][0]
            assert alone.dtype == form.dtype
            np.testing.assert_allclose(alone, written.tokens[i], atol=1e-5)
        with pytest.raises(UsageError, match="colour"):
            captioner.encode_images(pixels, ["colour"])

    def test_it_says_whether_its_prompt_is_its_own(self, written: CaptionCase) -> None:
        captioner = written.captioner
        assert isinstance(captioner.prompt, str)
        assert isinstance(captioner.says_prompt, bool)

    def test_its_first_words_are_of_each_image_alone(self, written: CaptionCase) -> None:
        logits, _ = written.begin([0, 1, 2, 3, 4])
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert (logits[0] - logits[1]).abs().max() > 1e-3, "images are all alike to it"
        for i in range(IMAGES):
            self._close(logits[i], written.alone(i, [])[0])

    def test_steps_are_as_writing_each_sentence_alone(self, written: CaptionCase) -> None:
        first, writing = written.begin([0, 1, 2])
        ids = first.topk(4, dim=-1).indices[:, [0, 3]]  # (n, 2): two sentences an image
        second = writing.step(ids, None)
        assert second.shape == (3, 2, first.shape[-1])
        third_ids = second.topk(3, dim=-1).indices[..., 1].contiguous()
        third = writing.step(third_ids, None)
        for n in range(3):
            for b in range(2):
                expected = written.alone(n, [int(ids[n, b]), int(third_ids[n, b])])
                self._close(second[n, b], expected[1])
                self._close(third[n, b], expected[2])

    def test_sentences_go_on_with_the_parents_named(self, written: CaptionCase) -> None:
        first, writing = written.begin([0, 1])
        ids = first.topk(3, dim=-1).indices  # (2, 3)
        writing.step(ids, None)
        parents = torch.tensor([[2, 2, 0], [1, 0, 1]])
        next_ids = first.topk(6, dim=-1).indices[:, 3:].contiguous()
        logits = writing.step(next_ids, parents)
        again = writing.step(next_ids, torch.tensor([[1, 0, 2], [2, 2, 2]]))
        for n, (old, new) in enumerate(zip(parents.tolist(), [[1, 0, 2], [2, 2, 2]], strict=True)):
            for b in range(3):
                chosen = [int(ids[n, old[b]]), int(next_ids[n, b])]
                self._close(logits[n, b], written.alone(n, chosen)[2])
                mother = new[b]
                grown = [int(ids[n, old[mother]]), int(next_ids[n, mother]), int(next_ids[n, b])]
                self._close(again[n, b], written.alone(n, grown)[3])

    def test_images_that_are_kept_go_on_as_before(self, written: CaptionCase) -> None:
        first, writing = written.begin([0, 1, 2, 3, 4])
        ids = first.topk(2, dim=-1).indices
        writing.step(ids, None)
        writing.keep(torch.tensor([1, 4]))
        logits = writing.step(ids[[1, 4]], torch.tensor([[1, 0], [0, 1]]))
        assert logits.shape[:2] == (2, 2)
        for row, (image, order) in enumerate(((1, (1, 0)), (4, (0, 1)))):
            for b in range(2):
                sentence = [int(ids[image, order[b]]), int(ids[image, b])]
                self._close(logits[row, b], written.alone(image, sentence)[2])

    @pytest.mark.parametrize(
        "options",
        [
            DecodingOptions(beams=1, min_length=8),
            DecodingOptions(beams=3, num_captions=2),
            DecodingOptions(beams=3, beam_rule=BeamRule.TRANSFORMERS),
            DecodingOptions(sample=True, num_captions=3, top_p=0.9, temperature=3.0),
        ],
        ids=["greedy", "beams", "beams-transformers", "sampling"],
    )
    def test_a_caption_does_not_depend_on_its_batch(
        self, written: CaptionCase, options: DecodingOptions
    ) -> None:
        whole = written.captions([0, 1, 2, 3, 4], options)
        assert len({sentences[0] for sentences in whole}) > 1, "it writes the same of any image"
        order = [3, 0, 4, 1, 2]
        assert written.captions(order, options) == [whole[i] for i in order]
        assert [written.captions([i], options)[0] for i in range(IMAGES)] == whole

    def test_the_prompt_counts_as_the_beginning(self, written: CaptionCase) -> None:
        captioner = written.captioner
        begun = captioner.prompt_ids(captioner.prompt)
        words = int(written.begin([0])[0].shape[-1])
        assert all(0 <= token < words for token in begun)
        assert 0 <= captioner.end_id < words
        assert captioner.text([], captioner.prompt).strip() == ""
        room = captioner.longest - len(begun)
        assert room >= 1
        given = len(begun) if captioner.prompt_counts else 0
        assert 1 <= captioner.default_length - given <= room
        assert captioner.captions_at_once >= 1

    def test_another_prompt_begins_another_sentence(self, written: CaptionCase) -> None:
        prompt = f"{written.captioner.prompt}red "
        logits, _ = written.captioner.begin(written.tokens[:1], prompt)
        assert (logits - written.begin([0])[0]).abs().max() > 1e-3

    def test_opened_twice_it_is_the_same(self, written: CaptionCase, folder: Path) -> None:
        again = type(self)().open(folder)
        assert again.spec.fingerprint == written.captioner.spec.fingerprint
        assert again.features(Modality.IMAGES) == written.captioner.features(Modality.IMAGES)
        logits, _ = again.begin(written.tokens, again.prompt)
        assert torch.equal(logits, written.begin([0, 1, 2, 3, 4])[0])

    def test_its_spec_survives_json(self, written: CaptionCase) -> None:
        spec = written.captioner.spec
        back = EncoderSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False)))
        assert back.fingerprint == spec.fingerprint
        assert back.part("vision") == spec.part("vision")
        assert spec.preprocessing == written.captioner.preprocessor.name

    def _close(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=self.tolerance, rtol=0)
