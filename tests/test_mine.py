"""Hard negatives: mined ones are near and wrong, and training sees them beside what they fool."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from retrieval_engine import open_store
from retrieval_engine.cli import main
from retrieval_engine.errors import TrainingError, UsageError
from retrieval_engine.search.mine import mine_negatives
from retrieval_engine.train.finetune import Task, configure, finetune
from retrieval_engine.train.finetune.captioned import Order, load_sets
from retrieval_engine.train.finetune.hard_negatives import read_negatives
from tests import tiny, tiny_blip2
from tests.finetune_stores import scenes_store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mine")


@pytest.fixture(scope="module")
def store(root: Path) -> Path:
    return scenes_store(root / "store", tiny.save_blip(root / "blip"), scenes="scenes:48?seed=7")


@pytest.fixture(scope="module")
def mined(root: Path, store: Path) -> Path:
    mine_negatives(open_store(store), root / "negatives.parquet", k=4, pixels=False)
    return root / "negatives.parquet"


def _plain(text: str) -> str:
    return text.lower().strip(" .")


@pytest.mark.parametrize("family", ["blip", "blip2"])
def test_negatives_are_the_nearest_wrong_ones_of_plain_python(
    family: str, root: Path, store: Path, tmp_path: Path
) -> None:
    if family == "blip2":
        store = scenes_store(
            tmp_path / "s", tiny_blip2.save_blip2(tmp_path / "m"), scenes="scenes:16?seed=7"
        )
    mine_negatives(open_store(store), tmp_path / "n.parquet", k=4, pixels=False)
    gallery = open_store(store).gallery()
    images, texts = gallery.images("itc"), gallery.captions("itc")[:, 0]
    scores = np.einsum("nqd,md->mnq", images, texts).max(-1)  # (captions, images)
    said = [
        {_plain(gallery.caption_texts[j]) for j in gallery.captions_of(i)}
        for i in range(len(images))
    ]
    rows = pq.read_table(tmp_path / "n.parquet").to_pylist()
    assert len(rows) == len(texts)
    for caption, row in enumerate(rows):
        image = int(gallery.caption_image[caption])
        text = gallery.caption_texts[caption]
        assert (row["image_id"], row["caption"]) == (gallery.ids[image], text)
        wrong = [
            i
            for i in np.argsort(-scores[caption], kind="stable").tolist()
            if i != image and _plain(text) not in said[i]
        ][:4]
        expected = scores[caption][wrong]
        assert row["negative_image_scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        false, seen = [], set(said[image])
        for j in np.argsort(-scores[:, image], kind="stable").tolist():
            words = _plain(gallery.caption_texts[j])
            if int(gallery.caption_image[j]) != image and words not in seen:
                seen.add(words)
                false.append(float(scores[j, image]))
        assert row["negative_caption_scores"] == pytest.approx(false[:4], abs=1e-5)


@pytest.mark.parametrize("captioned", [True, False])
def test_a_duplicate_is_no_negative(tmp_path: Path, captioned: bool) -> None:
    from PIL import Image

    from retrieval_engine import open_encoder
    from retrieval_engine.encoding.from_source import EncodeOptions, encode
    from tests.test_duplicates import scene

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        scene(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}\nthe same words\n")
    copy: Image.Image = scene(0).crop((0, 0, 305, 240))
    copy.save(folder / "copy.jpg", quality=60)
    if captioned:
        (folder / "copy.txt").write_text("a copy\n")
    encoder = open_encoder(str(tiny.save_blip(tmp_path / "m")), device="cpu", dtype="float32")
    options = EncodeOptions(features=("itc",), worker_kind="serial")
    encode(f"folder:{folder}", tmp_path / "s", encoder=encoder, options=options)
    found = {}
    for pixels in (True, False):
        report = mine_negatives(open_store(tmp_path / "s"), tmp_path / "n", k=9, pixels=pixels)
        rows = {
            r["caption"]: r
            for r in pq.read_table(tmp_path / "n").to_pylist()
            if r["image_id"] != "copy.jpg"
        }
        found[pixels] = rows["picture 0"]
        assert report.n_duplicates == int(pixels)
        for image in found[pixels]["negative_image_ids"]:
            assert image != "0.png"
        assert rows["the same words"]["negative_image_ids"] == (
            [] if pixels and rows["the same words"]["image_id"] == "0.png" else ["copy.jpg"]
        )
    assert "copy.jpg" not in found[True]["negative_image_ids"]
    assert "a copy" not in found[True]["negative_captions"]
    assert "copy.jpg" in found[False]["negative_image_ids"]
    assert "the same words" not in found[True]["negative_captions"]


def test_a_pass_has_every_caption_and_beside_it_what_was_mined(store: Path, mined: Path) -> None:
    data = load_sets(open_store(store), from_cache=True).train
    negatives = read_negatives(mined, data)
    with_them = Order(data, batch_size=16, per_image=1, seed=0, company=negatives)
    without = Order(data, batch_size=16, per_image=1, seed=0)

    pairs = [
        pair
        for step in range(with_them.steps_per_epoch)
        for pair in np.reshape(with_them(step).captions[:, 0], (-1, 2)).tolist()
    ]
    assert with_them.steps_per_epoch == 2 * len(data.texts) // 16
    assert without.steps_per_epoch == len(data.texts) // 16
    assert len({own for own, _ in pairs}) == len(pairs) > len(data.texts) - 16
    for own, beside in pairs:
        image = data.owner_of(beside)
        assert image == data.owner[beside] != data.owner[own]
        assert image in negatives.images[own] or beside in negatives.captions[own]
    groups = [with_them(step) for step in range(3)]
    assert all(g.images.tolist() == data.owner[g.captions[:, 0]].tolist() for g in groups)


def test_training_with_them_is_harder_and_other_weights_come_of_it(
    store: Path, mined: Path, tmp_path: Path
) -> None:
    losses = {}
    for name, given in (("with", str(mined)), ("without", "")):
        config = configure(
            Task.RETRIEVAL,
            store=str(store),
            negatives=given,
            max_steps=8,
            batch_size=16,
            lr=1e-6,
            device="cpu",
            dtype="float32",
        )
        finetune(config, tmp_path / name)
        lines = [
            json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        losses[name] = np.mean([line["itc"] for line in lines if "itc" in line])
    # Nothing is learned at this step size: what is near costs more than what came by chance.
    assert losses["with"] > losses["without"] + 0.01


def test_a_file_of_other_data_is_refused(store: Path, mined: Path, tmp_path: Path) -> None:
    data = load_sets(open_store(store), from_cache=True).train
    table = pq.read_table(mined)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(TrainingError, match="no negative for any of the"):
        read_negatives(tmp_path / "empty.parquet", data)
    pq.write_table(table.drop_columns(["caption"]), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="has no column 'caption'"):
        read_negatives(tmp_path / "other.parquet", data)
    (tmp_path / "text").write_text("no table")
    with pytest.raises(UsageError, match="cannot read `negatives`"):
        read_negatives(tmp_path / "text", data)


def test_the_commands_pass_the_file_on(store: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "n.parquet")
    made = CliRunner().invoke(
        main, ["mine", "--store", str(store), "--out", out, "--json", "-k", "3"]
    )
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["n_captions"] == len(open_store(store).gallery().caption_ids)
    asked = ["finetune", "retrieval", "--store", str(store), "--out", str(tmp_path / "tuned")]
    asked += ["--negatives", out, "--max-steps", "2", "--batch-size", "8", "--device", "cpu"]
    tuned = CliRunner().invoke(main, asked)
    assert tuned.exit_code == 0, tuned.stderr
    record = json.loads((tmp_path / "tuned" / "training.json").read_text())
    assert record["config"]["negatives"] == out
