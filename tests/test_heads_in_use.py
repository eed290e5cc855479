"""Heads in encode, index, search and eval: one fingerprint, no leaks, stored equal to fresh."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions
from retrieval_engine.encoding.from_source import encode as encode_source
from retrieval_engine.encoding.projected import ProjectedStore, leak_free
from retrieval_engine.heads import load_head
from retrieval_engine.index import build_index, open_index, update_index
from retrieval_engine.index.fresh import fresh_index
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.metrics.recall import recall
from retrieval_engine.records import Modality
from retrieval_engine.search import Searcher
from retrieval_engine.store import Store, open_store
from retrieval_engine.train.head import HeadRecipe, train_head
from tests.paired_vectors import paired_store, views
from tests.tiny import save_blip

QUICK = HeadRecipe(epochs=2, dim=8)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `test` of one encoder, `other` of another, and a head trained on `train`."""
    root = tmp_path_factory.mktemp("use")
    store = paired_store(root / "train", 150)
    paired_store(root / "test", 60, seed=1)
    paired_store(root / "other", 60, name="another")
    train_head(store, root / "head", QUICK)
    return root


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes encoded by a tiny random BLIP, and a head on them."""
    root = tmp_path_factory.mktemp("blip")
    checkpoint = save_blip(root / "model")
    encode_source(
        "scenes:40?seed=3", root / "store", encoder=str(checkpoint), options=EncodeOptions()
    )
    train_head(open_store(root / "store"), root / "head", HeadRecipe(epochs=1, refit_below=0))
    return root


def test_training_and_evaluation_by_command(place: Path, tmp_path: Path) -> None:
    for kind in ("linear", "mlp"):
        out = tmp_path / kind
        arguments = ["--store", place / "train", "--kind", kind, "--epochs", "2", "--out", out]
        code, line, _ = run("train-head", *arguments, "--json")
        report = json.loads(line)
        assert (code, report["kind"], report["train"]["images"]) == (0, kind, 120)
        code, line, _ = run("eval", "--recall", "--store", place / "test", "--head", out, "--json")
        figures = json.loads(line)
        assert code == 0
        assert (figures["n_images"], figures["n_captions"]) == (60, 120)
        head = load_head(out).head
        images, texts, owner = views(60, seed=1)
        expected = recall(
            head.project(Modality.IMAGES, images), head.project(Modality.CAPTIONS, texts), owner
        )
        assert figures["mean_recall"] == pytest.approx(expected.mean_recall)
        assert figures["mean_recall"] > 40
        assert figures["head"]["left_out"] is False


def test_what_a_head_was_trained_on_is_left_out_or_named(place: Path, tmp_path: Path) -> None:
    everything = ["--store", place / "train", "--head", place / "head"]
    code, out, _ = run("eval", "--recall", *everything, "--json")
    figures = json.loads(out)  # nothing would be left: they stay, and are named
    assert (code, figures["n_images"], figures["leaks"]["shared_ids"]) == (0, 150, 150)
    assert figures["head"]["n_images_trained_on"] == 150
    part = HeadRecipe(epochs=0, dim=8, train_size=90, refit_below=0)
    train_head(open_store(place / "train"), tmp_path / "h", part)
    arguments = ["eval", "--recall", "--store", place / "train", "--head", tmp_path / "h", "--json"]
    clean = json.loads(run(*arguments)[1])
    assert (clean["n_images"], clean["leaks"]["shared_ids"]) == (30, 0)
    assert (clean["head"]["n_images_trained_on"], clean["head"]["left_out"]) == (120, True)
    whole = json.loads(run(*arguments, "--keep-trained")[1])
    assert (whole["n_images"], whole["leaks"]["shared_ids"]) == (150, 90)
    assert "30 images selected the best weights" in whole["leaks"]["not_compared"][-1]
    certificate = json.loads((place / "train/metrics.json").read_text())
    assert certificate["head"]["left_out"] is False
    assert "linear head" in certificate["results"]["head"]["score"]


def test_the_gallery_without_the_training_images(place: Path, tmp_path: Path) -> None:
    store = open_store(place / "train")
    train_head(store, tmp_path / "h", HeadRecipe(epochs=0, dim=8, train_size=90, refit_below=0))
    saved = load_head(tmp_path / "h")
    rest, left_out = leak_free(store.gallery(), saved)
    assert (left_out, len(rest)) == (120, 30)
    assert not set(rest.ids) & set(saved.trained_on().ids)
    assert [rest.meta(i)["row"] for i in range(30)] == sorted(
        rest.meta(i)["row"]
        for i in range(30)  # type: ignore[type-var]
    )
    texts = store.read(Modality.CAPTIONS, "pooled", rest.caption_rows)
    images, every, owner = views(150)
    rows = np.array([rest.meta(i)["row"] for i in range(30)])
    expected = np.concatenate([every[owner == row] for row in rows])
    assert np.array_equal(texts, expected)
    assert np.array_equal(rest.images("pooled"), images[rows])


def test_heads_of_another_encoder_are_refused_everywhere(place: Path, tmp_path: Path) -> None:
    common = ["--store", place / "other", "--head", place / "head"]
    for command in (
        ["eval", "--recall"],
        ["index", "--index", tmp_path / "i"],
        ["search", "--vectors", tmp_path / "q.npy"],
        ["encode"],
    ):
        code, _, err = run(*command, *common)
        assert code == 1
        assert "head" in err
        assert "(of made) was made under encoder" in err


def test_stored_projections_equal_fresh_ones(place: Path, tmp_path: Path) -> None:
    store = paired_store(tmp_path / "s", 60, seed=1)
    code, out, _ = run("encode", "--store", store.path, "--head", place / "head", "--json")
    report = json.loads(out)
    assert (code, report["images"], report["captions"]) == (0, {"encoded": 60}, {"encoded": 120})
    again = json.loads(run("encode", "--store", store.path, "--head", place / "head", "--json")[1])
    assert (again["images"]["encoded"], again["captions"]["encoded"]) == (0, 0)
    store = open_store(store.path)
    through = ProjectedStore(store, load_head(place / "head"))
    gallery = store.gallery()
    for modality, rows in (
        (Modality.IMAGES, gallery.image_rows),
        (Modality.CAPTIONS, gallery.caption_rows),
    ):
        kept = store.read(modality, report["feature"], rows)
        assert np.array_equal(kept, through.read(modality, "itc", rows))
    assert np.array_equal(gallery.images("pooled"), views(60, seed=1)[0])
    assert run("encode", "scenes:3", "--head", place / "head")[0] == 2


def test_a_projected_store_survives_pickling(place: Path) -> None:
    store = ProjectedStore(open_store(place / "test"), load_head(place / "head"))
    again: Store = pickle.loads(pickle.dumps(store))
    rows = np.arange(5)
    assert np.array_equal(
        again.read(Modality.IMAGES, "itc", rows), store.read(Modality.IMAGES, "itc", rows)
    )


def test_what_is_newer_than_an_index_is_seen_through_its_head(place: Path, tmp_path: Path) -> None:
    saved = load_head(place / "head")
    build_index(ProjectedStore(paired_store(tmp_path / "s", 40, seed=1), saved), tmp_path / "i")
    store = ProjectedStore(paired_store(tmp_path / "s", 5, seed=2), saved)
    vectors = image_vectors(store, "itc", None)
    queries = np.concatenate(list(vectors.blocks()))[40:]
    right_scores, right = vectors.exact().search(queries, 3)
    fresh = fresh_index(open_index(tmp_path / "i"), store, None)
    assert fresh is not None
    assert fresh.newer == 5
    assert update_index(store, tmp_path / "i").added == 5
    for index in (fresh, open_index(tmp_path / "i")):
        scores, items = index.search(queries, 3)
        assert items.tolist() == right.tolist()
        np.testing.assert_allclose(scores, right_scores, atol=2e-3)


def test_index_and_search_through_a_head(place: Path, tmp_path: Path) -> None:
    """Imported vectors of two widths: asked with text vectors, found by an exact scan."""
    images, texts, _ = views(60, seed=1)
    np.save(tmp_path / "q.npy", texts[:7])
    common = ["--store", place / "test", "--head", place / "head"]
    index = ["--index", tmp_path / "index"]
    assert run("index", *common, *index, "--recipe", "flat")[0] == 0
    head = load_head(place / "head").head
    scores = (
        head.project(Modality.CAPTIONS, texts[:7])[:, 0]
        @ head.project(Modality.IMAGES, images)[:, 0].T
    )
    best = np.argsort(-scores, axis=1)[:, :3]
    for extra in (index, []):
        code, out, err = run(
            "search", "--vectors", tmp_path / "q.npy", *common, *extra, "-k", "3", "--json"
        )
        assert code == 0, err
        rows = [json.loads(line)["meta"]["row"] for line in out.splitlines()]
        assert np.array_equal(np.array(rows).reshape(7, 3), best)
    code, _, err = run("search", "a dog", *common)
    assert (code, "were imported: words and images cannot be encoded here" in err) == (2, True)
    code, _, err = run("search", "--vectors", tmp_path / "index", *common)
    assert (code, "cannot read" in err) == (1, True)


@pytest.mark.parametrize("feature", ["pooled", "itc"])
def test_a_head_on_either_feature_is_used_the_same(
    blip: Path, tmp_path: Path, feature: str
) -> None:
    """A head that reads `itc` gives another `itc`."""
    store, head = blip / "store", tmp_path / "head"
    trained = ("train-head", "--feature", feature, "--epochs", "2", "--out", head, "--json")
    report = json.loads(run(*trained, "--store", store, "--val-size", "6", "--refit-below", "0")[1])
    common = ("--store", store, "--head", head)
    code, out, err = run("eval", "--recall", "--keep-trained", *common, "--json")
    assert code == 0, err
    gallery, module = open_store(store).gallery(), load_head(head).head
    images, texts = (
        module.project(modality, rows)
        for modality, rows in (
            (Modality.IMAGES, gallery.images(feature)),
            (Modality.CAPTIONS, gallery.captions(feature)),
        )
    )
    found = json.loads(out)
    expected = recall(images, texts, gallery.caption_image)
    assert found["mean_recall"] == pytest.approx(expected.mean_recall, abs=1.0)
    assert (found["n_images"], report["feature"]) == (len(gallery), feature)
    asked = ("search", "a dog on grass", "-k", "3", "--json")
    fresh = run(*asked, *common)[1]
    assert run("index", *common, "--index", tmp_path / "index")[0] == 0
    ids = [
        [json.loads(line)["item_id"] for line in lines.splitlines()]
        for lines in (fresh, run(*asked, *common, "--index", tmp_path / "index")[1])
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3
    code, out, err = run("encode", *common, "--json")  # stored beside the others
    assert code == 0, err
    assert json.loads(out)["images"] == {"encoded": len(gallery)}


def test_words_are_searched_through_a_head(blip: Path, tmp_path: Path) -> None:
    store = ProjectedStore(open_store(blip / "store"), load_head(blip / "head"))
    engine = Searcher(store)
    found = engine.search("a dog on grass", 5)
    states = engine.encoder.encode_texts(["a dog on grass"], ["pooled"])["pooled"]
    query = store.saved.head.project(Modality.CAPTIONS, states)[0, 0]
    gallery = open_store(blip / "store").gallery()
    scores = store.saved.head.project(Modality.IMAGES, gallery.images("pooled"))[:, 0] @ query
    expected = np.argsort(-scores, kind="stable")[:5]
    assert [hit.item_id for hit in found] == [gallery.ids[int(i)] for i in expected]
    assert found[0].score == pytest.approx(float(scores.max()), abs=2e-3)


def test_an_index_through_a_head_is_not_searched_without_it(blip: Path, tmp_path: Path) -> None:
    store, head, index = (str(p) for p in (blip / "store", blip / "head", tmp_path / "i"))
    assert run("index", "--store", store, "--head", head, "--index", index)[0] == 0
    asked = ["search", "a dog", "--index", index, "-k", "2", "--json"]
    code, out, _ = run(*asked, "--store", store, "--head", head)
    assert (code, len(out.splitlines())) == (0, 2)
    code, _, err = run(*asked, "--store", store)
    assert (code, "is seen through a head" in err) == (1, True)
    code, _, err = run(*asked, "--store", tmp_path / "none")
    assert (code, "holds other itc vectors" in err) == (1, True)


def test_bad_input_by_command_is_one_line(place: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        (["--batch-size", 9999], 1, "--batch-size 9999 is more than the 120 images"),
        (["--feature", "tokens"], 1, "has no tokens of images"),
        (["--val-split", "val"], 1, "no item has split 'val'"),
        (["--recipe", "seed", "--lr", "1"], 2, "--recipe seed decides --lr itself"),
        (["--lr", "-1"], 2, "lr must be above 0"),
    ):
        result = run("train-head", "--store", place / "train", "--out", tmp_path / "h", *arguments)
        assert result[0] == code
        assert message in result[2]
        assert "Traceback" not in result[2]
