"""Every script of examples/ runs as it stands, on drawn scenes, and says what it promises."""

import json
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import retrieval_engine

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(
    name: str,
    where: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *more: str,
) -> str:
    """What a script prints, called in an empty folder without arguments."""
    monkeypatch.chdir(where)
    monkeypatch.setattr(sys, "argv", [name, *more])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert [path.name for path in where.iterdir()] == ["runs"]
    return capsys.readouterr().out


def check_formats(folder: Path) -> None:
    """Every file that was written is named in docs/formats.md."""
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w-]+\.\w+", text))
    written = {path.name for path in folder.rglob("*") if path.is_file()}
    assert written
    assert not written - named


@pytest.mark.whole
def test_search_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("search_photos", tmp_path, monkeypatch, capsys)
    assert "60 pictures: 60 encoded now, 0 before" in told
    assert told.count("5 hits of 'a dog on grass'") == 2
    assert "recall@10 1.000 of exact search" in told
    assert "data:image/" in (tmp_path / "runs/search/sheet.html").read_text()
    for name in ("store", "index"):
        check_formats(tmp_path / "runs/search" / name)


@pytest.mark.whole
def test_publishable_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("publishable_recall", tmp_path, monkeypatch, capsys)
    assert len(re.findall(r"R@\d+ +\d+\.\d  \(95 % of", told)) == 12
    assert "0 of 60 images are in vlre-tiny/training.json" in told
    assert "had it been trained on this store: 60 of 60 images" in told
    certificate = json.loads((tmp_path / "runs/recall/metrics.json").read_text())
    assert set(certificate["results"]) == {"itc", "itm+itc"}
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    told_of = re.findall(r"^\| `(\w+)` \|", concepts.partition("## Certificate")[2], re.MULTILINE)
    assert told_of == [name for name in certificate if name != "format"]


@pytest.mark.whole
def test_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("heads", tmp_path, monkeypatch, capsys)
    assert "linear: 48 images to train on, 12 to choose" in told
    assert "40 images that no head has seen (60 left out)" in told
    assert re.search(r"^\| ITC \|.*\n\| linear \|.*\n\| mlp \|", told, re.MULTILINE)
    assert "mlp against itc: " in told
    check_formats(tmp_path / "runs/heads/mlp")


@pytest.mark.whole
def test_lora_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("lora_captions", tmp_path, monkeypatch, capsys)
    losses = re.search(r"captions ([\d.]+) -> ([\d.]+)", told)
    assert losses
    assert float(losses[2]) < float(losses[1])
    assert re.search(r"^\| before \|.*\n\| after \|", told, re.MULTILINE)
    check_formats(tmp_path / "runs/lora/adapter")


@pytest.mark.whole
def test_filters_and_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("filters_and_duplicates", tmp_path, monkeypatch, capsys)
    # The first two are .001 apart: a CPU that is fast at bfloat16 may round them the other way.
    assert re.search(r"5 hits of 'a dog'\n   1  0\.56\d\d  (2023/015|2022/004)\.jpg\n", told)
    assert "iPhone 12" in told
    assert re.search(r"without a date: \S+-sent.jpg \S+-sent.jpg \S+-sent.jpg\n", told)
    assert "3 groups; 3 of 27 pictures are copies of a better one" in told
    assert "keep 2022/000.jpg (128x128): 2022/000-sent.jpg" in told


def test_examples_are_short_and_all_of_them_are_run() -> None:
    tested = re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8"))
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in scripts] == sorted(tested)
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 80
        assert f"python examples/{path.name}\n" in text or f"{path.name}  " in text


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == project["version"] == retrieval_engine.__version__
    assert (cited["license"], cited["type"]) == (project["license"], "software")
    assert {"message", "title"} <= set(cited)
    assert cited["authors"] == [{"name": "The vlre authors"}]


def test_issue_templates_ask_for_what_helps() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yml")}
    assert sorted(forms) == ["bug", "feature"]
    for form in forms.values():
        assert {"name", "description", "body"} <= set(form)
        assert all(part["type"] in ("markdown", "textarea", "input") for part in form["body"])
    assert "vlre doctor" in json.dumps(forms["bug"])
