"""Caption runs side by side: one table, one page, the same pictures for all."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from retrieval_engine.cli import main
from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate.caption_scores import evaluate_captions
from retrieval_engine.evaluate.compare.caption_comparison import compare_captions
from retrieval_engine.evaluate.compare.pages import write_caption_page
from retrieval_engine.testing.images import jpeg

TOLD = {
    "a.jpg": ["a brown dog on the grass", "a dog stands on green grass"],
    "b.jpg": ["a red car in the street", "a car parked in a street at night"],
    "c.jpg": ["two birds in the blue sky", "birds fly in the sky"],
    "d.jpg": ["a house by the water", "a small house near the sea"],
}
BEFORE = {
    "a.jpg": "a cat on a sofa",
    "b.jpg": "a red car in the street",
    "c.jpg": "a bird a bird a bird",
    "d.jpg": "a house by the sea",
}
AFTER = {
    "a.jpg": "a brown dog on the grass",
    "b.jpg": "a red bus",
    "c.jpg": "two birds in the sky",
    "d.jpg": "a house by the sea",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    def write(name: str, captions: dict[str, str]) -> None:
        rows = [{"image": i, "caption": c, "uri": str(tmp_path / i)} for i, c in captions.items()]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("before.jsonl", BEFORE)
    write("after.jsonl", AFTER)
    told = [{"image": image, "caption": text} for image, texts in TOLD.items() for text in texts]
    (tmp_path / "references.json").write_text(json.dumps(told))
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        (tmp_path / name).write_bytes(jpeg(number))
    return tmp_path


def test_figures_are_those_of_eval(files: Path) -> None:
    runs = [f"old={files}/before.jsonl", str(files / "after.jsonl")]
    comparison = compare_captions(runs, files / "references.json")
    assert [row.name for row in comparison.rows] == ["old", "after"]
    for row, name in zip(comparison.rows, ("before", "after"), strict=True):
        report = evaluate_captions(files / f"{name}.jsonl", files / "references.json")
        assert row.scores.metrics == report.scores.metrics
        assert row.diversity == report.captions
    old, new = comparison.rows
    assert old.gain is None
    assert new.gain is not None
    gain, (low, high) = new.gain
    assert gain == pytest.approx(new.scores.metrics["CIDEr"] - old.scores.metrics["CIDEr"])
    assert low <= gain <= high
    assert old.diversity.repetition_rate > new.diversity.repetition_rate == 0
    better, worse = comparison.changes(5)
    assert [comparison.images[i] for i in worse] == ["b.jpg"]
    assert {comparison.images[i] for i in better} == {"a.jpg", "c.jpg"}
    assert new.to_json()["n_images"] == 4
    assert comparison.markdown().count("\n") == 3


def test_all_runs_are_scored_on_the_same_pictures(files: Path) -> None:
    lines = (files / "after.jsonl").read_text().splitlines(keepends=True)
    (files / "fewer.jsonl").write_text("".join(lines[:3]))
    runs = [str(files / "before.jsonl"), str(files / "fewer.jsonl")]
    with pytest.raises(EvaluationError, match="no caption to score"):
        compare_captions(runs, files / "references.json")
    comparison = compare_captions(runs, files / "references.json", allow_missing=True)
    assert list(comparison.images) == ["a.jpg", "b.jpg", "c.jpg"]
    assert comparison.left_out == 1
    assert all(len(row.captions) == 3 for row in comparison.rows)
    with pytest.raises(EvaluationError, match="several runs are called"):
        compare_captions([runs[0], runs[0]], files / "references.json")


def test_the_page_shows_every_run_and_escapes_what_it_shows(files: Path) -> None:
    pytest.importorskip("matplotlib")
    text = (files / "after.jsonl").read_text().replace("a red bus", "<script>alert(1)</script>")
    (files / "after.jsonl").write_text(text)
    runs = [str(files / "before.jsonl"), str(files / "after.jsonl")]
    comparison = compare_captions(runs, files / "references.json")
    page = write_caption_page(comparison, files / "out", title="before & after").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "before &amp; after" in page
    assert "http" not in page.replace("http-equiv", "")
    improved, damaged = page.split("<h2>")[2:4]
    assert "Most improved" in improved
    assert "a cat on a sofa" in improved
    assert "a brown dog on the grass" in improved
    assert "Most damaged" in damaged
    for references in TOLD.values():
        assert references[1] in page
    # a, b, c have a picture each time they are shown; d is not on disk and is named
    assert page.count("<div class='missing'>d.jpg</div>") >= 1
    assert page.count("data:image/jpeg") == 2 + 1 + 3
    assert np.isfinite([row.scores.metrics["CIDEr"] for row in comparison.rows]).all()


def test_the_command_compares_files_of_captions(files: Path) -> None:

    def run(*arguments: object) -> Result:
        runs = [f"old={files}/before.jsonl", f"new={files}/after.jsonl"]
        return CliRunner().invoke(main, ["compare", *runs, *map(str, arguments)])

    told = ["--references", files / "references.json"]
    result = run(*told, "--json")
    assert result.exit_code == 0, result.output
    old, new = (json.loads(line) for line in result.stdout.splitlines())
    assert (old["run"], new["run"]) == ("old", "new")
    assert new["gain"]["CIDEr"] == pytest.approx(new["metrics"]["CIDEr"] - old["metrics"]["CIDEr"])
    people = run(*told, "--out", files / "page")
    assert "new against old: CIDEr +" in people.stdout
    assert (files / "page" / "captions.html").is_file()
    assert run(*told, "--markdown").stdout.startswith("| run | B@1")
    refused = run(*told, "--latex")
    assert refused.exit_code == 2
    assert "captions have --json, --csv, --markdown" in refused.stderr
    rows = list(csv.DictReader(run(*told, "--csv").stdout.splitlines()))
    assert [row["run"] for row in rows] == ["old", "new"]
    assert float(rows[1]["CIDEr"]) == pytest.approx(new["metrics"]["CIDEr"], rel=1e-5)
    pictures = list(csv.DictReader((files / "page" / "captions.csv").open(newline="")))
    assert [(row["old"], row["new"]) for row in pictures] == [
        (BEFORE[row["image"]], AFTER[row["image"]]) for row in pictures
    ]
    assert [row["references"] for row in pictures] == [
        " | ".join(TOLD[r["image"]]) for r in pictures
    ]
