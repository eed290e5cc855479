"""Fills a store: the one room where a source, a model and a store meet.

`from_source` encodes a source, here or on the devices of a `device_pool` (`dry_run` tells what that
would take), `stale` what a changed model made stale, `projected` writes what a head makes of stored
features, `imported` brings in other encoders' vectors, and `image_tokens` reads vision states or
encodes them once.
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.encoding.arithmetic import followed_dtype
    from retrieval_engine.encoding.device_pool import open_devices
    from retrieval_engine.encoding.dry_run import estimate
    from retrieval_engine.encoding.from_source import (
        EncodeOptions,
        EncodeReport,
        encode,
        open_changed,
    )
    from retrieval_engine.encoding.imported import ImportReport, import_embeddings
    from retrieval_engine.encoding.stale import encode_stale
    from retrieval_engine.encoding.vector_folders import read_clip_retrieval
    from retrieval_engine.encoding.vector_set import Embeddings, read_embeddings

__all__ = [
    "Embeddings",
    "EncodeOptions",
    "EncodeReport",
    "ImportReport",
    "encode",
    "encode_stale",
    "estimate",
    "followed_dtype",
    "import_embeddings",
    "open_changed",
    "open_devices",
    "read_clip_retrieval",
    "read_embeddings",
]


__getattr__ = lazily(
    __name__,
    {
        ".arithmetic": ("followed_dtype",),
        ".device_pool": ("open_devices",),
        ".dry_run": ("estimate",),
        ".from_source": ("EncodeOptions", "EncodeReport", "encode", "open_changed"),
        ".imported": ("ImportReport", "import_embeddings"),
        ".stale": ("encode_stale",),
        ".vector_folders": ("read_clip_retrieval",),
        ".vector_set": ("Embeddings", "read_embeddings"),
    },
)
