"""Comparisons: one gallery for all runs, tables in every form, a report that loads nothing."""

import base64
import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from retrieval_engine.cli import main
from retrieval_engine.encoding.projected import leak_free
from retrieval_engine.errors import EvaluationError, TrainingError, UsageError
from retrieval_engine.evaluate.compare import compare, open_runs, write_report
from retrieval_engine.evaluate.store_recall import gallery_recall
from retrieval_engine.evaluate.study import HeadStudy, compare_heads, study_heads
from retrieval_engine.metrics.bootstrap import Bootstrap
from retrieval_engine.metrics.intervals import difference_interval
from retrieval_engine.store import open_store
from retrieval_engine.train.head import HeadRecipe, train_head, untrained_head
from tests.paired_vectors import paired_store
from tests.tiny import save_blip

PLAN = HeadRecipe(epochs=2, dim=8, train_size=80, val_size=30, refit_below=0)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    store = paired_store(root / "store", 150, (16, 16))
    train_head(store, root / "a", PLAN)
    train_head(store, root / "b", replace(PLAN, seed=1))
    untrained_head(store, root / "floor", PLAN)
    return root


def runs_of(place: Path, *names: str) -> list[str]:
    return [name if name == "itc" else str(place / name) for name in names]


def test_every_run_is_measured_on_what_no_head_has_seen(place: Path) -> None:
    found = compare(open_runs(runs_of(place, "floor", "itc", "a", "b"), place / "store"))
    seen = {i for n in "ab" for i in found.runs["ab".index(n) + 2].store.saved.trained_on().ids}  # type: ignore[union-attr]
    every = list(open_store(place / "store").gallery().ids)
    expected = [i for i in every if i not in seen]
    assert 0 < len(expected) < 40
    for gallery in found.galleries.values():
        assert list(gallery.ids) == expected
    assert {row.images for row in found.rows} == {len(expected)}
    assert found.left_out == len(seen)
    a = found.rows[2]
    report = gallery_recall(found.galleries["a"])
    assert a.mean == report.mean_recall
    assert a.recall["text_to_image"]["R@5"] == report.text_to_image.recall[5]
    assert a.mean > found.rows[0].mean + 20
    assert a.gain is not None
    assert a.gain[0] == pytest.approx(a.mean - found.rows[0].mean)
    assert a.gain[1][0] < a.gain[0] < a.gain[1][1]
    assert found.rows[0].gain is None


def test_paired_differences_cancel_what_is_common(place: Path) -> None:
    """A run against itself differs by nothing at all; unpaired intervals would not say so."""
    gallery = open_store(place / "store").gallery()
    report = gallery_recall(gallery)
    assert difference_interval(report, report) == (0, 0)
    rest, _ = leak_free(gallery, open_runs(runs_of(place, "a"), place / "store")[0].store.saved)  # type: ignore[union-attr]
    smaller = gallery_recall(rest)
    low, high = difference_interval(smaller, smaller, Bootstrap(draws=50))
    assert low == high == 0


def test_tables_in_every_form(place: Path) -> None:
    arguments = ["compare", *runs_of(place, "floor", "a"), "--store", place / "store"]
    code, out, err = run(*arguments, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["run"] for row in rows] == ["floor", "a"]
    assert rows[1]["interval"]["image_to_text"]["R@1"][0] <= rows[1]["image_to_text"]["R@1"]
    assert "left out, for every run" in err
    table = list(csv.DictReader(io.StringIO(run(*arguments, "--csv")[1])))
    assert float(table[1]["mean_recall"]) == pytest.approx(rows[1]["mean_recall"], abs=1e-4)
    low, high = (float(table[1][f"text_to_image R@10 {end}"]) for end in ("low", "high"))
    assert [low, high] == pytest.approx(rows[1]["interval"]["text_to_image"]["R@10"], abs=1e-4)
    markdown = run(*arguments, "--markdown")[1].splitlines()
    assert markdown[0].startswith("| run | I→T R@1 |")
    assert f"{rows[1]['mean_recall']:.1f} |" in markdown[3]
    latex = run(*arguments, "--latex")[1]
    assert r"\textbf{" + f"{rows[1]['mean_recall']:.1f}" + "}" in latex
    assert latex.count(r"\\") == 4
    people = run(*arguments)[1]
    assert "a against floor: mean +" in people


