"""What kind of index to build, as data.

The recipes below ship in the package. The same recipes lie in `indices/recipes/*.toml` to be
edited and added to: a file there wins over a built-in recipe of its name.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from retrieval_engine.errors import UsageError
from retrieval_engine.plugins import Plugins
from retrieval_engine.records import Json

BACKENDS = Plugins(
    package="retrieval_engine.index.backends", noun="index backend", group="vlre.backends"
)
RECIPE_FOLDER = Path("indices/recipes")
FACTORY = "factory:"

_FLAT_ROWS = 100_000
# faiss wants at least this many training points a centroid, and warns below.
_POINTS_PER_LIST = 39
_ROWS_FOR_CODES = 16 * _POINTS_PER_LIST  # four bits a code


# A plain product quantiser: not OPQ, and not the 4-bit fast-scan kind.
_POLYSEMOUS = re.compile(r"(?<![A-Z])PQ\d+(x\d+)?(?!\d|x|np|fs)")
_NO_INNER_PRODUCT = re.compile(r"LSH|ITQ|SVS|L2Panorama|HNSW\d*[,_]\w*(Panorama|RaBitQ)|NSG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build an index.

    Attributes:
        name: what it is called in the manifest.
        factory: faiss factory string; `{nlist}` is replaced by the number of lists that suits
            the number of rows, `{cells}` by half the root of that, and `{half}`, `{quarter}`,
            `{three_quarters}` and `{three_eighths}` by so much of the length of a row. Empty for
            a backend that knows no such strings.
        backend: file name in `index/backends/`.
        target_recall: the effort of a search (nprobe, efSearch) is doubled at build until
            recall@10 against exact search reaches this, in (0, 1].
        ef_construction: HNSW's build effort; 0 leaves the library's default.
        options: of the backend, by the names that its own `Options` give them.
        about: one line for people.
    """

    name: str
    factory: str = ""
    backend: str = "faiss"
    target_recall: float = 0.95
    ef_construction: int = 0
    options: Mapping[str, Json] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise UsageError(f"recipe {self.name}: target_recall is {self.target_recall}; (0, 1]")
        if self.backend not in BACKENDS.names():
            known = ", ".join(BACKENDS.names())
            raise UsageError(f"recipe {self.name}: no backend {self.backend!r}; known: {known}")
        _check_factory(self.factory)

    def factory_for(self, rows: int, dim: int) -> str:
        """The factory string for so many rows of a length.

        It has no lists where they would be one, and no codes where the rows do not train them.
        """
        factory, sizes = self.factory, _sizes(rows, dim)
        if sizes["nlist"] == 1:
            factory = factory.removeprefix("IVF{nlist},")
        few = rows < _ROWS_FOR_CODES
        codes = ("quarter", "three_eighths")
        if any(f"{{{name}}}" in factory and (few or not sizes[name]) for name in codes):
            factory = factory.rpartition("Refine(")[2].rstrip(")")
        for name, size in sizes.items():
            factory = factory.replace(f"{{{name}}}", str(size))
        _check_factory(factory)
        return factory


