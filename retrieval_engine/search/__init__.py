"""Questions answered from an index or straight from a store."""

from retrieval_engine.search.hits import Hit, Hits
from retrieval_engine.search.opened import open_searcher
from retrieval_engine.search.queries import Mix, Query
from retrieval_engine.search.searcher import Searcher

SearchEngine = Searcher  # its name before 2026-11-25

__all__ = ["Hit", "Hits", "Mix", "Query", "Searcher", "open_searcher"]
