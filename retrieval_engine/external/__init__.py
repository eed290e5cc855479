"""Vectors of any other encoder, brought into a store: searched, evaluated and given heads."""

from retrieval_engine.external.folders import read_clip_retrieval
from retrieval_engine.external.importing import ImportReport, import_embeddings
from retrieval_engine.external.vectors import Embeddings, read_embeddings

__all__ = [
    "Embeddings",
    "ImportReport",
    "import_embeddings",
    "read_clip_retrieval",
    "read_embeddings",
]
