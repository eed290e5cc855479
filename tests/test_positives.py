"""Extended ground truth: the figures of plain Python, from each published form and a plain one."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from retrieval_engine import open_store
from retrieval_engine.cli import main
from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate.positives import extended_recall, read_positives
from retrieval_engine.metrics.extended import extended_report
from retrieval_engine.records import Json
from tests.small_store import vectors, write_store

N, PER_IMAGE = 30, 3


def slow(scores: Sequence[Sequence[float]], positives: Sequence[set[int]], k: int) -> list[float]:
    """R@k, R-Precision and mAP@R as the papers write them, in per cent."""
    recalls, precisions, averages = [], [], []
    for row, right in zip(scores, positives, strict=True):
        if not right:
            continue
        ranked = sorted(range(len(row)), key=lambda c: (-row[c], c))
        recalls.append(any(c in right for c in ranked[:k]))
        size = len(right)
        precisions.append(sum(c in right for c in ranked[:size]) / size)
        total = 0.0
        for place in range(1, size + 1):
            if place <= len(ranked) and ranked[place - 1] in right:
                total += sum(c in right for c in ranked[:place]) / place
        averages.append(total / size)
    return [100 * sum(v) / len(v) for v in (recalls, precisions, averages)]


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9), st.integers(1, 5))
def test_the_figures_are_those_of_plain_python(seed: int, q: int, c: int, k: int) -> None:
    rng = random.Random(seed)
    scores = [[rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(c)] for _ in range(q)]  # many ties
    right = [{n for n in range(c) if rng.random() < 0.4} for _ in range(q)]
    right[0] = right[0] or {0}
    table = np.array(scores)
    found = extended_report(lambda rows: table[rows], [sorted(r) for r in right], ks=(k,))
    assert [found.recall[k], found.r_precision, found.map_at_r] == pytest.approx(
        slow(scores, right, k)
    )
    assert found.n_queries == sum(map(bool, right))
    assert found.n_positives == sum(map(len, right))


@pytest.fixture(scope="module", params=[1, 4])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("positives") / "store"
    images, captions = vectors(3, N, PER_IMAGE, q=request.param)
    write_store(path, images, captions, np.repeat(np.arange(N), PER_IMAGE))
    return path


def _truth() -> list[tuple[int, int]]:
    """Foreign pairs of image and caption, by number in the store."""
    rng = random.Random(1)
    return [(rng.randrange(N), rng.randrange(N * PER_IMAGE)) for _ in range(40)]


def _name(caption: int) -> str:
    return f"{caption // PER_IMAGE}#{caption}"


def _expected(store: Path, right: list[set[int]], *, images_ask: bool) -> list[float]:
    gallery = open_store(store).gallery()
    images, texts = gallery.images("itc", np.float64), gallery.captions("itc", np.float64)[:, 0]
    scores = np.einsum("nqd,md->mnq", images, texts).max(-1)
    return slow((scores.T if images_ask else scores).tolist(), right, 5)


def _write(path: Path, value: Json) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_eccv_files_say_all_that_is_right_and_who_asks(store: Path, tmp_path: Path) -> None:
    of_caption: dict[int, set[int]] = {}
    for image, caption in _truth():
        of_caption.setdefault(caption, set()).add(image)
    # Numbers as COCO has them: those of images at the end of a name, of captions behind the #.
    table: Json = {str(c): list(i) for c, i in of_caption.items()}
    file = _write(tmp_path / "eccv_caption_to_image.json", table)
    found = extended_recall(open_store(store).gallery(), read_positives([file]), ks=(5,))
    right = [of_caption.get(c, set()) for c in range(N * PER_IMAGE)]
    expected = _expected(store, right, images_ask=False)
    side = found.text_to_image
    assert side is not None
    assert [side.recall[5], side.r_precision, side.map_at_r] == pytest.approx(expected)
    assert side.n_queries == len(of_caption)
    assert found.image_to_text is None

    of_image: dict[int, set[int]] = {}
    for image, caption in _truth():
        of_image.setdefault(image, set()).add(caption)
    other = _write(
        tmp_path / "eccv_image_to_caption.json", {str(i): list(c) for i, c in of_image.items()}
    )
    both = extended_recall(open_store(store).gallery(), read_positives([file, other]), ks=(5,))
    assert both.text_to_image is not None
    assert both.image_to_text is not None
    assert both.image_to_text.n_queries == len(of_image)
    assert both.text_to_image.n_queries == len(of_caption)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_other_files_add_to_what_the_store_says(form: str, store: Path, tmp_path: Path) -> None:
    lines = ["caption,image,agg_score,sampling_method"]
    for image, caption in _truth():
        lines.append(f"COCO_val2014:sentid:{caption},{image}.jpg,3.0,c2i_intrasim")
        lines.append(f"COCO_val2014:sentid:{caption},{(image + 1) % N}.jpg,2.99,c2i_intrasim")
    lines.append("COCO_val2014:sentid:999,7.jpg,5.0,c2i_intrasim")
    if form == "jsonl":
        lines = [
            json.dumps({"caption": _name(c), "images": [f"{i}.jpg"]}) for i, c in _truth()[:20]
        ]
        lines += [
            json.dumps({"image": f"{i}.jpg", "captions": [_name(c)]}) for i, c in _truth()[20:]
        ]
        lines += ["", json.dumps({"image": "gone.jpg", "captions": [_name(0)]})]
    file = tmp_path / f"positives.{form}"
    file.write_text("\n".join(lines) + "\n")
    found = extended_recall(open_store(store).gallery(), read_positives([file]), ks=(5,))
    of_caption = [{c // PER_IMAGE} for c in range(N * PER_IMAGE)]
    of_image = [set(range(i * PER_IMAGE, (i + 1) * PER_IMAGE)) for i in range(N)]
    for image, caption in _truth():
        of_caption[caption].add(image)
        of_image[image].add(caption)
    for side, right, ask in (
        (found.text_to_image, of_caption, False),
        (found.image_to_text, of_image, True),
    ):
        assert side is not None
        assert [side.recall[5], side.r_precision, side.map_at_r] == pytest.approx(
            _expected(store, right, images_ask=ask)
        )
    assert found.n_unknown == 1


def test_the_command_prints_them_and_writes_them_down(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    file.write_text('{"caption": "0#0", "images": ["1.jpg", "2.jpg"]}\n')
    asked = ["eval", "--recall", "--store", str(store), "--positives", str(file), "--device", "cpu"]
    out = tmp_path / "metrics.json"
    plain = CliRunner().invoke(main, [*asked, "--out", str(out)])
    assert plain.exit_code == 0, plain.stderr
    assert "mAP@R" in plain.stdout
    assert "92" in plain.stdout  # 90 own pairs and two more
    written = json.loads(out.read_text())["extended"]
    assert set(written["files"]) == {"more.jsonl"}
    found = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)["extended"]
    assert found["text_to_image"] == written["text_to_image"]
    assert found["text_to_image"]["n_positives"] == 92


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{}", "its name does not say"),
        ("caption_to_image.json", "[1]", "no object of lists"),
        ("caption_to_image.json", "{", "is no JSON"),
        ("caption_to_image.json", "{}", "no pair that matches"),
        ("a.csv", "image,caption\n", "has columns image, caption"),
        ("a.csv", "caption,image,agg_score,m\na:1,b,x,c\n", "line 2: no score"),
        ("a.jsonl", '{"caption": 1}\n', "line 1"),
        ("a.jsonl", '{"caption": "x", "images": ["y"]}\n', "none of the 1 pairs is in the gallery"),
    ],
)
def test_files_that_say_nothing_are_refused(
    name: str, text: str, said: str, store: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=said):
        extended_recall(open_store(store).gallery(), read_positives([tmp_path / name]), ks=(1,))
    with pytest.raises(EvaluationError, match="cannot read"):
        read_positives([tmp_path / "none.jsonl"])


def test_kinds_that_mean_different_things_are_not_mixed(tmp_path: Path) -> None:
    one = _write(tmp_path / "caption_to_image.json", {"1": [2]})
    other = tmp_path / "a.jsonl"
    other.write_text('{"caption": "1", "images": ["2"]}\n')
    with pytest.raises(EvaluationError, match="mixes"):
        read_positives([one, other])
