"""Heads on stored features: `train_head(store, out, recipe)`; the recipe is in `trainer.py`."""

from retrieval_engine.train.head.recipe import (
    Captions,
    HeadRecipe,
    Loss,
    Start,
    recipe_of,
    seed_recipe,
)
from retrieval_engine.train.head.trainer import HeadReport, train_head, untrained_head

__all__ = [
    "Captions",
    "HeadRecipe",
    "HeadReport",
    "Loss",
    "Start",
    "recipe_of",
    "seed_recipe",
    "train_head",
    "untrained_head",
]
