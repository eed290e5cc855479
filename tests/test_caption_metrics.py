"""BLEU, ROUGE-L, CIDEr-D and diversity: equal to the COCO tools, and what they claim to be."""

import importlib.util
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine.evaluate import Bootstrap
from retrieval_engine.evaluate.caption_scores import caption_scores
from retrieval_engine.metrics.bleu import bleu, bleu_statistics
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.diversity import diversity, self_bleu
from retrieval_engine.metrics.meteor import meteor_is_missing
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.metrics.rouge import rouge_l

GOLDEN = Path(__file__).parent / "golden" / "caption_metrics"
NO_INTERVALS = Bootstrap(draws=0)
Corpus = tuple[list[list[str]], list[list[list[str]]]]

words = st.lists(
    st.sampled_from(["a", "dog", "cat", "on", "the", "red", "grass"]), min_size=1, max_size=9
)
corpora = st.lists(
    st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=2, max_size=6
)


def own_corpus() -> Corpus:
    captions = json.loads((GOLDEN / "captions.json").read_text())
    references = json.loads((GOLDEN / "references.json").read_text())
    by_image: dict[str, list[list[str]]] = {row["image"]: [] for row in captions}
    for row in references:
        by_image[row["image"]].append(ptb_tokens(row["caption"]))
    return [ptb_tokens(row["caption"]) for row in captions], list(by_image.values())


