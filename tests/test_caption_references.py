"""References in every form that sources take, empty ones, failures told in words, and METEOR."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.errors import EvaluationError, UsageError
from retrieval_engine.evaluate import evaluate_captions
from retrieval_engine.evaluate.predictions import read_captions
from retrieval_engine.evaluate.references import read_references
from retrieval_engine.metrics.meteor import meteor_is_missing
from retrieval_engine.testing.images import jpeg
from tests import tiny
from tests.finetune_stores import scenes_store

TRUTH = {
    "a.jpg": ["a red boat on the water", "a boat | with a sail, at sea"],
    "b.jpg": ["two horses stand in the snow"],
    "c.jpg": ["a girl, in a yellow dress", "a girl runs"],
}
SAID = {"a.jpg": "a red boat on water", "b.jpg": "two horses in snow", "c.jpg": "a girl runs"}


def predictions(path: Path, said: dict[str, Any] = SAID) -> Path:
    rows = [{"image": image, "caption": text} for image, text in said.items()]
    path.write_text(json.dumps(rows))
    return path


def lines(form: str) -> str:
    return "".join(
        form.format(image=image, k=k, text=text, quoted=json.dumps(text))
        for image, texts in TRUTH.items()
        for k, text in enumerate(texts)
    )


TABLES = {
    "bars without a header": lines("{image}|{text}\n"),
    "flickr30k": "image_name| comment_number| comment\n" + lines("{image}| {k}| {text}\n"),
    "tokens": lines("{image}#{k}\t{text}\n"),
    "commas": "image,caption\n" + lines("{image},{quoted}\n"),
    "commas without a header": lines("{image},{quoted}\n"),
    "numbers between": "image,number,comment\n" + lines("{image},{k},{quoted}\n"),
    "objects": json.dumps([{"image": i, "captions": t} for i, t in TRUTH.items()]),
}


@pytest.mark.parametrize("form", TABLES)
def test_a_table_of_references_is_read_whatever_its_form(tmp_path: Path, form: str) -> None:
    file = tmp_path / "truth.txt"
    file.write_text(TABLES[form])
    assert read_references(file).captions == TRUTH
    plain = tmp_path / "plain.json"
    plain.write_text(TABLES["objects"])
    said = predictions(tmp_path / "said.json")
    assert evaluate_captions(said, file).to_json() == evaluate_captions(said, plain).to_json()


def split_file(path: Path) -> Path:
    splits = {"a.jpg": "train", "b.jpg": "test", "c.jpg": "test"}
    rows = [{"image": i, "captions": t, "split": splits[i]} for i, t in TRUTH.items()]
    path.write_text(json.dumps(rows))
    return path


def test_a_split_of_a_file_that_says_splits(tmp_path: Path) -> None:
    file = split_file(tmp_path / "truth.json")
    result = CliRunner().invoke(
        main,
        [
            *("eval", "--captions", str(predictions(tmp_path / "p.json")), "--references"),
            *(str(file), "--split", "test", "--json", "--no-meteor"),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["n_scored"], report["n_without_references"]) == (2, 1)
    with pytest.raises(EvaluationError, match=r"`split='val'`: \S+ names test, train"):
        read_references(file, split="val")
    file.write_text(TABLES["objects"])
    with pytest.raises(EvaluationError, match="names no split of any image"):
        read_references(file, split="test")


def test_karpathy_s_file_by_its_split_as_a_file_and_as_a_source(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    entries: list[dict[str, Any]] = []
    for image, texts in TRUTH.items():
        (tmp_path / "images" / image).write_bytes(jpeg())
        sentences = [{"raw": text, "tokens": text.split()} for text in texts]
        split = "val" if image == "b.jpg" else "test"
        entries.append({"filename": image, "split": split, "sentences": sentences})
    file = tmp_path / "dataset_flickr8k.json"
    file.write_text(json.dumps({"dataset": "flickr8k", "images": entries}))
    wanted = {image: TRUTH[image] for image in ("a.jpg", "c.jpg")}
    assert read_references(file, split="test").captions == wanted
    source = f"karpathy:{file}?images={tmp_path / 'images'}"
    assert read_references(source, split="test").captions == wanted
    assert read_references(source).captions == TRUTH


def test_a_folder_is_a_source_too(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for image, texts in TRUTH.items():
        (folder / image).write_bytes(jpeg())
        (folder / image).with_suffix(".txt").write_text("\n".join(texts))
    assert read_references(folder).captions == TRUTH


def test_a_store_s_own_captions_by_its_split(tmp_path: Path) -> None:
    store = scenes_store(tmp_path / "s", tiny.save_blip(tmp_path / "m"), scenes="scenes:6?seed=2")
    found = read_references(store)
    assert len(found.captions) == 6
    said = predictions(tmp_path / "p.json", {image: t[0] for image, t in found.captions.items()})
    report = evaluate_captions(said, str(store))
    assert report.scores.metrics["BLEU-4"] == pytest.approx(1)
    with pytest.raises(UsageError, match="no item has split 'test'"):
        read_references(store, split="test")


@pytest.mark.parametrize("empty", [[], [""], ["  ", "..."], ["\n"]])
def test_empty_references_are_none(tmp_path: Path, empty: list[str]) -> None:
    said = predictions(tmp_path / "p.json")
    file = tmp_path / "truth.json"
    rows = [{"image": i, "captions": empty if i == "a.jpg" else t} for i, t in TRUTH.items()]
    file.write_text(json.dumps(rows))
    found = evaluate_captions(said, file)
    assert found.pairs.unreferenced == ["a.jpg"]
    file.write_text(json.dumps(rows[1:]))
    assert found.scores.metrics == evaluate_captions(said, file).scores.metrics
    file.write_text(json.dumps([{"image": "a.jpg", "captions": empty}]))
    with pytest.raises(EvaluationError, match=r"holds (a word|no captions)"):
        evaluate_captions(said, file)


def test_an_empty_reference_among_others_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    file.write_text(json.dumps({image: ["", *texts] for image, texts in TRUTH.items()}))
    found = evaluate_captions(predictions(tmp_path / "p.json"), file)
    assert found.pairs.references == list(TRUTH.values())


@pytest.mark.parametrize(
    ("caption", "fails"),
    [
        ("[ERROR]", True),
        ("[ERROR] out of memory", True),
        ("<failed to load>", True),
        ("Error: cannot open a.jpg", True),
        ("(none)", True),
        ("an error message on a screen", False),
        ("[dog] on grass", False),
        ("a failed attempt: a man falls", False),
    ],
)
def test_a_failure_told_in_the_place_of_a_caption_is_one(
    tmp_path: Path, caption: str, fails: bool
) -> None:
    said = predictions(tmp_path / "p.json", SAID | {"a.jpg": caption})
    assert ("a.jpg" in read_captions(said).failed) == fails
    truth = tmp_path / "truth.json"
    truth.write_text(TABLES["objects"])
    if fails:
        with pytest.raises(EvaluationError, match="0 missing, 0 empty, 1 failed"):
            evaluate_captions(said, truth)
        assert evaluate_captions(said, truth, allow_missing=True).pairs.failed == ["a.jpg"]


def test_one_image_s_cider_says_why_it_is_nothing(tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"a.jpg": TRUTH["a.jpg"]}))
    said = predictions(tmp_path / "p.json", {"a.jpg": TRUTH["a.jpg"][0]})
    words = ["eval", "--captions", str(said), "--references", str(truth), "--no-meteor"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "CIDEr of one image is 0 whatever it says" in result.stderr
    report = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert report["metrics"]["CIDEr"] == 0
    assert len(report["notes"]) == 1
    truth.write_text(TABLES["objects"])
    assert evaluate_captions(predictions(said), truth).notes == []


@pytest.mark.skipif(not meteor_is_missing(), reason="METEOR can be computed here")
def test_meteor_that_is_asked_for_and_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(TABLES["objects"])
    said = str(predictions(tmp_path / "p.json"))
    words = ["eval", "--captions", said, "--references", str(truth)]
    asked = CliRunner().invoke(main, [*words, "--meteor"])
    assert asked.exit_code == 1
    assert f"METEOR cannot be computed: {meteor_is_missing()}" in asked.stderr
    assert asked.stdout == ""
    left_out = CliRunner().invoke(main, words)
    assert left_out.exit_code == 0
    assert "METEOR is left out" in left_out.stderr


def test_what_is_no_table_of_captions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello world, this is a text\nof two lines, and no pictures\n")
    with pytest.raises(EvaluationError, match="its first line must name the columns"):
        read_references(file)
