"""What people ask with: words, an image in any form, a vector, or a weighted mix of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import SourceError, UsageError, one_line
from retrieval_engine.search.hits import Hit, Hits
from retrieval_engine.sources.image_forms import image_bytes, is_array, is_image

Query: TypeAlias = Any
"""Words, an image in any form, a (d,) vector, a `Mix`, or a mapping of those to their weights."""
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?|\.\d+):(?=.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mix:
    """Several queries as one: what to find, with positive weights, and what not, with negative.

    Each part's unit vectors are weighted and added, and the sum has unit length again. A text is
    one vector, an image of BLIP too; an image of BLIP-2 is 32, one for each learned query, and
    images are added query by query while a text is added to all 32.

    Args:
        parts: each query with its weight.

    Raises:
        UsageError: no part is wanted, or a weight is no number.

    Examples:
        >>> print(Mix((("a golden retriever", 2), ("a cage", -1))))
        2:a golden retriever, not a cage
    """

    parts: tuple[tuple[Query, float], ...]

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        for query, weight in self.parts:
            if not np.isfinite(weight) or weight == 0:
                raise UsageError(
                    f"the weight of {name_of(query)!r} is {weight!r}",
                    hint="above 0 for what to find, below 0 for what not",
                )
            if isinstance(query, str) and not query.strip():
                raise UsageError("a part of the query is empty", hint='ask for something: "a dog"')
        if not any(weight > 0 for _, weight in self.parts):
            raise UsageError(
                "the query says only what not to find",
                hint="say what to find as well: everything but a cage is no picture",
            )

    def __str__(self) -> str:
        """As it would be typed: `a dog, not a cage`."""
        return ", ".join(
            ("not " if weight < 0 else "")
            + ("" if abs(weight) == 1 else f"{abs(weight):g}:")
            + name_of(query)
            for query, weight in self.parts
        )


def mix(query: Query, plus: Sequence[str] = (), minus: Sequence[str] = ()) -> Query:
    """A query as people type it, with what else is wanted and what is not; `2:words` has weight 2.

    Args:
        query: words or a picture, or empty.
        plus: more of those.
        minus: what not to find.

    Returns:
        `query` itself where nothing is added or taken away.
    """
    if not plus and not minus:
        return query
    wanted = [*([query] if query != "" else []), *plus]
    return Mix(
        (
            *(weighted(text) for text in wanted),
            *((part, -weight) for part, weight in map(weighted, minus)),
        )
    )


def weighted(text: Query) -> tuple[Query, float]:
    """The query and its weight; `2:words` weighs 2, everything else 1."""
    found = _WEIGHT.match(text) if isinstance(text, str) else None
    return (text, 1.0) if found is None else (text[found.end() :], float(found[1]))


def as_mix(query: Query) -> Query:
    """A mapping of queries to weights as a `Mix`, everything else as it is.

    Raises:
        UsageError: see `Mix`.
    """
    return Mix(tuple(query.items())) if isinstance(query, Mapping) else query


def is_one(queries: Any) -> bool:
    """Whether one query was given, not several."""
    if is_array(queries):
        # (n, d) floats are n vectors; whole numbers of two axes are a grey picture.
        return len(queries.shape) in (1, 3) or (len(queries.shape) == 2 and not is_float(queries))
    return isinstance(queries, str | Mix | Mapping) or is_image(queries)


def each_of(queries: Any) -> list[Query]:
    """Several queries one by one.

    Raises:
        UsageError: it is nothing that can be asked.
    """
    if isinstance(queries, str) or not hasattr(queries, "__iter__"):
        raise UsageError(
            f"{type(queries).__name__} is no query",
            hint="ask with words, an image, a vector or a mix of them, or with a list of those",
        )
    return list(queries)


def is_vector(query: Query) -> bool:
    """Whether a query is a vector: one axis of floats."""
    return is_array(query) and len(query.shape) == 1


def is_float(array: Any) -> bool:
    """Whether an array or a tensor holds floats."""
    return "float" in str(array.dtype)


def is_words(query: Query) -> bool:
    """Whether a query is words."""
    return isinstance(query, str) and not is_image(query)


def is_picture(query: Query) -> bool:
    """Whether a query is one image."""
    return not (isinstance(query, Mix) or is_vector(query) or is_words(query))


def name_of(query: Query) -> str:
    """What to call a query."""
    if isinstance(query, str | Mix):
        return str(query)
    if isinstance(query, Mapping):
        return str(as_mix(query))
    if hasattr(query, "__fspath__"):
        return str(query)
    if is_vector(query):
        return "a vector"
    return getattr(query, "filename", "") or "an image"


def combined(parts: Sequence[tuple[NDArray[np.float32], float]], names: str) -> NDArray[np.float32]:
    """The weighted sum of queries, of unit length again.

    Args:
        parts: (v, d) unit vectors of each, v being 1 or the same for all; and its weight.
        names: of the mix, for the message.

    Returns:
        (v, d) float32.

    Raises:
        UsageError: the parts cancel each other.
    """
    total = sum(weight * vectors.astype(np.float64) for vectors, weight in parts)
    lengths = np.linalg.norm(total, axis=-1, keepdims=True)
    if (lengths < 1e-6).any():
        raise UsageError(f"the parts of {names!r} cancel each other", hint="weigh them otherwise")
    unit: NDArray[np.float32] = (total / lengths).astype(np.float32)
    return unit


def read_vectors(path: Path) -> NDArray[Any]:
    """(n, d) vectors of a `.npy`; a single vector counts as one row.

    Raises:
        SourceError: it is no such file, or holds NaN, infinity or a zero vector.
    """
    try:
        vectors: NDArray[Any] = np.atleast_2d(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"cannot read {path}: {one_line(error)}", hint="a .npy of floating-point numbers"
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise SourceError(f"{path} holds {vectors.dtype}{list(vectors.shape)}, not vectors")
    bad = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)
    if bad.any():
        raise SourceError(f"row {int(np.argmax(bad))} of {path} holds NaN, infinity or only zeros")
    return vectors


def answer_to(query: Query, hits: Iterable[Hit]) -> Hits:
    """What was found for a query, with what was asked."""
    image = image_bytes(query) if is_picture(query) else None
    return Hits(hits, query=name_of(query), image=image)
