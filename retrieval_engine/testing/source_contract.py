"""What every source promises, whatever its data look like."""

import hashlib
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retrieval_engine.errors import UsageError
from retrieval_engine.records import Item
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.testing.images import jpeg


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One item that a fixture holds.

    Attributes:
        data: bytes of its image.
        captions: texts, in order.
        split: usual name, or empty.
    """

    data: bytes
    captions: tuple[str, ...] = ()
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """Data of one format on disk, and what must come out of it.

    Attributes:
        spec: name of the source, e.g. `folder:/tmp/x`.
        items: what it holds, by item id, in the source's order.
        options: more options in the form `key=value&…`, always given.
    """

    spec: str
    items: Mapping[str, Expected]
    options: str = ""

    def named(self, *more: str) -> str:
        """The source's name with these options besides its own."""
        options = "&".join(part for part in (self.options, *more) if part)
        return f"{self.spec}?{options}" if options else self.spec


def five_items(*names: str, captions: int = 5) -> dict[str, Expected]:
    """Items with these ids: different JPEGs, captions with commas and quotes, three splits."""
    splits = ("train", "train", "val", "test", "train")
    return {
        name: Expected(
            data=jpeg(seed),
            captions=tuple(f'A "{name}" on the grass, seen {k} times' for k in range(captions)),
            split=splits[seed % len(splits)],
        )
        for seed, name in enumerate(names)
    }


class SourceContract(ABC):
    """Subclass it and build a small fixture in the real format."""

    @abstractmethod
    def build(self, folder: Path) -> Fixture:
        """Write the data into an empty folder."""

    @pytest.fixture
    def fixture(self, tmp_path: Path) -> Fixture:
        return self.build(tmp_path)

    def test_gives_every_item_whole(self, fixture: Fixture) -> None:
        items = list(open_source(fixture.named()).items())

        assert [item.id for item in items] == list(fixture.items)
        for item in items:
            expected = fixture.items[item.id]
            assert tuple(caption.text for caption in item.captions) == expected.captions
            assert item.split == expected.split
            assert read_bytes(item.uri) == expected.data

    def test_ids_are_unique(self, fixture: Fixture) -> None:
        items = list(open_source(fixture.named()).items())
        captions = [caption.id for item in items for caption in item.captions]

        assert len({item.id for item in items}) == len(items) > 1
        assert len(set(captions)) == len(captions)

    def test_order_and_count_are_the_same_each_time(self, fixture: Fixture) -> None:
        source = open_source(fixture.named())
        first = list(source.items())

        assert list(source.items()) == first
        assert list(open_source(fixture.named()).items()) == first
        assert source.count() in {None, len(first)}

    def test_file_size_and_time_are_the_files(self, fixture: Fixture) -> None:
        for item in open_source(fixture.named()).items():
            if item.size_bytes >= 0:
                assert item.size_bytes == Path(item.uri).stat().st_size
                assert item.mtime_ns == Path(item.uri).stat().st_mtime_ns

    def test_another_process_reads_the_same_bytes(self, fixture: Fixture) -> None:
        items = list(open_source(fixture.named()).items())
        program = (
            "import hashlib, sys\n"
            "from retrieval_engine.sources import read_bytes\n"
            "for uri in sys.argv[1:]: print(hashlib.sha256(read_bytes(uri)).hexdigest())\n"
        )
        command = [sys.executable, "-c", program, *(item.uri for item in items)]
        there = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
        )

        assert there.stdout.split() == [_sha256(read_bytes(item.uri)) for item in items]

    def test_unknown_option_is_refused_with_those_allowed(self, fixture: Fixture) -> None:
        with pytest.raises(UsageError, match="no option 'colour'; allowed: "):
            open_source(fixture.named("colour=red"))

    def test_each_split_is_a_part_under_the_same_name(self, fixture: Fixture) -> None:
        whole: Any = open_source(fixture.named())
        assert not whole.is_partial
        items = list(whole.items())
        parts: list[Item] = []
        for split in sorted({item.split for item in items} - {""}):
            part: Any = open_source(fixture.named(f"split={split}"))
            assert part.is_partial
            assert part.name == whole.name
            found = list(part.items())
            assert found == [item for item in items if item.split == split]
            assert part.count() in {None, len(found)}
            parts += found
        if any(item.split for item in items):
            assert len(parts) == len(items)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
