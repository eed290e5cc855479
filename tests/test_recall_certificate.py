"""The certificate, the leak check and the published rows."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.errors import EvaluationError, UsageError
from retrieval_engine.evaluate import RecallSettings, Ties, evaluate_store
from retrieval_engine.evaluate.certificate import write_certificate
from retrieval_engine.evaluate.leaks import (
    TrainingRecord,
    find_leaks,
    known_training_records,
    read_training_record,
)
from retrieval_engine.evaluate.published import (
    DATASETS,
    dataset_of,
    gallery_size,
    published_captions,
    published_recall,
)
from retrieval_engine.models.checkpoint import shipped
from retrieval_engine.store import Store, open_store
from tests.small_store import SPEC, vectors, write_store

SOURCE = "folder:/pictures"


def make(path: Path, seed: int = 0, **settings: object) -> Store:
    images, captions = vectors(seed, 20, per_image=2)
    write_store(path, images, captions, np.arange(40) // 2, **settings)  # type: ignore[arg-type]
    return open_store(path)


def run(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["eval", "--recall", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_the_certificate_lets_a_reviewer_check(tmp_path: Path) -> None:
    store = make(tmp_path / "s", splits=["test"] * 12 + ["train"] * 8)
    code, out, err = run("--store", store.path, "--split", "test", "--json")
    assert code == 0
    assert f"certificate: {store.path / 'metrics.json'}" in err
    value = json.loads((store.path / "metrics.json").read_text())
    data = value["data"]
    lines = sorted(f"{SOURCE}\t{i}.jpg\n" for i in range(12))
    assert data["ids_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    keys = sorted(hashlib.sha256(f"{store.path} {i}".encode()).hexdigest() for i in range(12))
    contents = "".join(f"{k}\n" for k in keys)
    assert data["images_sha256"] == hashlib.sha256(contents.encode()).hexdigest()
    assert data["images_by_captions"] == {"2": 12}
    assert (data["split"], data["sources"]) == ("test", [SOURCE])
    assert value["encoder"]["fingerprint"] == SPEC.fingerprint
    assert value["encoder"]["checkpoint"] == SPEC.checkpoint
    assert value["rules"]["ties"] == "lower-index"
    assert value["rules"]["nan_count"] == 0
    itc, printed = value["results"]["itc"], json.loads(out)
    assert itc["text_to_image"] == printed["text_to_image"]
    assert itc["image_to_text"] == printed["image_to_text"]
    low, high = itc["interval"]["text_to_image"]["R@5"]
    assert low <= itc["text_to_image"]["R@5"] <= high
    assert printed["interval"] == itc["interval"]
    assert value["leaks"]["trained_on"] == ["split train of this store"]
    assert value["leaks"]["shared_ids"] == 0
    assert value["made"]["versions"]["numpy"] == np.__version__


def test_the_hash_of_the_ids_follows_the_items_alone(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a"), make(tmp_path / "b", seed=1)
    digests = []
    for store in (one, two):
        data = evaluate_store(store).certificate()["data"]
        assert isinstance(data, dict)
        digests.append((data["ids_sha256"], data["captions_sha256"], data["images_sha256"]))
    assert digests[0][:2] == digests[1][:2]
    assert digests[0][2] != digests[1][2]


def test_the_certificate_goes_where_it_is_told_or_not_at_all(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    out = tmp_path / "new" / "metrics.json"
    assert run("--store", store.path, "--out", out)[0] == 0
    assert json.loads(out.read_text())["format"] == 1
    assert not (store.path / "metrics.json").exists()
    (tmp_path / "file").write_text("")
    code, _, err = run("--store", store.path, "--out", tmp_path / "file" / "m.json")
    assert code == 1
    assert "cannot write" in err
    with pytest.raises(EvaluationError, match="cannot write"):
        write_certificate(tmp_path, {})


def test_leaks_by_id_by_content_and_nearly(tmp_path: Path) -> None:
    images, captions = vectors(0, 20, per_image=2)
    # Picture 3 is written again under another name, picture 5 in slightly other pixels.
    again, others = vectors(9, 20, per_image=2)
    again[0], again[1] = images[3], images[5]
    again[1, 0, 0] += np.float16(0.01)
    own = np.arange(40) // 2
    write_store(tmp_path / "s", images, captions, own, contents={3: b"three"})
    write_store(
        tmp_path / "t", again, others, own, source="folder:/training", contents={0: b"three"}
    )
    gallery = open_store(tmp_path / "s").gallery()
    training = read_training_record(tmp_path / "t", [SOURCE])
    found = find_leaks(gallery, [training])
    assert (found.shared_ids, found.shared_contents, found.near_duplicates) == (0, 1, 1)
    assert found.examples == ("content: 3.jpg", "near: 5.jpg")
    listed = TrainingRecord(what="a list", items=frozenset({("", "7.jpg"), (SOURCE, "8.jpg")}))
    elsewhere = TrainingRecord(what="x", items=frozenset({("folder:/training", "9.jpg")}))
    both = find_leaks(gallery, [training, listed, elsewhere])
    assert (both.shared_ids, both.shared_contents, both.near_duplicates) == (2, 1, 1)
    assert find_leaks(gallery, [training], near=1.1).near_duplicates == 0


@pytest.mark.parametrize("splits", [None, ["train"] * 10 + ["test"] * 10])
def test_a_copy_of_the_gallery_is_all_leak(tmp_path: Path, splits: list[str] | None) -> None:
    gallery = make(tmp_path / "s").gallery()
    training = read_training_record(make(tmp_path / "t", splits=splits).path, [SOURCE])
    found = find_leaks(gallery, [training])
    n = 10 if splits else 20
    assert (found.shared_ids, found.shared_contents) == (n, 0)


def test_near_duplicates_need_one_encoder(tmp_path: Path) -> None:
    gallery = make(tmp_path / "s").gallery()
    same = read_training_record(make(tmp_path / "t", source="folder:/x").path, [SOURCE])
    assert find_leaks(gallery, [same]).near_duplicates == 20
    spec = replace(SPEC, weights=dict(SPEC.weights) | {"image": "other"})
    other = read_training_record(make(tmp_path / "u", source="folder:/x", spec=spec).path, [SOURCE])
    found = find_leaks(gallery, [other])
    assert found.near_duplicates == 0
    assert "another encoder's" in found.unknown[0]


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    training, unknown = known_training_records(store.gallery())
    assert training == []
    assert unknown == ["tests says nothing of what it was trained on"]
    value = find_leaks(store.gallery(), training, unknown=unknown).to_json()
    assert value["shared_ids"] is None
    assert value["trained_on"] == []


@pytest.mark.parametrize(
    ("record", "leaked"),
    [
        (["1.jpg", "2.jpg", "x.jpg"], 2),
        ({"ids": ["1.jpg"]}, 1),
        ({"keys": ["no such"]}, 0),
    ],
)
def test_records_of_a_training(tmp_path: Path, record: object, leaked: int) -> None:
    store = make(tmp_path / "s")
    (tmp_path / "training.json").write_text(json.dumps(record))
    for path in (tmp_path, tmp_path / "training.json"):
        found = find_leaks(store.gallery(), [read_training_record(path, [SOURCE])])
        assert found.shared_ids == leaked
    code, out, _ = run("--store", store.path, "--trained-on", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["leaks"]["shared_ids"] == leaked
    _, _, err = run("--store", store.path, "--trained-on", tmp_path)
    assert ("LEAK" in err) == bool(leaked)


def test_a_record_that_names_a_source_is_listed(tmp_path: Path) -> None:
    source = {"config": {"source": "scenes:30?seed=5"}}
    (tmp_path / "training.json").write_text(json.dumps(source))
    seen = read_training_record(tmp_path, ["scenes:5"])
    assert len(seen.items) == 30
    assert next(iter(seen.items))[0] == "scenes:5"
    elsewhere = read_training_record(tmp_path, ["scenes:6"])
    assert not elsewhere.items
    assert "scenes:30?seed=5" in elsewhere.what


def test_ids_in_a_record_need_no_source(tmp_path: Path) -> None:
    record = {"config": {"source": "flickr8k:elsewhere"}, "ids": ["1.jpg", "3.jpg"]}
    (tmp_path / "training.json").write_text(json.dumps(record))
    found = find_leaks(make(tmp_path / "s").gallery(), [read_training_record(tmp_path, [SOURCE])])
    assert (found.shared_ids, found.unknown) == (2, ())
    assert "flickr8k:elsewhere" in found.trained_on[0]


def test_the_default_model_says_what_it_was_trained_on() -> None:
    record = read_training_record(shipped()["vlre-photo"], ["folder:x"])
    assert ("", "1000268201_693b08cb0e.jpg") in record.items
    assert len(record.items) == 4952


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("{}", "names no training item"), ('{"source": "zoo:1"}', "zoo:1")],
)
def test_a_wrong_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_training_record(tmp_path, [])
    with pytest.raises(EvaluationError, match="cannot read"):
        read_training_record(tmp_path / "nowhere.json", [])


def test_reranking_knows_one_tie_rule() -> None:
    with pytest.raises(UsageError, match="pessimistic"):
        RecallSettings(rerank=8, ties=Ties.PESSIMISTIC)


def test_published_rows_are_whole_and_plausible() -> None:
    for dataset in DATASETS:
        rows = published_recall(dataset)
        assert len(rows) >= 3
        for row in rows:
            for side in (row.image_to_text, row.text_to_image):
                assert list(side) == ["R@1", "R@5", "R@10"]
                values = [v for v in side.values() if v is not None]
                assert values == sorted(values)
                assert all(30 < v <= 100 for v in values)
            assert row.source
            assert (row.image_to_text["R@5"] or 0) > (row.text_to_image["R@5"] or 0)
    assert gallery_size("coco") == (5000, 25010)
    best = [r for r in published_recall("flickr30k") if r.model.startswith("BLIP-2 ViT-g, 364")]
    assert best[0].text_to_image == {"R@1": 89.7, "R@5": 98.1, "R@10": 98.9}
    assert {"BLEU-4", "CIDEr"} <= set(published_captions()[0].metrics)


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    store = make(tmp_path / "s", source="karpathy:/data/dataset_flickr30k.json")
    code, out, err = run("--store", store.path, "--published")
    assert code == 0
    assert "published on flickr30k" in out
    assert "97.6/100.0/100.0" in out
    assert "this run" in out
    assert "not comparable: published figures are of 1,000 images and 5,000 captions" in err
    _, out, _ = run("--store", store.path, "--published", "coco", "--json")
    assert any("BLIP-2" in row["model"] for row in json.loads(out)["published"])
    assert dataset_of(["coco:/x", "coco:/y"]) == "coco"
    with pytest.raises(EvaluationError, match="cannot tell the data set"):
        dataset_of(["folder:/pictures"])
