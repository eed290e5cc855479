"""Stores of drawn scenes with tokens from tiny models, for tests of fine-tuning."""

from pathlib import Path

from retrieval_engine import open_encoder
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.records import Modality


def scenes_store(path: Path, model: Path, *, scenes: str = "scenes:40?seed=7") -> Path:
    """A store with all float32 features, so that cached states equal fresh ones."""
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    known = encoder.features(Modality.IMAGES)
    features = tuple(name for name in ("itc", "pooled", "tokens") if name in known)
    options = EncodeOptions(features=features, store_dtype="float32", worker_kind="serial")
    encode(scenes, path, encoder=encoder, options=options)
    return path
