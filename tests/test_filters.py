"""Conditions over items: what can be asked, what is said when it cannot, and what no stranger can do."""

import json
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from retrieval_engine.errors import UsageError
from retrieval_engine.store import filters
from retrieval_engine.store.filters import COLUMNS, ItemFilter

META: list[dict[str, Any]] = [
    {"subjects": ["dog", "cat"], "n": 1, "counts": {"dog": 2}, "Rating": 5, "width": "w"},
    {"subjects": ["cat"], "n": -2, "Rating": "good", "x y": "é", "~/": True},
    {},
    {"subjects": [], "n": None, "dog": {"Name": "a", "name": "b"}},
]


def table(copies: int = 1) -> pa.Table:
    taken = [datetime(2023, 5, 1), datetime(2022, 1, 1, 10, 30), None, datetime(2023, 6, 9)]
    rows = {
        "id": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        "source": ["folder:/p", "folder:/p", "scenes:7", "folder:/p"],
        "uri": ["/p/a.jpg", "/p/b.jpg", "scenes:7/1", "/p/d.jpg"],
        "split": ["train", "train", "", "test"],
        "folder": ["holiday", "work", None, "holiday"],
        "taken": pa.array(taken, pa.timestamp("us")),
        "camera": ["iPhone 12", "Canon EOS 5D", None, "iPhone 14 Pro"],
        "latitude": [47.5, None, None, -33.9],
        "width": pa.array([4032, 640, 64, 3000], pa.int32()),
        "size_bytes": [10, -1, -1, 5],
        "bytes": pa.array([10, 7, None, 5], pa.int64()),
        "meta": [json.dumps(meta) for meta in META],
    }
    return pa.concat_tables([pa.table(rows)] * copies)


@pytest.fixture(scope="module")
def items() -> ItemFilter:
    return ItemFilter(table())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("taken >= '2023-05'", "ad"),
        ("taken < '2023'", "b"),
        ("taken between '2022' and '2023-05-31 12:00'", "ab"),
        ("year(taken) = 2023 and month(taken) in (5, 7)", "a"),
        ("taken is null", "c"),
        ("camera like 'iPhone%'", "ad"),
        ("camera ilike '%canon%' or camera is null", "bc"),
        ("not camera = 'iPhone 12'", "bd"),
        ("CAMERA contains 'Pro'", "d"),
        ("'dog' in subjects", "a"),
        ("subjects contains 'cat' and not subjects CONTAINS 'dog'", "b"),
        ("len(subjects) = 0", "d"),
        ("counts.dog > 1", "a"),
        ("n < 0", "b"),
        ("rating = '5'", "a"),
        ("meta.width = 'w' and width > 4000", "a"),
        ('"x y" = \'é\' or meta."~/"', "b"),
        ("latitude between 40 and 50", "a"),
        ("size_bytes >= 7", "ab"),
        ("split = 'test' or source like 'scenes:%'", "cd"),
        ("taken >= '2023-05' and camera like 'iPhone%' and folder = 'holiday'", "ad"),
        ("id = 'a.jpg' -- what follows is a remark", "a"),
        ("width::double / 2 > 1999.5", "a"),
        ("1 = 0 or width", "abcd"),
    ],
)
def test_what_people_ask(items: ItemFilter, where: str, expected: str) -> None:
    mask = items.mask(where)
    assert "".join("abcd"[i] for i in np.flatnonzero(mask)) == expected
    assert not mask.flags.writeable


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("wdth > 3", "no column 'wdth'; known: id, source, uri, split, folder, taken, camera,"),
        ("wdth > 3", "Rating, counts, dog, n, subjects, width, x y"),
        ('camera = "iPhone 12"', "no column 'iPhone 12'"),
        ("width > 'abc'", "width > 'abc': column width is integer: Could not convert"),
        ("camera like 'i%' and camera > 3", "camera > 3: column camera is varchar"),
        ("taken > '2023-13'", "taken > '2023-13': column taken is timestamp"),
        ("taken like '2023%'", "taken like '2023%': column taken is timestamp"),
        ("subjects = 'dog'", "column subjects is varchar[]: Type VARCHAR with value 'dog'"),
        ("cast(camera as int) = 3", "Could not convert string 'iPhone 12'"),
        ("camera", "cannot be evaluated: Could not convert string"),
        ("camera is", "is no condition: syntax error"),
        ("camera ~ '['", "missing ]"),
        ("", "`where` is empty"),
        (" \n", "`where` is empty"),
    ],
)
def test_what_cannot_be_asked_is_explained(items: ItemFilter, where: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        items.mask(where)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


HOSTILE = [
    "select 1",
    "1 = 1; drop table items",
    "1 = 1; select * from items",
    "true) union all (select true",
    "true limit 1",
    "true order by id",
    "true group by id",
    "(select true)",
    "exists (select * from read_csv('/etc/passwd'))",
    "id in (select content from read_text('/etc/passwd'))",
    "id = any (select id from items)",
    "id = read_text('/etc/passwd')",
    "id = (from '/etc/passwd')",
    "getvariable('x') = 1",
    "current_setting('memory_limit') = ''",
    "set_config('threads', 4)",
    "repeat(id, 1000000000) = ''",
    "lpad(id, 2000000000, 'x') = ''",
    "len(range(1, 10000000000)) > 0",
    "list_filter(subjects, lambda x: x = 'dog')",
    "id::int[100000000] is null",
    "id::json is null",
    "random() > .5",
    "sleep_ms(100000) is null",
    "write_log('x') is null",
    "nextval('x') > 0",
    "error('x')",
    "count(*) > 1",
    "row_number() over () > 1",
    "unnest(subjects) = 'dog'",
    "columns('.*') is null",
    "* is null",
    "rowid = 1",
    "items.id = 'a.jpg'",
    "meta is null",
    "main.contains(id, 'a')",
    "system.main.lower(id) = 'a'",
    "? = 1",
    "$1 = 1",
    "$$x$$; attach '/tmp/x.db'",
    "id = 'a\0b'",
    "id = 'a' /* open",
    "id collate nocase = 'a'",
    "not " * 400 + "true",
    "-" * 1900 + "1 = 1",
    "id = '" + "a" * 3000 + "'",
]


@pytest.mark.parametrize("where", HOSTILE, ids=range(len(HOSTILE)))
def test_a_stranger_can_ask_for_nothing_but_a_condition(items: ItemFilter, where: str) -> None:
    with pytest.raises(UsageError):
        items.mask(where)
    assert items.mask("true").all()


def test_duckdb_itself_reaches_no_file_and_no_setting(tmp_path: Path) -> None:
    items = ItemFilter(table())
    items.mask("true")
    database = items._duckdb
    assert database is not None
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM '{secret}'",
        f"COPY (SELECT 1) TO '{tmp_path / 'made'}'",
        f"ATTACH '{tmp_path / 'made.db'}'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '100GB'",
        "SET threads = 64",
    ):
        with pytest.raises(duckdb.Error):
            database.execute(sql).fetchall()
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_filter_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "SECONDS", 0.1)
    items = ItemFilter(table(copies=20_000))
    slow = " and ".join(f"not regexp_matches(uri || id, '(a|b|c)*{i}z')" for i in range(40))
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r"took longer than 0\.1 s"):
        items.mask(slow)
    assert time.monotonic() - begin < 5
    monkeypatch.undo()
    assert items.mask("width > 3000").sum() == 20_000


