"""Searches with a filter: the answers are those without it, less what the filter leaves out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from retrieval_engine import Engine
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions
from retrieval_engine.errors import UsageError
from retrieval_engine.search import Hits
from retrieval_engine.store import describe, open_store
from retrieval_engine.testing.images import photo_with
from tests import tiny

CAMERAS = (("Apple", "iPhone 12"), ("Canon", "Canon EOS 5D"), ("", ""))
WHERE = "taken >= '2023-03' and camera like 'iPhone%' and folder = 'holiday'"
N = 24


def write(folder: Path, number: int) -> None:
    """Picture `number`: two folders, three cameras, and a month of 2023 each."""
    place = folder / ("holiday" if number % 2 else "work")
    place.mkdir(parents=True, exist_ok=True)
    make, model = CAMERAS[number % 3]
    taken = f"2023:{1 + number % 12:02}:15 10:00:00"
    picture = photo_with(number, make=make, model=model, taken=taken, size=(48, 32))
    (place / f"{number:02}.jpg").write_bytes(picture)
    (place / f"{number:02}.txt").write_text(f"picture {number}\n")


def expected(number: int) -> bool:
    return number % 2 == 1 and number % 3 == 0 and number % 12 >= 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("where")
    for number in range(N):
        write(place / "p", number)
    model = str(tiny.save_blip(place / "model"))
    engine = Engine(store=place / "s", index=place / "i", model=model, device="cpu")
    engine.add(
        f"folder:{place / 'p'}",
        options=EncodeOptions(features=("itc", "tokens"), worker_kind="serial"),
    )
    engine.build_index("factory:IVF3,Flat")
    return place


@pytest.fixture(scope="module")
def engine(place: Path) -> Engine:
    return Engine(store=place / "s", index=place / "i", device="cpu")


@pytest.fixture(scope="module")
def plain(place: Path) -> Engine:
    """Without an index."""
    return Engine(store=place / "s", device="cpu")


def numbers(hits: Hits) -> list[int]:
    return [int(Path(hit.item_id).stem) for hit in hits]


@pytest.mark.parametrize(
    "ask",
    [
        lambda e, **how: e.search("a dog", N, **how),
        lambda e, **how: e.search(["a dog", "a cat"], N, **how)[1],
        lambda e, **how: e.search({"a dog": 2, "grass": -1}, N, **how),
        lambda e, **how: e.search(e["holiday/09.jpg"].uri, N, **how),
        lambda e, **how: e.search("a dog", N, rerank=N, **how),
        lambda e, **how: e.search(e["work/08.jpg"].uri, N, captions=True, **how),
        lambda e, **how: e.similar("work/08.jpg", N, **how),
    ],
    ids=["words", "several", "mix", "image", "rerank", "captions", "similar"],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_the_answer_is_that_without_it_less_what_it_leaves_out(
    ask: Callable[..., Hits], indexed: bool, engine: Engine, plain: Engine
) -> None:
    asked = engine if indexed else plain
    every, some = ask(plain), ask(asked, where=WHERE)
    assert numbers(some) == [n for n in numbers(every) if expected(n)]
    scores = {hit.item_id: hit.score for hit in every}
    assert some.note == ""
    for rank, hit in enumerate(some, start=1):
        assert hit.rank == rank
        assert hit.score == pytest.approx(scores[hit.item_id], abs=1e-5)


def test_pages_and_short_lists(engine: Engine) -> None:
    whole = numbers(engine.search("a dog", N, where=WHERE))
    assert len(whole) == sum(map(expected, range(N))) == 4
    assert numbers(engine.search("a dog", 2, where=WHERE)) == whole[:2]
    beyond = engine.search("a dog", 2, offset=2, where=WHERE)
    assert numbers(beyond) == whole[2:]
    assert [hit.rank for hit in beyond] == [3, 4]
    past = engine.search("a dog", 2, offset=5, where=WHERE)
    assert (list(past), past.note) == ([], "")


def test_without_near_duplicates(engine: Engine) -> None:
    found = numbers(engine.search("a dog", N, distinct=True, where=WHERE))
    assert found
    assert found[0] == numbers(engine.search("a dog", 1, where=WHERE))[0]
    assert all(map(expected, found))


def test_nothing_left_says_what_emptied_it(engine: Engine) -> None:
    for how in ({}, {"rerank": 10}, {"distinct": True}):
        hits = engine.search("a dog", 5, where=f"{WHERE} and width > 4000", **how)
        assert list(hits) == []
        assert "width > 4000 holds for none" in hits.note
        assert "width > 4000 holds for none" in repr(hits)
    picture = engine["work/08.jpg"].uri
    hits = engine.search(picture, 5, captions=True, where="camera = 'Leica'")
    assert "camera = 'Leica' holds for none" in hits.note


def test_a_filter_covers_what_is_newer_than_the_index_and_not_what_is_gone(place: Path) -> None:
    folder, store = place / "q", place / "t"
    for number in range(N):
        write(folder, number)
    how: Any = {"store": store, "index": place / "j", "device": "cpu"}
    Engine(**how, model=str(place / "model")).add(f"folder:{folder}")
    Engine(**how).build_index("flat")
    write(folder, 33)
    (folder / "holiday" / "09.jpg").unlink()
    engine = Engine(**how)
    engine.add(f"folder:{folder}")
    found = set(numbers(engine.search("a dog", N, where=WHERE)))
    assert found == {n for n in (*range(N), 33) if expected(n) and n != 9}
    assert numbers(engine.search("a dog", 1, where="id = 'holiday/33.jpg'")) == [33]
    engine.update_index()
    assert set(numbers(engine.search("a dog", N, where=WHERE))) == found
    assert not engine.searcher().notes


def test_metadata_of_callers_and_of_scenes(place: Path) -> None:
    engine = Engine(store=place / "u", model=str(place / "model"), device="cpu")
    pictures = [str(place / "p" / "work" / f"{n:02}.jpg") for n in (0, 2, 4)]
    engine.add(pictures, meta=[{"stars": 5}, {"stars": 3, "tags": ["red"]}, {}])
    engine.add("scenes:20?seed=7&size=32")
    assert numbers(engine.search("a dog", where="stars > 3")) == [0]
    assert numbers(engine.search("a dog", where="tags contains 'red'")) == [2]
    drawn = engine.search("a dog", 20, where="subjects contains 'dog'")
    lines = [text for _, text in describe(open_store(place / "u")).lines()]
    assert any(text.startswith("struct(…), ") for text in lines)
    assert max(map(len, lines)) < 120
    dogs = [entry.id for entry in engine if "dog" in str(entry.meta.get("subjects"))]
    assert sorted(hit.item_id for hit in drawn) == sorted(dogs)
    assert dogs


def test_the_command_line(place: Path) -> None:
    def run(*words: object) -> Any:
        options = ("--store", place / "s", "--index", place / "i", "--device", "cpu")
        return CliRunner().invoke(main, [str(word) for word in (*words, *options)])

    result = run("search", "a dog", "--json", "--where", WHERE)
    assert result.exit_code == 0, result.output
    ids = {json.loads(line)["item_id"] for line in result.stdout.splitlines()}
    assert ids == {f"holiday/{n:02}.jpg" for n in range(N) if expected(n)}
    nothing = run("search", "a dog", "--where", "width > 9000")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "the filter leaves none of 24 items: width > 9000 holds for none" in nothing.stderr
    wrong = run("search", "a dog", "--where", "wide > 9000")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("Error: --where: no column 'wide'; known: id, source,")
    for blank in ("", " "):  # as of a variable that is not set
        unset = run("search", "a dog", "--where", blank)
        assert (unset.exit_code, unset.stdout) == (2, "")
        assert unset.stderr.startswith("Error: --where is empty\n")
    shown = CliRunner().invoke(main, ["store", "info", "--store", str(place / "s")])
    assert "  camera:    varchar, 16, e.g. " in shown.stdout
    told = CliRunner().invoke(main, ["store", "info", "--store", str(place / "s"), "--json"])
    columns = {column["name"]: column for column in json.loads(told.stdout)["columns"]}
    assert columns["taken"]["type"] == "timestamp"
    assert columns["taken"]["count"] == N


def test_a_filter_that_is_no_text_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="`where` is empty"):
        engine.search("a dog", where=" ")