def test_saved_figures_stand_beside_measured_ones(place: Path, tmp_path: Path) -> None:
    evaluated = ["eval", "--recall", "--store", place / "store", "--out", tmp_path / "c.json"]
    (tmp_path / "e.json").write_text(run(*evaluated, "--json")[1])
    names = [*runs_of(place, "itc"), *(str(tmp_path / n) for n in ("c.json", "e.json"))]
    found = compare(open_runs(names, place / "store"))
    assert found.rows[0].recall == found.rows[1].recall == found.rows[2].recall
    assert found.rows[0].interval == found.rows[2].interval
    assert "figures from" in found.remarks[0]


def test_runs_that_cannot_be_compared(place: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is no head, no store and no file of figures"):
        open_runs([str(tmp_path)], place / "store")
    with pytest.raises(EvaluationError, match="several runs are called 'a'"):
        open_runs(runs_of(place, "a", "a"), place / "store")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(EvaluationError, match="holds no figures of recall"):
        open_runs([str(tmp_path / "x.json")], place / "store")
    other = paired_store(tmp_path / "other", 20, (16, 16), seed=5)
    with pytest.raises(EvaluationError, match="20 images, a 150, and they are not the same"):
        compare(open_runs([*runs_of(place, "a"), str(other.path)], place / "store"))
    everything = replace(PLAN, train_size=0, val_size=30)
    train_head(open_store(place / "store"), tmp_path / "all", everything)
    with pytest.raises(EvaluationError, match="every one of the 150 images was seen"):
        compare(open_runs([str(tmp_path / "all")], place / "store"))


def check_page(page: Path, pictures: int) -> str:
    """The page holds its pictures and asks the network for nothing."""
    html = page.read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", html)
    assert not re.search(r"<script|@import|url\(|https?://", html)
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(found) == pictures
    for data in found:
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        image.load()
        assert image.convert("RGB").getcolors(20) is None, "there are more colours"
    return html


def test_the_report_of_vectors_without_pictures(place: Path, tmp_path: Path) -> None:
    names = [f"<b>&={place / 'a'}", *runs_of(place, "b", "itc")]
    found = compare(open_runs(names, place / "store"))
    written = write_report(found, tmp_path / "r", title="a < b")
    html = check_page(written.page, 3 + 6)
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html
    assert (tmp_path / "r/comparison.csv").read_text() == found.csv()
    assert all(path.stat().st_size > 3000 for path in written.plots)


@pytest.mark.whole
def test_the_whole_study(tmp_path: Path) -> None:
    checkpoint = save_blip(tmp_path / "model")
    plan = HeadStudy(source="scenes:110?seed=3", model=str(checkpoint), train_size=60, test_size=30)
    found, page = study_heads(plan, tmp_path / "study")
    assert [row.name for row in found.rows] == [
        "ITC as encoded",
        "untrained projection",
        "notebook linear",
        'notebook "MLP"',
        "linear, first caption",
        "linear",
        "MLP",
    ]
    assert {row.images for row in found.rows} == {39}
    html = check_page(page, 3 + 6)
    assert "framed" in html
    with pytest.raises(TrainingError, match="110 images are too few for 1,000"):
        study_heads(replace(plan, test_size=1000), tmp_path / "study")
    with pytest.raises(UsageError, match="10 to test on"):
        replace(plan, test_size=1)


@pytest.mark.whole
def test_a_study_uses_the_splits_of_its_source(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for split, n in (("train", 20), ("val", 6), ("test", 8)):
        folder = root / split
        folder.mkdir(parents=True)
        for i in range(n):
            number = {"train": 0, "val": 20, "test": 26}[split] + i
            Image.new("RGB", (16, 16), (7 * number, 255 - 7 * number, number)).save(
                folder / f"{number}.png"
            )
    captions = root / "captions.jsonl"
    lines = [
        {
            "file_name": str(p.relative_to(root)),
            "caption": f"picture {p.stem}",
            "split": p.parent.name,
        }
        for p in sorted(root.rglob("*.png"))
    ]
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoint = save_blip(tmp_path / "model")
    plan = HeadStudy(source=f"folder:{root}", model=str(checkpoint), test_size=10)
    found = compare_heads(plan, tmp_path / "study")
    assert {row.images for row in found.rows} == {8}
