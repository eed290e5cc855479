"""Small torch modules on stored features: projections of images and texts into one space."""

from retrieval_engine.heads.head import Head
from retrieval_engine.heads.headed_encoder import HeadedEncoder
from retrieval_engine.heads.projection import HeadConfig, HeadKind
from retrieval_engine.heads.saved import SavedHead, TrainedOn, load_head, save_head

__all__ = [
    "Head",
    "HeadConfig",
    "HeadKind",
    "HeadedEncoder",
    "SavedHead",
    "TrainedOn",
    "load_head",
    "save_head",
]
