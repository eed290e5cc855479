"""Pictures that are one: found by their vectors, proven by their pixels, the best one picked."""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.duplicates.candidates import StoredPictures, vector_feature
    from retrieval_engine.duplicates.find import (
        Crossing,
        DuplicateReport,
        DuplicateSettings,
        crossing,
        find_duplicates,
        same_pictures,
    )
    from retrieval_engine.duplicates.groups import Copy, DuplicateGroup

__all__ = [
    "Copy",
    "Crossing",
    "DuplicateGroup",
    "DuplicateReport",
    "DuplicateSettings",
    "StoredPictures",
    "crossing",
    "find_duplicates",
    "same_pictures",
    "vector_feature",
]


__getattr__ = lazily(
    __name__,
    {
        ".candidates": ("StoredPictures", "vector_feature"),
        ".find": (
            "Crossing",
            "DuplicateReport",
            "DuplicateSettings",
            "crossing",
            "find_duplicates",
            "same_pictures",
        ),
        ".groups": ("Copy", "DuplicateGroup"),
    },
)
