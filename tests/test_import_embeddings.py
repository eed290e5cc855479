"""Vectors of other encoders: every file form, refusals with row numbers, real CLIP figures."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.encoding import import_embeddings, read_clip_retrieval, read_embeddings
from retrieval_engine.errors import FingerprintMismatch, ShapeError, SourceError, UsageError
from retrieval_engine.records import Modality
from retrieval_engine.store import open_store
from tests.paired_vectors import embeddings, views

REAL = Path(__file__).parents[2] / "shared/data/embeddings"


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def files(tmp_path: Path) -> Path:
    images, texts, owner = views(30, (8, 8))
    for name, array in (("A", images), ("B", texts), ("P", owner)):
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def given(files: Path) -> list[object]:
    return [
        "import-embeddings", "--images", files / "A.npy", "--texts", files / "B.npy",
        "--pairs", files / "P.npy", "--store", files / "store",
    ]  # fmt: skip


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared CLIP vectors are not here")
@pytest.mark.parametrize(
    ("name", "texts", "to_image", "to_text"),
    [
        ("clip_b32_flickr8k_pairs100", 500, (83.2, 99.0, 99.8), (93, 100, 100)),
        ("clip_b32_memorylens290", 290, (46.9, 79.7, 92.4), (47.9, 81.0, 93.1)),
    ],
)
def test_real_clip_vectors_give_their_known_recall(
    tmp_path: Path, name: str, texts: int, to_image: tuple[float, ...], to_text: tuple[float, ...]
) -> None:
    file = REAL / f"{name}.npz"
    pairs = ["--pairs", file] if texts == 500 else []
    store = ["--store", tmp_path / "s"]
    code, out, _ = run(
        "import-embeddings", "--images", file, "--texts", file, *pairs, *store, "--json"
    )
    assert (code, json.loads(out)["captions"]) == (0, texts)
    code, out, _ = run("eval", "--recall", *store, "--json")
    figures = json.loads(out)
    for side, expected in (("text_to_image", to_image), ("image_to_text", to_text)):
        found = tuple(figures[side][f"R@{k}"] for k in (1, 5, 10))
        assert found == pytest.approx(expected, abs=0.06)


def test_the_store_holds_what_was_given(files: Path) -> None:
    code, out, err = run(*given(files), "--name", "clip", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["images"], report["captions"], report["features"]) == (30, 60, ["pooled", "itc"])
    store = open_store(files / "store")
    assert (store.spec.family, store.spec.checkpoint) == ("external", "clip")
    gallery = store.gallery()
    images = np.load(files / "A.npy")
    assert np.array_equal(gallery.images("pooled"), images)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    assert np.allclose(gallery.images("itc")[:, 0], unit, atol=1e-6)
    assert np.array_equal(gallery.captions("pooled"), np.load(files / "B.npy"))
    assert np.array_equal(gallery.caption_image, np.load(files / "P.npy"))
    assert [gallery.meta(i)["row"] for i in range(30)] == list(range(30))
    assert "no --name" not in err


def test_pairs_may_come_in_any_order_and_images_without_texts(tmp_path: Path) -> None:
    images, texts, _ = views(10, (8, 8), captions=1)
    owner = np.array([9, 0, 3, 3, 1, 0, 8, 7, 7, 7])
    import_embeddings(embeddings(images, texts, owner), tmp_path / "s")
    gallery = open_store(tmp_path / "s").gallery()
    order = np.argsort(owner, kind="stable")
    assert np.array_equal(gallery.caption_image, owner[order])
    assert np.array_equal(gallery.captions("pooled"), texts[order])


def test_importing_again_changes_nothing_and_ids_do_not_depend_on_order(files: Path) -> None:
    run(*given(files))
    manifest = (files / "store/manifest.json").read_bytes()
    run(*given(files))
    assert (files / "store/manifest.json").read_bytes() == manifest
    images, texts, owner = (np.load(files / f"{n}.npy") for n in "ABP")
    other = files / "other"
    import_embeddings(embeddings(images[::-1].copy(), texts, 29 - owner), other)
    first, second = (open_store(s).gallery() for s in (files / "store", other))
    assert list(first.ids) == list(second.ids)[::-1]


def test_npz_and_parquet_columns(files: Path) -> None:
    images, texts, owner = (np.load(files / f"{n}.npy") for n in "ABP")
    np.savez(files / "all.npz", image_emb=images, other=images, names=np.arange(30).astype(str))
    pq.write_table(
        pa.table(
            {
                "vector": pa.array(texts.tolist(), pa.list_(pa.float32())),
                "of": owner,
                "words": [f"sentence {i}" for i in range(60)],
            }
        ),
        files / "t.parquet",
    )
    read = read_embeddings(
        str(files / "all.npz"),
        f"{files}/t.parquet:vector",
        pairs=f"{files}/t.parquet:of",
        ids=f"{files}/all.npz:names",
        captions=f"{files}/t.parquet:words",
    )
    assert np.array_equal(read.images.rows, images)
    assert read.texts is not None
    assert np.array_equal(read.texts.rows, texts)
    assert (read.ids[7], read.captions[59]) == ("7", "sentence 59")
    with pytest.raises(UsageError, match=r"several columns: vector, of, words"):
        read_embeddings(str(files / "all.npz"), str(files / "t.parquet"))
    with pytest.raises(UsageError, match="no column 'x'"):
        read_embeddings(f"{files}/all.npz:x")


def test_the_folder_of_clip_retrieval(tmp_path: Path) -> None:
    images, texts, owner = views(12, (8, 8), captions=1)
    for part in range(11):  # so that part 10 must come after part 9
        rows = slice(part, part + 1) if part < 10 else slice(10, 12)
        for name, array in (("img", images), ("text", texts)):
            folder = tmp_path / f"{name}_emb"
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{name}_emb_{part}.npy", array[rows].astype(np.float16))
        numbers = list(range(12))[rows]
        table = {
            "image_path": [f"/pictures/{i}.jpg" for i in numbers],
            "caption": [f"caption {i}" for i in numbers],
            "width": numbers,
        }
        (tmp_path / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "metadata" / f"metadata_{part}.parquet")
    code, out, _ = run("import-embeddings", tmp_path, "--store", tmp_path / "s", "--json")
    assert (code, json.loads(out)["images"]) == (0, 12)
    store = open_store(tmp_path / "s")
    gallery = store.gallery()
    assert store.features(Modality.IMAGES)["pooled"].dtype == "float16"
    assert list(gallery.uris) == [f"/pictures/{i}.jpg" for i in range(12)]
    assert list(gallery.caption_texts) == [f"caption {i}" for i in range(12)]
    assert gallery.meta(11) == {"row": 11, "image_path": "/pictures/11.jpg", "width": 11}
    assert np.array_equal(gallery.images("pooled"), images.astype(np.float16))
    assert np.array_equal(gallery.caption_image, owner)
    with pytest.raises(SourceError, match=r"no img_emb/\*.npy"):
        read_clip_retrieval(tmp_path / "metadata")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": (17, np.nan)}, "row 17 of .*A.npy holds NaN"),
        ({"B": (4, 0.0)}, "row 4 of .*B.npy holds only zeros"),
        ({"B": (5, np.inf)}, "row 5 of .*B.npy holds NaN or infinity"),
    ],
)
def test_rows_that_are_no_vectors(
    files: Path, change: dict[str, tuple[int, float]], message: str
) -> None:
    for name, (row, value) in change.items():
        array = np.load(files / f"{name}.npy")
        array[row] = value
        np.save(files / f"{name}.npy", array)
    read = read_embeddings(f"{files}/A.npy", f"{files}/B.npy", pairs=f"{files}/P.npy")
    with pytest.raises(SourceError, match=message):
        import_embeddings(read, files / "store")
    assert not (files / "store").exists()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("P", np.arange(59), "59 pairs for 60 texts"),
        ("P", np.full(60, 30), "text 0 belongs to image row 30, but there are only 30"),
        ("P", np.full(60, -1), "text 0 belongs to image row -1"),
        ("P", np.full(60, 0.5), "one whole number a text"),
        ("A", np.ones((30, 8, 2), np.float32), r"float32\[30, 8, 2\]; vectors are"),
        ("A", np.ones((30, 8), np.int64), "int64"),
        ("A", np.ones((0, 8), np.float32), r"\[0, 8\]"),
    ],
)
def test_arrays_that_do_not_fit(files: Path, name: str, array: np.ndarray, message: str) -> None:
    np.save(files / f"{name}.npy", array)
    with pytest.raises((SourceError, ShapeError), match=message):
        read_embeddings(f"{files}/A.npy", f"{files}/B.npy", pairs=f"{files}/P.npy")


def test_other_refusals(files: Path) -> None:
    def error(*arguments: object) -> str:
        code, _, err = run("import-embeddings", *arguments, "--store", files / "s2")
        assert code in (1, 2)
        return err.splitlines()[0]

    a, b = files / "A.npy", files / "B.npy"
    assert "30 images and 60 texts: which belong together?" in error("--images", a, "--texts", b)
    assert "is not there" in error("--images", files / "none.npy")
    (files / "broken.npy").write_bytes(b"no array")
    assert "cannot read" in error("--images", files / "broken.npy")
    (files / "ids.txt").write_text("x\n" * 30)
    assert "id 'x' stands for several images" in error("--images", a, "--ids", files / "ids.txt")
    assert "nothing to import" in error()
    assert "of no known kind" in error("--images", files / "ids.txt")


def test_one_sentence_has_one_vector(tmp_path: Path) -> None:
    images, texts, owner = views(4, (8, 8), captions=1)
    given = embeddings(images, texts, owner)
    same = type(given)(
        images=given.images,
        texts=given.texts,
        caption_image=owner,
        captions=["a dog", "a cat", "a dog", "a cow"],
    )
    with pytest.raises(SourceError, match="texts 0 and 2 are the same sentence, 'a dog'"):
        import_embeddings(same, tmp_path / "s")


def test_two_names_are_two_encoders(files: Path) -> None:
    assert run(*given(files), "--name", "clip")[0] == 0
    code, _, err = run(*given(files), "--name", "siglip")
    assert code == 1
    assert "made under encoder" in err
    with pytest.raises(FingerprintMismatch):
        import_embeddings(embeddings(*views(3, (8, 8))), files / "store", name="siglip")


def test_equal_vectors_are_equal_content_but_a_collapsed_encoder_is_at_chance(
    tmp_path: Path,
) -> None:
    """Two sentences twice: no wrong answers. One vector for all: one in N, and it is said."""
    images, texts, owner = views(20, (8, 8), captions=1)
    texts[1], images[1] = texts[0], images[0]
    report = import_embeddings(embeddings(images, texts, owner), tmp_path / "twice")
    assert not report.remarks
    gallery = open_store(tmp_path / "twice").gallery()
    assert len(gallery) == 20
    assert gallery.image_rows[0] == gallery.image_rows[1]
    flat = embeddings(np.ones_like(images), np.ones_like(texts), owner)
    report = import_embeddings(flat, tmp_path / "flat")
    assert "has its encoder collapsed?" in report.remarks[0]
    _, out, _ = run("eval", "--recall", "--store", tmp_path / "flat", "--json")
    assert json.loads(out)["text_to_image"]["R@1"] == 5


def test_different_widths_need_a_head_and_say_so(tmp_path: Path) -> None:
    import_embeddings(embeddings(*views(30)), tmp_path / "s")
    assert list(open_store(tmp_path / "s").features(Modality.IMAGES)) == ["pooled"]
    code, _, err = run("eval", "--recall", "--store", tmp_path / "s")
    assert code == 1
    assert "imported with different widths, and need a head" in err.splitlines()[-2]
