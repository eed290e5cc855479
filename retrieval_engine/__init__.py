"""Encode once. Everything else reads the cache.

An embedding cache and retrieval engine for BLIP and BLIP-2. The public names load on first use,
so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.encoding import encode
    from retrieval_engine.encoding.transformer import FeatureTransformer
    from retrieval_engine.engine import Engine
    from retrieval_engine.evaluate import evaluate_recall
    from retrieval_engine.index import build_index, open_index, update_index
    from retrieval_engine.models import open_encoder
    from retrieval_engine.search import Mix, SearchEngine
    from retrieval_engine.sources import open_source
    from retrieval_engine.store import open_store

__version__ = "0.1.0"

__all__ = [
    "Engine",
    "FeatureTransformer",
    "Mix",
    "SearchEngine",  # search.Searcher, as it was called before 2026-11-25
    "build_index",
    "encode",
    "evaluate_recall",
    "open_encoder",
    "open_index",
    "open_source",
    "open_store",
    "update_index",
]


__getattr__ = lazily(
    __name__,
    {
        ".encoding": ("encode",),
        ".encoding.transformer": ("FeatureTransformer",),
        ".engine": ("Engine",),
        ".evaluate": ("evaluate_recall",),
        ".index": ("build_index", "open_index", "update_index"),
        ".models": ("open_encoder",),
        ".search": ("Mix", "SearchEngine"),
        ".sources": ("open_source",),
        ".store": ("open_store",),
    },
)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
