"""One file per library that can search rows; `Backend` says what the file must define."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

from retrieval_engine.index.grouping import RowSearch
from retrieval_engine.index.recipes import BACKENDS, Recipe
from retrieval_engine.index.vectors import StoredVectors


class Rows(RowSearch, Protocol):
    """Rows whose search can be made quicker or more thorough."""

    @property
    def effort(self) -> Mapping[str, int]:
        """The search setting in force, e.g. `{"nprobe": 16}`; empty where there is none."""

    def efforts(self) -> Iterator[Mapping[str, int]]:
        """Settings to try, from quick to thorough; one empty setting where there is none."""

    def set_effort(self, effort: Mapping[str, int]) -> None:
        """Put a setting in force."""


class Backend(Protocol):
    """The functions of a file in this folder."""

    def build(self, recipe: Recipe, vectors: StoredVectors, seed: int) -> tuple[Rows, str]:
        """All rows, indexed, and the recipe as the library was told it."""

    def save(self, rows: Rows, folder: Path) -> None:
        """Write the rows into a folder."""

    def open_rows(self, folder: Path, effort: Mapping[str, int]) -> Rows:
        """The rows in a folder."""

    def version(self) -> str:
        """Version of the library."""


def load(name: str) -> Backend:
    """The backend with this name.

    Raises:
        UsageError: there is none.
    """
    return cast(Backend, BACKENDS.load(name))
