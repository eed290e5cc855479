"""Questions answered from an index or straight from a store."""

from retrieval_engine.search.by_vectors import read_vectors, search_vectors
from retrieval_engine.search.engine import SearchEngine
from retrieval_engine.search.hits import Hit
from retrieval_engine.search.opened import open_engine

__all__ = ["Hit", "SearchEngine", "open_engine", "read_vectors", "search_vectors"]
