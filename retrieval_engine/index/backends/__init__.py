"""One file per library that can search rows; `Backend` says what the file must define."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol, TypeVar, cast

from retrieval_engine.errors import UsageError
from retrieval_engine.index.build_record import IndexManifest
from retrieval_engine.index.grouping import RowSearch
from retrieval_engine.index.recipes import BACKENDS, Recipe
from retrieval_engine.index.vectors import StoredVectors
from retrieval_engine.progress import Progress, Silent


class Rows(RowSearch, Protocol):
    """Rows whose search can be made quicker or more thorough."""

    @property
    def effort(self) -> Mapping[str, int]:
        """The search setting in force, e.g. `{"nprobe": 16}`; empty where there is none."""

    def efforts(self) -> Iterator[Mapping[str, int]]:
        """Settings to try, from quick to thorough; one empty setting where there is none."""

    def set_effort(self, effort: Mapping[str, int]) -> None:
        """Put a setting in force."""

    # Rows whose search can go wider under a filter have this as well:
    #
    # def filter_efforts(self) -> Iterator[Mapping[str, int]]:
    #     """The setting in force as it may be with filters, from quick to thorough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How an index is built.

    Attributes:
        seed: of samples.
        device: where large products may be made: `cpu`, `cuda`, `cuda:1`, …
        progress: told, where it matters to people.
    """

    seed: int = 0
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)


class Backend(Protocol):
    """The functions of a file in this folder."""

    def read_options(self, recipe: Recipe) -> object:
        """What a recipe asks of this library; `typed_options` makes it of a dataclass.

        Raises:
            UsageError: an option is unknown, missing, or cannot be meant.
        """

    def build(self, recipe: Recipe, vectors: StoredVectors, folder: Path, how: How) -> str:
        """Index all rows, in a folder.

        Args:
            recipe: what to build.
            vectors: read block by block; a sample of them first by kinds that are trained.
            folder: where the files go; empty.
            how: what does not change which index it is.

        Returns:
            The recipe as the library was told it, e.g. faiss's factory string.
        """

    def open_rows(self, folder: Path, effort: Mapping[str, int]) -> Rows:
        """The rows in a folder."""

    # A backend whose indexes can grow and shrink has this as well:
    #
    # def extend(
    #     self, old: Path, folder: Path, keep: NDArray[np.bool_],
    #     blocks: Iterator[NDArray[np.float32]],
    # ) -> None:
    #     """Write the rows of a folder that are to be kept, in their order, and those of the
    #     blocks behind them, into a new folder. Files that stay as they are may be linked.
    #     IndexFailure where this kind of index cannot."""

    # One whose rows are elsewhere than in the folder has these as well:
    #
    # def placed(self, recipe: Recipe, uri: str, out: Path) -> Recipe:
    #     """The recipe for an index folder, with options for where its rows go."""
    #
    # def settle(self, folder: Path, manifest: IndexManifest) -> None:
    #     """Clear away what nobody needs, now that a manifest names the folder."""

    def version(self) -> str:
        """Version of the library."""


Options = TypeVar("Options")


def typed_options(kind: type[Options], recipe: Recipe) -> Options:
    """A recipe's options as a backend's own dataclass, which checks their values.

    Raises:
        UsageError: an option is unknown, missing or refused.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(recipe.options) - known):
        raise UsageError(
            f"recipe {recipe.name}: {recipe.backend} has no option {unknown[0]!r}; "
            f"known: {', '.join(sorted(known)) or 'none'}"
        )
    try:
        return kind(**recipe.options)
    except TypeError as error:
        raise UsageError(f"recipe {recipe.name}: {error}") from error


def load(name: str) -> Backend:
    """The backend with this name.

    Raises:
        UsageError: there is none.
    """
    return cast(Backend, BACKENDS.load(name))


def placed(recipe: Recipe, uri: str, out: Path) -> Recipe:
    """A recipe for an index folder.

    Args:
        recipe: as found.
        uri: of the server that holds the rows; empty for the recipe's own, or none.
        out: the folder.

    Raises:
        UsageError: the backend has no server.
    """
    place = getattr(load(recipe.backend), "placed", None)
    if place is not None:
        found: Recipe = place(recipe, uri, out)
        return found
    if uri:
        raise UsageError(
            f"`uri` is {uri!r}, and recipe {recipe.name} is of {recipe.backend}, which has no server",
            hint="take a recipe of a backend that has one: `recipe='milvus'`",
        )
    return recipe


def settle(out: Path, manifest: IndexManifest) -> None:
    """What a backend has still to do once a manifest is in its place."""
    act = getattr(load(manifest.backend), "settle", None)
    if act is not None:
        act(out / manifest.folder, manifest)