def nlist_for(rows: int) -> int:
    """Number of IVF lists: 4 * sqrt(rows), fewer where too few rows would train them."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // _POINTS_PER_LIST))


def _sizes(rows: int, dim: int) -> dict[str, int]:
    """What stands for itself in a factory string."""
    quarter, three_eighths = dim // 4, 3 * dim // 8
    return {
        "nlist": nlist_for(rows),
        "cells": max(1, round(math.sqrt(rows) / 2)),
        "half": 2 * quarter,  # whole numbers of dimensions to a code
        "quarter": quarter,
        "three_quarters": 2 * three_eighths,
        "three_eighths": three_eighths,
    }


# faiss takes these, and then ends the whole process, divides by zero or never ends.
_DEADLY = re.compile(r"(?:HNSW|NSG)[01](?!\d)|(?<!\d)0+(?!\d)")


def _check_factory(factory: str) -> None:
    sizes = _sizes(1, 1)
    if unknown := [name for name in re.findall(r"\{(.*?)\}", factory) if name not in sizes]:
        known = ", ".join(f"{{{name}}}" for name in sizes)
        raise UsageError(f"{{{unknown[0]}}} in {factory!r} is no size; known: {known}")
    if found := _DEADLY.search(factory):
        raise UsageError(
            f"{found[0]} in {factory!r} is too little for faiss",
            hint="HNSW takes 2 or more, every other number 1 or more",
        )
    if found := _POLYSEMOUS.search(factory):
        raise UsageError(
            f"{found[0]} in {factory!r} trains for polysemous codes, thirty times longer",
            hint=f"write {found[0]}np",
        )
    if found := _NO_INNER_PRODUCT.search(factory):
        raise UsageError(
            f"{found[0]} in {factory!r} does not work with inner products",
            hint="take a recipe of IVF, HNSW or flat kind",
        )


_HNSW = "graph; quickest where queries lie among the rows (images), slow to build"
_SCAN = "the best by short codes compared whole"
_IVF = "lists of k-means cells; quick to build, best with words as queries"
BUILT_IN = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="flat", factory="Flat", about="exact, float32"),
        Recipe(name="flat-fp16", factory="SQfp16", about="every row compared, float16 storage"),
        Recipe(
            name="scan-fp16",
            factory="PCA{half},PQ{quarter}x4fs,Refine(SQfp16)",
            about=f"{_SCAN}, codes of all rows looked at; float16 storage",
        ),
        Recipe(
            name="ivf-scan-fp16",
            factory="PCA{three_quarters},IVF{cells},PQ{three_eighths}x4fs,Refine(SQfp16)",
            about=f"{_SCAN}, codes in lists; quickest with words as queries; float16 storage",
        ),
        Recipe(name="hnsw", factory="HNSW32,Flat", ef_construction=80, about=_HNSW),
        Recipe(
            name="hnsw-fp16",
            factory="HNSW32,SQfp16",
            ef_construction=80,
            about=f"{_HNSW}; float16 storage",
        ),
        Recipe(name="ivf", factory="IVF{nlist},Flat", about=_IVF),
        Recipe(name="ivf-fp16", factory="IVF{nlist},SQfp16", about=f"{_IVF}; float16 storage"),
        Recipe(name="ivf-sq8", factory="IVF{nlist},SQ8", about=f"{_IVF}; one byte a number"),
        Recipe(
            name="milvus",
            backend="milvus",
            about="on a Milvus server, float16; exact below 200,000 rows, a graph above",
        ),
    )
}


def find_recipe(name: str, rows: int) -> tuple[Recipe, str]:
    """The recipe of this name, and why it is the one.

    Args:
        name: `auto`, a built-in name, a name in `./indices/recipes`, a path of a TOML file, or
            `factory:` with a faiss factory string.
        rows: number of rows to be indexed; decides `auto`.

    Returns:
        The recipe and a line for people, empty when the recipe was named.

    Raises:
        UsageError: no such recipe, or it asks for what cannot work.
    """
    if name == "auto":
        chosen = automatic(rows)
        why = f"from {_FLAT_ROWS:,} on, short codes are much faster than whole rows"
        if rows < _FLAT_ROWS:
            why = f"below {_FLAT_ROWS:,}, comparing with every row is quick enough"
        return chosen, f"recipe {chosen.name}: {rows:,} rows; {why}"
    if name.startswith(FACTORY):
        return Recipe(name=name, factory=name.removeprefix(FACTORY)), ""
    for path in (Path(name), RECIPE_FOLDER / f"{name}.toml"):
        if path.suffix == ".toml" and path.is_file():
            return read_recipe(path), ""
    if name in BUILT_IN:
        return BUILT_IN[name], ""
    known = ", ".join(["auto", *BUILT_IN])
    raise UsageError(
        f"no recipe {name!r}; known: {known}",
        hint="or the path of a .toml file, or factory:STRING with a faiss factory string",
    )


def automatic(rows: int) -> Recipe:
    """The recipe for so many rows where none is named: few are compared whole, of more short codes.

    No graph, and lists only of codes: captions lie apart from images, and what is nearest to them is
    far apart in a graph and spread over a quarter of all lists (benchmarks/LOG.md).
    """
    return BUILT_IN["flat-fp16" if rows < _FLAT_ROWS else "ivf-scan-fp16"]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; its name is the file's.

    Raises:
        UsageError: not TOML, an unknown key, or a value that cannot be used.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UsageError(f"cannot read recipe {path}: it is nested too deep") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read recipe {path}: {error}") from error
    allowed = [f.name for f in fields(Recipe) if f.name != "name"]
    if unknown := sorted(set(values) - set(allowed)):
        raise UsageError(f"{path}: unknown key {unknown[0]!r}; allowed: {', '.join(allowed)}")
    try:
        recipe = Recipe(name=path.stem, **values)
        BACKENDS.load(recipe.backend).read_options(recipe)
    except TypeError as error:
        raise UsageError(f"{path}: {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
    return recipe
