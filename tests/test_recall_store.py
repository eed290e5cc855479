"""Recall of a store: through the API and through the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.evaluate import evaluate_recall
from retrieval_engine.metrics.recall import recall
from retrieval_engine.store import open_store
from tests.small_store import SPEC, vectors, write_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    images, captions = vectors(0, 40, per_image=3, q=2)
    splits = ["test" if i % 4 == 0 else "train" for i in range(40)]
    write_store(tmp_path / "s", images, captions, np.arange(120) // 3, splits=splits)
    return tmp_path / "s"


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(args))
    return result.exit_code, result.stdout, result.stderr


def test_a_store_gives_what_its_arrays_give(store: Path) -> None:
    images, captions = vectors(0, 40, per_image=3, q=2)
    bare = recall(images, captions, np.arange(120) // 3)
    report = evaluate_recall(open_store(store))
    np.testing.assert_array_equal(report.ranks.image_to_text, bare.ranks.image_to_text)
    np.testing.assert_array_equal(report.ranks.text_to_image, bare.ranks.text_to_image)
    assert report.fingerprint == SPEC.fingerprint
    assert 0 < report.mean_recall < 100


def test_a_split_is_a_gallery_of_its_own(store: Path) -> None:
    images, captions = vectors(0, 40, per_image=3, q=2)
    chosen = np.arange(0, 40, 4)
    rows = np.flatnonzero(np.isin(np.arange(120) // 3, chosen))
    bare = recall(images[chosen], captions[rows], np.arange(30) // 3)
    report = evaluate_recall(open_store(store), split="test")
    assert (report.n_images, report.n_captions) == (10, 30)
    assert report.text_to_image == bare.text_to_image
    assert report.image_to_text == bare.image_to_text


def test_json_keeps_the_contract(store: Path) -> None:
    code, out, _ = run("eval", "--recall", "--store", str(store), "--json")
    assert code == 0
    figures = json.loads(out)
    assert out.count("\n") == 1
    for side in ("image_to_text", "text_to_image"):
        assert {"R@1", "R@5", "R@10", "median_rank"} <= set(figures[side])
    report = evaluate_recall(open_store(store))
    assert figures["text_to_image"]["R@5"] == report.text_to_image.recall[5]
    assert figures["mean_recall"] == pytest.approx(report.mean_recall)
    assert (figures["n_images"], figures["n_captions"]) == (40, 120)
    assert figures["fingerprint"] == SPEC.fingerprint
    assert figures["seconds"] >= 0


def test_people_get_a_table(store: Path) -> None:
    code, out, _ = run("eval", "--recall", "--store", str(store), "--split", "test", "-k", "1")
    assert code == 0
    assert "10 images, 30 captions" in out
    assert "R@1" in out
    assert "R@5" not in out
    figure = evaluate_recall(open_store(store), split="test").text_to_image.recall[1]
    assert f"{figure:.1f} (" in out


def test_what_cannot_be_measured_is_said_in_a_line(store: Path, tmp_path: Path) -> None:
    code, out, err = run("eval", "--recall", "--store", str(tmp_path / "nowhere"))
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    code, _, err = run("eval")
    assert code == 2
    assert "--recall" in err
    code, _, err = run("eval", "--recall", "--store", str(store), "--split", "val")
    assert code in (1, 2)
    assert "val" in err
