"""Heads on stored features: `train_head(store, out, recipe)`; the recipe is in `trainer.py`."""

from retrieval_engine.train.head.recipe import (
    CaptionChoice,
    HeadRecipe,
    Loss,
    Start,
    notebook_recipe,
    recipe_of,
)
from retrieval_engine.train.head.trainer import HeadReport, train_head, untrained_head

__all__ = [
    "CaptionChoice",
    "HeadRecipe",
    "HeadReport",
    "Loss",
    "Start",
    "notebook_recipe",
    "recipe_of",
    "train_head",
    "untrained_head",
]
