"""Sentences about scenes: what they claim, and of which scenes they are true."""

from typing import Any

import pytest

from retrieval_engine.records import Json
from retrieval_engine.sources.scenes import truth
from retrieval_engine.sources.scenes.catalogue import KINDS
from retrieval_engine.sources.scenes.describing import LONGEST, captions
from retrieval_engine.sources.scenes.vocabulary import WORDS
from retrieval_engine.sources.scenes.world import meta, world_at

metas: list[dict[str, Any]] = [meta(world_at(5, i)) for i in range(600)]


class TestTruth:
    def test_every_caption_is_true_of_its_scene(self) -> None:
        for i in range(2000):
            world = world_at(77, i)
            told: dict[str, Any] = meta(world)
            for text in captions(world):
                assert truth.is_true(text, told) is True, (text, told)
                assert len(text.split()) <= LONGEST
                assert text == text.lower()
                assert text.replace(" ", "").isalpha()
                assert set(truth.nouns(text)) <= set(told["subjects"]), (text, told)

    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_an_object_is_true_where_it_is_and_nowhere_else(self, kind: str) -> None:
        for one, many in KINDS[kind].words:
            for told in metas:
                count = told["counts"].get(kind, 0)
                assert truth.is_true(f"a {one}", told) is (count > 0)
                assert truth.is_true(f"two {many}", told) is (count == 2)
                for colour in ("red", "white"):
                    right = told["colours"].get(kind) == colour
                    assert truth.is_true(f"there is a {colour} {one}", told) is right

    @pytest.mark.parametrize(
        ("phrase", "ground"),
        [
            ("on grass", "grass"),
            ("on the lawn", "grass"),
            ("on the beach", "sand"),
            ("in the snow", "snow"),
            ("on the water", "water"),
            ("at sea", "water"),
            ("on the street", "street"),
            ("on a road", "street"),
        ],
    )
    def test_places(self, phrase: str, ground: str) -> None:
        for told in metas:
            assert truth.is_true(f"a picture {phrase}", told) is (told["ground"] == ground)

    @pytest.mark.parametrize(
        ("phrase", "sky"),
        [
            ("at night", "night"),
            ("under the stars", "night"),
            ("at sunset", "sunset"),
            ("under an orange sky", "sunset"),
            ("on a cloudy day", "cloudy"),
            ("under a gray sky", "cloudy"),
            ("under a blue sky", "day"),
            ("on a sunny day", "day"),
        ],
    )
    def test_lights(self, phrase: str, sky: str) -> None:
        for told in metas:
            assert truth.is_true(phrase, told) is (told["sky"] == sky)

    @pytest.mark.parametrize(
        ("text", "atoms"),
        [
            ("a boy flying a kite on the beach", {"boy", "kite", "boy flying kite", "on sand"}),
            ("a bird flying over the sea", {"bird", "bird in sky", "on water"}),
            ("a man rides a black horse", {"man", "horse", "black horse", "man riding horse"}),
            (
                "a girl in a red dress holding a blue umbrella",
                {"girl", "red girl", "umbrella", "blue umbrella", "girl holding umbrella"},
            ),
            (
                "a woman wearing yellow walking a dog",
                {"woman", "yellow woman", "dog", "woman walking dog"},
            ),
            ("a woman walking on the beach and a dog", {"woman", "on sand", "dog"}),
            ("a tree with orange leaves", {"tree", "orange tree"}),
            ("a car to the right of a red bus", {"car", "bus", "red bus", "bus left of car"}),
            ("two dogs at night", {"dog", "2 dog", "sky night"}),
            ("dogs", {"dog", "several dog"}),
            ("a hot air balloon in the sky", {"balloon", "balloon in sky"}),
            (
                "people riding horses",
                {"person", "horse", "person riding horse"} | {"several person", "several horse"},
            ),
            ("a full moon over the sea", {"behind full moon", "on water"}),
        ],
    )
    def test_what_a_sentence_claims(self, text: str, atoms: set[str]) -> None:
        assert truth.parse(text).atoms == atoms

    def test_colours_are_bound_to_their_nouns(self) -> None:
        told: dict[str, Json] = {
            "subjects": ["dog", "car"],
            "counts": {"dog": 1, "car": 1},
            "colours": {"dog": "black", "car": "red"},
            "relations": ["dog left of car"],
            "ground": "street",
            "sky": "night",
            "backdrop": [],
        }
        assert truth.is_true("a black dog and a red car", told) is True
        assert truth.is_true("a red dog and a black car", told) is False
        assert truth.is_true("a red car to the right of a dog", told) is True
        assert truth.is_true("a red car to the left of a dog", told) is False
        assert truth.is_true("an animal near a vehicle at night", told) is True
        assert truth.is_true("a dog riding a car", told) is False
        assert truth.is_true("a person", told) is False

    @pytest.mark.parametrize("text", ["a zebra", "", "the a of", "a dog beneath a purple idea"])
    def test_what_is_not_understood_has_no_truth(self, text: str) -> None:
        assert truth.is_true(text, metas[0]) is None

    def test_one_wrong_word_makes_a_caption_false(self) -> None:
        """A noun, a place or a light that is not in the picture, put into its detailed caption."""
        swapped = 0
        for i in range(300):
            world = world_at(5, i)
            words = captions(world)[-1].split()
            for k, word in enumerate(words):
                kind = WORDS.get(word)
                if kind in KINDS:
                    other = next(
                        n for n in ("fish", "snowman", "cat") if n not in metas[i]["subjects"]
                    )
                    text = " ".join([*words[:k], other, *words[k + 1 :]])
                    # "air" of "hot air balloon" would be left behind.
                    if "hot" not in text:
                        assert truth.is_true(text, metas[i]) is False, (text, metas[i])
                        swapped += 1
        assert swapped > 300

    def test_mirroring_swaps_left_and_right(self) -> None:
        swap = {"left": "right", "right": "left"}
        sided = 0
        for i in range(600):
            text = captions(world_at(5, i))[-1]
            flipped = " ".join(swap.get(word, word) for word in text.split())
            claims = truth.parse(flipped)
            assert claims.hold(truth.facts(metas[i], mirrored=True))
            if flipped != text:
                sided += 1
                assert not claims.hold(truth.facts(metas[i]))
        assert sided > 20