def test_what_is_known_does_not_wait_for_a_slow_filter(items: ItemFilter) -> None:
    known = items.mask("width > 3000")
    with items._turn:  # as if another thread's filter ran
        found: list[Any] = []
        other = threading.Thread(target=lambda: found.append(items.mask("width > 3000")))
        other.start()
        other.join(5)
    assert found[0] is known


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("camera = 'X'", "none of 4 items: camera = 'X' holds for none"),
        ("width > 1 and (folder = 'q' or n > 9)", "folder = 'q' or n > 9 holds for none"),
        ("height > 1 and width > 1", "height > 1 holds for none (height is not known of any)"),
        (
            "folder = 'holiday' and subjects contains 'cat' and width < 1000",
            "its parts leave: folder = 'holiday' 2, subjects contains 'cat' 2, width < 1000 2",
        ),
        ("width > 0", ""),
    ],
)
def test_an_empty_answer_says_what_emptied_it(items: ItemFilter, where: str, said: str) -> None:
    assert said in items.emptied_by(where)


def test_only_what_is_searched_counts() -> None:
    items = ItemFilter(table(), np.array([True, True, False, False]))
    assert items.mask("folder = 'holiday'").tolist() == [True, False, False, False]
    assert "none of 2 items" in items.emptied_by("camera like '%Pro'")


def test_the_columns_there_are(items: ItemFilter) -> None:
    found = {column.name: column for column in items.columns()}
    assert list(found)[: len(COLUMNS)] == list(COLUMNS)
    assert (found["taken"].type, found["taken"].count) == ("timestamp", 3)
    assert (found["camera"].count, found["camera"].example) == (3, "iPhone 12")
    assert (found["height"].type, found["height"].count, found["height"].example) == (
        "integer",
        0,
        "",
    )
    assert (found["subjects"].type, found["subjects"].count) == ("varchar[]", 3)
    assert (found["meta.width"].type, found["counts"].type) == ("varchar", "struct(dog bigint)")
    for name in found:  # each can be asked for by the name it has here
        asked = name if name.startswith("meta.") else f'"{name}"'
        assert items.mask(f"{asked} is not null").sum() == found[name].count


def test_a_table_without_metadata() -> None:
    items = ItemFilter(pa.table({"id": ["a"], "meta": ["{}"]}))
    assert [column.name for column in items.columns()] == list(COLUMNS)
    assert items.mask("id = 'a' and width is null").tolist() == [True]


def test_a_table_of_nothing() -> None:
    items = ItemFilter(table().slice(0, 0))
    assert items.mask("width > 3").shape == (0,)
    assert {column.count for column in items.columns()} == {0}
