"""Approximate and exact top-k over stored features.

`build_index` makes a self-contained folder from a store, `update_index` brings it up to date,
`open_index` opens it, and whatever
answers `search` the way `Index` says can stand in its place. A backend is one file in `backends/`.
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.index.build import IndexReport, build_index
    from retrieval_engine.index.directory import SavedIndex, open_index
    from retrieval_engine.index.exact import ExactIndex
    from retrieval_engine.index.grouping import Index
    from retrieval_engine.index.update import UpdateReport, update_index

__all__ = [
    "ExactIndex",
    "Index",
    "IndexReport",
    "SavedIndex",
    "UpdateReport",
    "build_index",
    "open_index",
    "update_index",
]


__getattr__ = lazily(
    __name__,
    {
        ".build": ("IndexReport", "build_index"),
        ".directory": ("SavedIndex", "open_index"),
        ".exact": ("ExactIndex",),
        ".grouping": ("Index",),
        ".update": ("UpdateReport", "update_index"),
    },
)
