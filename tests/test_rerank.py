"""Re-ranked recall against the authors' own evaluation, and its rules on made-up scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_engine import open_encoder, open_store
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.encoding.image_tokens import ImageTokens
from retrieval_engine.errors import FingerprintMismatch, UsageError
from retrieval_engine.evaluate.reranked import _best, _rank, rerank_recall
from retrieval_engine.models import Encoder
from tests import tiny
from tests.golden import GOLDEN, IMAGES, import_golden

FAMILIES = {"blip": "blip/retrieval", "blip2": "blip2"}


@pytest.fixture(scope="module", params=["blip", "blip2"])
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Encoder, Path]:
    """A golden checkpoint, and a folder of the golden pictures with their captions."""
    root = tmp_path_factory.mktemp(request.param)
    folder = root / "pictures"
    folder.mkdir()
    for file in IMAGES:
        shutil.copy(file, folder)
    case = GOLDEN[request.param]
    lines = [
        json.dumps({"image": IMAGES[image].name, "caption": caption})
        for image, caption in zip(case["txt2img"], case.captions, strict=True)
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    checkpoint = import_golden(FAMILIES[request.param], root / "model")
    return request.param, open_encoder(str(checkpoint), device="cpu", dtype="float32"), folder


@pytest.mark.parametrize("features", ["itc,tokens", "itc"])
def test_recall_equals_the_authors_evaluation(
    golden: tuple[str, Encoder, Path], tmp_path: Path, features: str
) -> None:
    name, encoder, folder = golden
    options = EncodeOptions(features=tuple(features.split(",")), store_dtype="float32")
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder, options=options)
    gallery = open_store(tmp_path / "store").gallery()
    expected = GOLDEN[name].expected["recall"]
    for k in (8, 12):
        report = rerank_recall(gallery, encoder, k=k)
        bounds = expected["k8_tie_bounds"] if k == 8 else None
        for side, ours in (
            ("txt", report.recall.image_to_text.recall),
            ("img", report.recall.text_to_image.recall),
        ):
            for cutoff in (1, 5, 10):
                key = f"{side}_r{cutoff}"
                if bounds and cutoff > k:
                    low, high = bounds["worst"][key], bounds["best"][key]
                    assert low - 1e-9 <= ours[cutoff] <= high + 1e-9
                else:
                    assert ours[cutoff] == pytest.approx(expected[f"k{k}"][key])
        assert report.n_encoded == (0 if "tokens" in features else 12)
    whole = rerank_recall(gallery, encoder, k=10_000)
    assert whole.n_pairs == 12 * 20
    for cutoff in (1, 5, 10):
        assert whole.recall.text_to_image.recall[cutoff] == pytest.approx(
            expected["full_rerank"][f"img_r{cutoff}"]
        )


def test_pair_scores_equal_the_authors(golden: tuple[str, Encoder, Path], tmp_path: Path) -> None:
    name, encoder, folder = golden
    options = EncodeOptions(features=("itc", "tokens"), store_dtype="float32")
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder, options=options)
    gallery = open_store(tmp_path / "store").gallery()
    tokens = ImageTokens(gallery.store, gallery.image_rows, gallery.uris, encoder)
    pairs = np.array([(i, j) for i in range(12) for j in range(20)])
    logits = encoder.matcher().score_pairs(tokens, GOLDEN[name].captions, pairs).reshape(12, 20)
    arrays = GOLDEN[name].arrays
    expected = arrays["itm_logits_enc"][..., 1] if name == "blip" else arrays["itm_logit_pos"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_another_encoder_and_a_bad_k_are_refused(
    golden: tuple[str, Encoder, Path], tmp_path: Path
) -> None:
    _, encoder, folder = golden
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder)
    gallery = open_store(tmp_path / "store").gallery()
    with pytest.raises(UsageError, match="`rerank` is 0"):
        rerank_recall(gallery, encoder, k=0)
    other = open_encoder(str(tiny.save_blip(tmp_path / "other")), device="cpu", dtype="float32")
    with pytest.raises(FingerprintMismatch):
        rerank_recall(gallery, other, k=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 14))
def test_the_k_best_prefer_the_lower_index(scores: list[int], k: int) -> None:
    chosen = _best(torch.tensor([scores], dtype=torch.float32), k)[0].numpy()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert set(np.flatnonzero(chosen)) == set(order[:k])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_rank_is_that_of_the_written_out_matrix(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 10))
    candidates = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    scores = np.array(
        data.draw(st.lists(st.integers(-2, 2), min_size=len(candidates), max_size=len(candidates))),
        dtype=np.float32,
    )
    start = data.draw(st.integers(0, n - 1))
    own = np.arange(start, data.draw(st.integers(start + 1, n)))
    row = np.full(n, -100.0)
    row[candidates] = scores
    order = np.lexsort((np.arange(n), -row))
    expected = min(int(np.flatnonzero(order == i)[0]) for i in own)
    found = _rank(candidates, scores, np.isin(candidates, own), start, np.arange(n))
    assert found == expected


def test_a_copy_of_the_right_answer_is_no_wrong_answer() -> None:
    candidates, scores = np.array([0, 1, 2]), np.array([3.0, 3.0, 2.0], dtype=np.float32)
    positive = candidates == 1
    assert _rank(candidates, scores, positive, 1, np.array([0, 1, 2])) == 1
    assert _rank(candidates, scores, positive, 1, np.array([7, 7, 2])) == 0
