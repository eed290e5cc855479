"""Captions and references in every common form, what is wrong with them, and the command."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate import evaluate_captions
from retrieval_engine.evaluate.predictions import read_captions
from retrieval_engine.evaluate.references import pair_captions

CAPTIONS = {"a.jpg": "A dog runs.", "b.jpg": "Two cats, asleep", "c.jpg": "a red bus"}
REFERENCES = {
    "a.jpg": ["A dog runs on grass.", "A running dog"],
    "b.jpg": ["Two cats sleep."],
    "c.jpg": ["The red bus stops", "A bus", "A red double-decker bus"],
}


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def references(folder: Path) -> Path:
    rows = [{"image": i, "caption": c} for i, texts in REFERENCES.items() for c in texts]
    return write(folder / "references.json", rows)


def predictions(folder: Path, value: Any = None) -> Path:
    rows = [{"image": i, "caption": c} for i, c in CAPTIONS.items()]
    return write(folder / "predictions.json", rows if value is None else value)


def run(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["eval", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def as_csv(rows: Sequence[tuple[str, str]], delimiter: str = ",") -> str:
    class Lines(list[str]):
        def write(self, line: str) -> None:
            self.append(line)

    lines = Lines()
    csv.writer(lines, delimiter=delimiter).writerows([("image", "caption"), *rows])
    return "".join(lines)


FORMS = {
    "list.json": [{"image": i, "caption": c} for i, c in CAPTIONS.items()],
    "results.json": [{"image_id": i, "caption": c} for i, c in CAPTIONS.items()],
    "several.json": [{"image_name": i, "captions": [c]} for i, c in CAPTIONS.items()],
    "mapping.json": CAPTIONS,
    "karpathy.json": {
        "images": [{"filename": i, "sentences": [{"raw": c}]} for i, c in CAPTIONS.items()]
    },
    "annotations.json": {
        "annotations": [
            {"id": 7 + n, "image_id": n, "caption": c} for n, c in enumerate(CAPTIONS.values())
        ],
        "images": [{"id": n, "file_name": f"val/{i}"} for n, i in enumerate(CAPTIONS)],
    },
    "lines.jsonl": "".join(
        json.dumps({"item_id": i, "caption": c, "score": 0.5}) + "\n\n" for i, c in CAPTIONS.items()
    ),
    "lines.json": "\n".join(json.dumps({"image": i, "caption": c}) for i, c in CAPTIONS.items()),
    "comma.csv": as_csv(list(CAPTIONS.items())),
    "bar.csv": "Image|Caption\n" + "\n".join(f"{i}|{c}" for i, c in CAPTIONS.items()),
    "flickr.token.txt": "\n".join(f"{i}#0\t{c}" for i, c in CAPTIONS.items()),
    "bom.csv": "\ufeff" + as_csv(list(CAPTIONS.items())),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    usual = evaluate_captions(predictions(tmp_path), references(tmp_path))
    report = evaluate_captions(write(tmp_path / name, FORMS[name]), references(tmp_path))
    assert report.pairs == usual.pairs
    assert report.scores.metrics == usual.scores.metrics
    assert report.scores.metrics["CIDEr"] > 1


def test_coco_annotations_serve_as_references(tmp_path: Path) -> None:
    ids = {name: 100 + n for n, name in enumerate(REFERENCES)}
    annotations = {
        "annotations": [
            {"id": n, "image_id": ids[i], "caption": c}
            for n, (i, texts) in enumerate(REFERENCES.items())
            for c in texts
        ],
        "images": [{"id": n, "file_name": name} for name, n in ids.items()],
    }
    results = [{"image_id": ids[i], "caption": c} for i, c in CAPTIONS.items()]
    truth = write(tmp_path / "captions_val.json", annotations)
    by_id = evaluate_captions(write(tmp_path / "results.json", results), truth)
    by_name = evaluate_captions(predictions(tmp_path), truth)
    usual = evaluate_captions(predictions(tmp_path), references(tmp_path))
    assert by_id.scores.metrics == by_name.scores.metrics == usual.scores.metrics


def test_folders_in_names_do_not_matter_when_no_name_agrees(tmp_path: Path) -> None:
    far = predictions(tmp_path, [{"image": f"/x/{i}", "caption": c} for i, c in CAPTIONS.items()])
    report = evaluate_captions(far, references(tmp_path))
    assert report.pairs.images == list(REFERENCES)


def test_what_is_missing_is_never_scored_silently(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "A dog runs."},
        {"image": "b.jpg", "caption": " ... "},
        {"image": "d.jpg", "caption": "not asked for"},
        {"image": "c.jpg", "caption": None, "error": "truncated file"},
    ]
    file = predictions(tmp_path, rows)
    with pytest.raises(EvaluationError, match=r"2 of 3 .*0 missing, 1 empty, 1 failed.*b.jpg"):
        evaluate_captions(file, references(tmp_path))
    report = evaluate_captions(file, references(tmp_path), allow_missing=True)
    assert report.pairs.images == ["a.jpg"]
    assert (report.pairs.empty, report.pairs.failed) == (["b.jpg"], ["c.jpg"])
    assert (report.pairs.missing, report.pairs.unreferenced) == ([], ["d.jpg"])
    figures = report.to_json()
    assert [figures[f"n_{n}"] for n in ("scored", "empty", "failed", "missing")] == [1, 1, 1, 0]
    assert figures["n_without_references"] == 1


def test_the_ledger_of_a_caption_run_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "run.jsonl", '{"image": "a.jpg", "caption": "a dog"}')
    ledger = [{"source": "folder:x", "item_id": name, "reason": "empty"} for name in CAPTIONS]
    lines = "".join(json.dumps(row) + "\n" for row in ledger)
    write(tmp_path / "run.jsonl.failures.jsonl", lines)
    pairs = pair_captions(
        read_captions(file), read_captions(references(tmp_path)), allow_missing=True
    )
    # The first succeeded in a later run.
    assert (pairs.images, pairs.failed, pairs.missing) == (["a.jpg"], ["b.jpg", "c.jpg"], [])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[]", "holds no captions"),
        ("x.json", '[{"image": "a.jpg"}]', "row 1: image a.jpg has no caption"),
        ("x.json", '[{"caption": "a dog"}]', "row 1: no image"),
        ("x.json", '["a dog"]', "expected a list of objects"),
        ("x.json", '[{"image": "a.jpg", "caption": 3}]', "must be text, got 3"),
        ("x.jsonl", '{"image": "a.jpg", "caption": "x"}\n{oops', "line 2: no JSON"),
        ("x.csv", "picture,words\n1,2\n", "must name the columns"),
        ("x.txt", "a.jpg#0\tA dog\na.jpg#1 A dog", "x.txt:2: expected 'image\\\\tcaption'"),
        ("x.csv", "", "must name the columns"),
    ],
)
def test_a_wrong_file_is_named_with_its_row(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_captions(write(tmp_path / name, text))


def test_other_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="No such file"):
        read_captions(tmp_path / "nowhere.json")
    (tmp_path / "latin.csv").write_bytes("image,caption\na.jpg,café".encode("latin-1"))
    with pytest.raises(EvaluationError, match="not UTF-8"):
        read_captions(tmp_path / "latin.csv")
    twice = predictions(tmp_path, {"a.jpg": ["one", "two"]})
    with pytest.raises(EvaluationError, match="more than one caption"):
        pair_captions(read_captions(twice), read_captions(references(tmp_path)))
    strange = predictions(tmp_path, {"zzz.png": "a dog"})
    with pytest.raises(EvaluationError, match=r"no image of .* has references"):
        pair_captions(read_captions(strange), read_captions(references(tmp_path)))


def test_json_keeps_the_contract(tmp_path: Path) -> None:
    code, out, _ = run(
        "--captions", predictions(tmp_path), "--references", references(tmp_path), "--json"
    )
    assert code == 0
    assert out.count("\n") == 1
    metrics = json.loads(out)["metrics"]
    assert {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"} <= set(metrics)
    usual = evaluate_captions(predictions(tmp_path), references(tmp_path))
    assert metrics.items() >= usual.scores.metrics.items()


def test_people_get_tables_and_each_image_its_line(tmp_path: Path) -> None:
    code, out, err = run(
        "--captions", predictions(tmp_path), "--references", references(tmp_path),
        "--per-image", tmp_path / "each.jsonl", "--no-meteor",
    )  # fmt: skip
    assert code == 0
    assert "METEOR" not in err
    usual = evaluate_captions(predictions(tmp_path), references(tmp_path))
    assert f"{100 * usual.scores.metrics['CIDEr']:.1f} (" in out
    rows = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == list(REFERENCES)
    assert rows[2]["references"] == REFERENCES["c.jpg"]
    mean = sum(row["CIDEr"] for row in rows) / 3
    assert mean == pytest.approx(usual.scores.metrics["CIDEr"])


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    code, out, err = run("--captions", predictions(tmp_path, {"a.jpg": "a dog"}),
                         "--references", references(tmp_path))  # fmt: skip
    assert (code, out) == (1, "")
    assert "2 of 3 images have no caption to score" in err
    assert "--allow-missing" in err
    code, _, err = run("--captions", tmp_path / "x")
    assert code == 2
    assert "--references" in err
    code, _, _ = run("--recall", "--captions", tmp_path / "x", "--references", tmp_path / "y")
    assert code == 2


def test_help_shows_an_example_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("--help")
    assert code == 0
    example = "vlre eval --captions predictions.jsonl --references references.json"
    assert example in out
    monkeypatch.chdir(tmp_path)
    references(tmp_path)
    write(tmp_path / "predictions.jsonl", FORMS["lines.jsonl"])
    assert run(*example.split()[2:])[0] == 0