def random_corpus(seed: int, n: int) -> Corpus:
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(40)]

    def sentence() -> list[str]:
        return rng.choices(vocabulary, weights=range(40, 0, -1), k=rng.randint(1, 14))

    captions = [sentence() for _ in range(n)]
    # References share runs with the caption, so that the longer n-grams match now and then.
    references = [
        [c[rng.randint(0, len(c) // 2) :] + sentence() for _ in range(rng.randint(1, 6))]
        for c in captions
    ]
    return captions, references


def test_scores_equal_those_of_the_coco_tools() -> None:
    expected = json.loads((GOLDEN / "expected.json").read_text())
    found = caption_scores(*own_corpus())
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"):
        assert found.metrics[name] == pytest.approx(expected["metrics"][name], abs=1e-12)
        np.testing.assert_allclose(
            found.per_image[name], expected["per_image"][name], rtol=0, atol=1e-12
        )


def test_scores_equal_pycocoevalcap_itself() -> None:
    bleu_of = pytest.importorskip("pycocoevalcap.bleu.bleu")
    cider_of = pytest.importorskip("pycocoevalcap.cider.cider")
    rouge_of = pytest.importorskip("pycocoevalcap.rouge.rouge")
    captions, references = random_corpus(0, 60)
    theirs = {i: [" ".join(r) for r in image] for i, image in enumerate(references)}
    ours = {i: [" ".join(c)] for i, c in enumerate(captions)}
    found = caption_scores(captions, references, bootstrap=NO_INTERVALS)
    scores, _ = bleu_of.Bleu(4).compute_score(theirs, ours, verbose=0)
    assert [found.metrics[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx(scores, abs=1e-12)
    for name, tool in (("ROUGE-L", rouge_of.Rouge()), ("CIDEr", cider_of.Cider())):
        score, each = tool.compute_score(theirs, ours)
        assert found.metrics[name] == pytest.approx(float(score), abs=1e-12)
        np.testing.assert_allclose(found.per_image[name], each, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_meteor_equals_the_java_program() -> None:
    if reason := meteor_is_missing():
        pytest.skip(reason)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    found = caption_scores(*own_corpus(), with_meteor=True, bootstrap=NO_INTERVALS)
    assert found.metrics["METEOR"] == pytest.approx(expected["metrics"]["METEOR"], abs=1e-9)
    assert list(found.per_image["METEOR"]) == pytest.approx(expected["per_image"]["METEOR"])


def test_meteor_says_why_it_is_missing() -> None:
    has_tool = importlib.util.find_spec("pycocoevalcap") is not None
    assert has_tool or "vlre[meteor]" in meteor_is_missing()


def test_bleu_by_hand() -> None:
    # The example of Papineni et al.: clipping leaves two of seven.
    the = ["the", "the", "the", "the", "the", "the", "the"]
    truths = [
        ["the", "cat", "is", "on", "the", "mat"],
        ["there", "is", "a", "cat", "on", "the", "mat"],
    ]
    statistics = bleu_statistics(the, truths)
    assert list(statistics[:8]) == [2, 0, 0, 0, 7, 6, 5, 4]
    assert bleu(statistics)[0] == pytest.approx(2 / 7)
    # Half the closest reference's length: the penalty is exp(1 - 2).
    assert bleu(bleu_statistics(["a"], [["a", "b"]]))[0] == pytest.approx(np.exp(-1))
    # Equally close lengths: the shorter one counts.
    assert bleu_statistics(["a", "b", "c"], [["a"] * 4, ["a"] * 2])[-1] == 2


def test_rouge_by_hand() -> None:
    # Best precision from the first reference (2 of 2), best recall too (2 of 3).
    assert rouge_l(["a", "c"], [["a", "b", "c"], ["a", "x", "y", "z"]]) == pytest.approx(
        2.44 * (2 / 3) / (2 / 3 + 1.44)
    )
    assert rouge_l(["a"], [["b"]]) == 0.0


def test_cider_ignores_what_every_image_says() -> None:
    captions = [["a", "dog"], ["a", "cat"]]
    references = [[["a", "dog"]], [["a", "cat"]]]
    # `a` has no weight; unigrams and bigrams agree, trigrams and fourgrams do not exist.
    assert cider_d(captions, references) == pytest.approx([5.0, 5.0])
    assert list(cider_d([["a"], ["a"]], references)) == [0.0, 0.0]
    assert list(cider_d(captions[:1], references[:1])) == [0.0]


@settings(deadline=None, max_examples=50)
@given(corpora)
def test_scores_stay_in_range_and_follow_the_images(corpus: list[Any]) -> None:
    captions, references = [list(c) for c, _ in corpus], [r for _, r in corpus]
    found = caption_scores(captions, references, bootstrap=NO_INTERVALS)
    back = caption_scores(captions[::-1], references[::-1], bootstrap=NO_INTERVALS)
    for name, values in found.per_image.items():
        assert (values >= 0).all()
        assert (values <= (10 + 1e-9 if name == "CIDEr" else 1 + 1e-9)).all()
        np.testing.assert_allclose(values, back.per_image[name][::-1], atol=1e-12)
        assert found.metrics[name] == pytest.approx(back.metrics[name])


@settings(deadline=None, max_examples=30)
@given(corpora)
def test_quoting_a_reference_is_a_perfect_rouge_and_bleu_1(corpus: list[Any]) -> None:
    references = [r for _, r in corpus]
    quoted = [r[0] for r in references]
    found = caption_scores(quoted, references, bootstrap=NO_INTERVALS)
    assert found.metrics["ROUGE-L"] == pytest.approx(1.0)
    assert found.metrics["BLEU-1"] == pytest.approx(1.0, abs=1e-8)


def test_intervals_hold_the_score_and_repeat_by_seed() -> None:
    corpus = random_corpus(1, 200)
    found = caption_scores(*corpus, bootstrap=Bootstrap(draws=400))
    for name, value in found.metrics.items():
        low, high = found.intervals[name]
        assert low < value < high
    assert found.intervals == caption_scores(*corpus, bootstrap=Bootstrap(draws=400)).intervals
    # A mean's interval is close to the normal one.
    each = found.per_image["ROUGE-L"]
    half = 1.96 * each.std() / np.sqrt(len(each))
    low, high = found.intervals["ROUGE-L"]
    assert (low, high) == pytest.approx((each.mean() - half, each.mean() + half), abs=half / 4)


def test_diversity_by_hand() -> None:
    found = diversity([t.split() for t in ("a dog a dog a dog", "a cat", "a cat")])
    assert found.vocabulary == 3
    assert found.mean_length == pytest.approx(10 / 3)
    assert found.distinct_1 == pytest.approx(3 / 10)
    assert found.distinct_2 == pytest.approx(3 / 7)  # a dog, dog a, a cat
    assert found.repetition_rate == pytest.approx(3 / 7)
    assert found.commonest_share == pytest.approx(2 / 3)
    assert found.distinct_captions == pytest.approx(2 / 3)
    assert found.to_json()["type_token_ratio"] == found.distinct_1


def test_a_collapsed_captioner_is_seen() -> None:
    found = diversity([["a", "man", "on", "a", "horse"]] * 50)
    assert found.commonest_share == 1.0
    assert found.self_bleu == pytest.approx(1.0, abs=1e-6)
    assert found.distinct_captions == 1 / 50


@pytest.mark.parametrize("seed", range(5))
def test_self_bleu_equals_its_definition(seed: int) -> None:
    captions, _ = random_corpus(seed, 30)
    plain = [
        bleu(bleu_statistics(c, captions[:i] + captions[i + 1 :]))[-1]
        for i, c in enumerate(captions)
    ]
    assert self_bleu(captions) == pytest.approx(np.mean(plain), abs=1e-12)
    assert self_bleu(captions[:1]) == 0.0


def test_the_golden_corpus_is_not_trivial() -> None:
    captions, references = own_corpus()
    lengths = Counter(len(r) for image in references for r in image)
    assert len(lengths) > 8
    assert {len(image) for image in references} == {2, 3, 4, 5}
    assert len(captions) == 12
