"""`vlre index`, `vlre search` and the contact sheet, on a tiny real model."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.index.build_record import IndexManifest
from retrieval_engine.search import Hit, Hits
from retrieval_engine.search.contact_sheet import render
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.vector_store import clustered, write_store
from tests import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 30 pictures encoded into ./embeddings, and an index at the default place."""
    root = tmp_path_factory.mktemp("cli")
    (root / "pictures").mkdir()
    for i in range(30):
        (root / "pictures" / f"{i:02}.jpg").write_bytes(jpeg(i))
        (root / "pictures" / f"{i:02}.txt").write_text(f"a <b>dog</b> {i}\tand a cat\n")
    encode(
        f"folder:{root / 'pictures'}",
        root / "embeddings",
        encoder=str(tiny.save_blip(root / "model")),
        options=EncodeOptions(features=("itc",), worker_kind="serial"),
    )
    assert (
        run("index", "--store", root / "embeddings", "--index", default_index(root)).exit_code == 0
    )
    return root


def default_index(root: Path) -> Path:
    return root / "indices" / "built" / "default"


@pytest.fixture(autouse=True)
def _there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def run(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_index_reports_what_it_built(tmp_path: Path) -> None:
    [report] = lines(run("index", "--index", tmp_path / "i", "--recipe", "flat", "--json"))
    contract = ("index", "recipe", "items", "rows", "bytes", "seconds", "recall_at_10", "p50_ms")
    assert set(contract) <= set(report)
    assert (report["recipe"], report["items"], report["rows"]) == ("flat", 30, 30)
    assert report["recall_at_10"] == 1.0
    assert report["index"] == str(tmp_path / "i")
    result = run("index", "--index", tmp_path / "i")
    assert result.exit_code == 0
    assert re.search(r"recall@10 +1\.0000 of exact search, asked with 30 captions", result.stdout)
    assert "recipe flat-fp16: 30 rows" in result.stderr
    assert IndexManifest.read(tmp_path / "i").recipe == "flat-fp16"


def test_index_verifies(tmp_path: Path) -> None:
    assert run("index", "--index", tmp_path / "i").exit_code == 0
    result = run("index", "--index", tmp_path / "i", "--verify")
    assert (result.exit_code, result.stdout) == (
        0,
        f"{tmp_path / 'i'}: 30 items, every checksum agrees\n",
    )
    [verified] = lines(run("index", "--index", tmp_path / "i", "--verify", "--json"))
    assert verified["verified"] is True
    [file] = (tmp_path / "i").glob("data-*/vectors.faiss")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    result = run("index", "--index", tmp_path / "i", "--verify")
    assert result.exit_code == 1
    assert "is damaged" in result.stderr


def test_search_in_the_current_directory_needs_no_option() -> None:
    hits = lines(run("search", "a dog on grass", "--json"))
    assert [h["rank"] for h in hits] == list(range(1, 11))
    assert set(hits[0]) == {"rank", "score", "item_id", "uri", "captions", "meta"}
    number = int(str(hits[0]["item_id"])[:2])
    assert hits[0]["captions"] == [f"a <b>dog</b> {number}\tand a cat"]
    assert Path(str(hits[0]["uri"])).read_bytes() == jpeg(number)
    assert run("search", "a dog on grass", "--json").stderr == ""


def test_search_without_an_index_gives_the_same_and_says_so(tmp_path: Path) -> None:
    with_index = lines(run("search", "a dog", "-k", 5, "--json"))
    (default_index(Path())).rename(tmp_path / "away")
    try:
        result = run("search", "a dog", "-k", 5, "--json")
    finally:
        (tmp_path / "away").rename(default_index(Path()))
    without = lines(result)
    assert [h["item_id"] for h in without] == [h["item_id"] for h in with_index]
    assert "no index: comparing with all 30 images" in result.stderr


def test_piped_output_is_one_tab_separated_line_a_hit() -> None:
    result = run("search", "a dog", "-k", 3)
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    number = int(rows[0][2][:2])
    assert rows[0][3] == f"a <b>dog</b> {number} and a cat"
    assert rows[0][4].endswith(f"pictures/{number:02}.jpg")


def test_queries_from_stdin_one_a_line() -> None:
    hits = lines(run("search", "-", "-k", 2, "--json", stdin="a dog\n\n  a cat \n"))
    assert [h["query"] for h in hits] == ["a dog", "a dog", "a cat", "a cat"]
    assert [h["rank"] for h in hits] == [1, 2, 1, 2]
    alone = lines(run("search", "a cat", "-k", 2, "--json"))
    assert [h["item_id"] for h in hits[2:]] == [h["item_id"] for h in alone]
    piped = run("search", "-", "-k", 1, stdin="a dog\na cat\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in piped] == ["a dog", "a cat"]


def test_several_queries_are_answered_in_turn(tmp_path: Path) -> None:
    hits = lines(run("search", "a dog", "a cat", "-k", 2, "--json"))
    assert [h["query"] for h in hits] == ["a dog", "a dog", "a cat", "a cat"]
    sheet = tmp_path / "sheet.html"
    result = run("search", "a dog", "a cat", "-k", 2, "--html", sheet, "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    page = _Page(sheet.read_text(encoding="utf-8"))
    assert page.tags.count("section") == 2
    assert len(page.loads) == 4


def test_a_picture_finds_pictures_and_captions() -> None:
    assert lines(run("search", "--image", "pictures/11.jpg", "-k", 2, "--json"))[0]["item_id"] == (
        "11.jpg"
    )
    hits = lines(run("search", "--image", "pictures/11.jpg", "--captions", "-k", 4, "--json"))
    assert len(hits) == 4
    assert set(hits[0]) >= {"caption_id", "caption", "item_id", "uri", "captions", "meta"}
    assert str(hits[0]["caption"]).startswith("a <b>dog</b>")
    assert str(hits[0]["caption_id"]).startswith(str(hits[0]["item_id"]))


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["search"], 2, "nothing to search for"),
        (["search", "a dog", "--image", "pictures/01.jpg"], 2, "only one"),
        (["search", "a dog", "--captions"], 2, "it needs --image"),
        (["search", "a dog", "-k", "0"], 2, "k is 0; it must be at least 1"),
        (["search", ""], 2, "query 1 is empty"),
        (["search", "-"], 2, "no query on stdin"),
        (["search", "a dog", "--store", "nowhere"], 1, "no store at nowhere"),
        (["search", "a dog", "--index", "nowhere"], 1, "no index at nowhere"),
        (["search", "a dog", "--split", "dev"], 2, "no item has split 'dev'"),
        (["search", "--image", "nowhere.jpg"], 1, "cannot read nowhere.jpg"),
        (["search", "--image", "pictures/01.txt"], 1, "not a picture"),
        (["index", "--store", "nowhere"], 1, "no store at nowhere"),
        (["index", "--recipe", "hsnw"], 2, "no recipe 'hsnw'"),
        (["index", "--recipe", "factory:PQ32"], 2, "polysemous"),
        (["index", "--index", "pictures"], 2, "is no index"),
        (["index", "--feature", "tokens"], 1, "no image feature 'tokens'"),
        (["index", "--verify", "--index", "nowhere"], 1, "no index at nowhere"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(arguments: list[str], code: int, why: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert why in errors[0]
    assert "Traceback" not in result.stderr


def test_an_index_of_another_encoder_is_refused_when_asked_for(tmp_path: Path) -> None:
    other = write_store(tmp_path / "store", clustered(20, 16))
    result = run("search", "a dog", "--store", other.path, "--index", default_index(Path()))
    assert result.exit_code == 1
    assert "was made under encoder" in result.stderr


class _Page(HTMLParser):
    """Collects what a contact sheet would load and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_contact_sheet_holds_its_pictures_and_loads_nothing(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    result = run("search", "a dog", "-k", 4, "--html", sheet, "--json")
    hits = lines(result)
    assert f"contact sheet: {sheet}" in result.stderr
    page = _Page(sheet.read_text(encoding="utf-8"))
    assert len(page.loads) == 4
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    picture = Image.open(io.BytesIO(base64.b64decode(page.loads[0].partition(",")[2])))
    original = Image.open(io.BytesIO(jpeg(int(str(hits[0]["item_id"])[:2]))))
    assert picture.size == original.size
    assert not {"script", "link", "iframe"} & set(page.tags)
    for hit in hits:
        assert str(hit["item_id"]) in page.text
        assert f"{hit['score']:.3f}" in page.text
    # The captions hold tags; they are shown, not obeyed.
    assert page.text.count("a <b>dog</b>") == 4


def test_the_contact_sheet_of_a_picture_shows_the_picture(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    result = run("search", "--image", "pictures/05.jpg", "-k", 3, "--html", sheet)
    assert result.exit_code == 0
    page = _Page(sheet.read_text(encoding="utf-8"))
    assert len(page.loads) == 4
    assert page.loads[0] == page.loads[1]


def test_a_picture_that_is_gone_is_a_grey_tile_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"x" * 40)
    nasty = '"><script>alert(1)</script>'
    hits = [
        Hit(
            rank=rank,
            score=0.5,
            item_id=nasty,
            uri=uri,
            captions=(nasty,),
            meta={},
            source="s",
        )
        for rank, uri in ((1, str(tmp_path / "gone.jpg")), (2, str(tmp_path / "bad.jpg")))
    ]
    text = render([Hits(hits, nasty), Hits([], "none")])
    page = _Page(text)
    assert "script" not in page.tags
    assert page.loads == []
    assert page.text.count(nasty) == 5
    assert "gone.jpg: No such file or directory" in page.text
    assert "not a picture: 40 bytes" in page.text
    assert "nothing found" in page.text


@pytest.mark.parametrize("path", ["~/Picturse", "/nowhere/at/all", "./gone", "gone/"])
def test_a_folder_that_is_not_there_is_not_taken_for_words(path: str) -> None:
    result = run("search", "a dog", path)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f"Error: {path} is no folder"
