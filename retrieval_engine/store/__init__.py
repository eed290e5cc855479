"""HDF5 shards of features, whole or absent; see FORMAT.md.

store = open_store("embeddings")
gallery = store.gallery(split="test")
for start, block in gallery.image_blocks("itc", 4096): ...
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.store.compact import Compacted, compact_store
    from retrieval_engine.store.facts import StoreFacts, describe
    from retrieval_engine.store.forget import forget_source
    from retrieval_engine.store.gallery import Gallery, Strings
    from retrieval_engine.store.manifest import REPAIR_HINT
    from retrieval_engine.store.merge import Merged, merge_stores
    from retrieval_engine.store.part import PartWriter
    from retrieval_engine.store.reader import Store, open_store
    from retrieval_engine.store.repair import Repaired, repair_store
    from retrieval_engine.store.writer import StoreWriter

__all__ = [
    "REPAIR_HINT",
    "Compacted",
    "Gallery",
    "Merged",
    "PartWriter",
    "Repaired",
    "Store",
    "StoreFacts",
    "StoreWriter",
    "Strings",
    "compact_store",
    "describe",
    "forget_source",
    "merge_stores",
    "open_store",
    "repair_store",
]


__getattr__ = lazily(
    __name__,
    {
        ".compact": ("Compacted", "compact_store"),
        ".facts": ("StoreFacts", "describe"),
        ".forget": ("forget_source",),
        ".gallery": ("Gallery", "Strings"),
        ".manifest": ("REPAIR_HINT",),
        ".merge": ("Merged", "merge_stores"),
        ".part": ("PartWriter",),
        ".reader": ("Store", "open_store"),
        ".repair": ("Repaired", "repair_store"),
        ".writer": ("StoreWriter",),
    },
)
