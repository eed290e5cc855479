"""Projections for search of two trainings: those of the contrast, and a head on what it left.

A linear head that begins in closed form and sees all captions of every picture, once the towers
stay as they are, finds other directions than projections that learned with them; see
`train.head.beside` for what is made of both.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retrieval_engine.heads import Head, HeadConfig, HeadKind, TrainedOn
from retrieval_engine.models.device import on_device
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.train.head.beside import Affine, Maps, narrowed, side_by_side
from retrieval_engine.train.head.fitting import HeadRun, Listeners
from retrieval_engine.train.head.pairs import FeaturePairs, TrainingData
from retrieval_engine.train.head.recipe import HeadRecipe
from retrieval_engine.train.pretrain.cached.data import ChannelScale, Described
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.cached.prototypes import Prototypes
from retrieval_engine.train.pretrain.texts import Texts

_SHARE = 0.5  # of the head's cosine beside that of the projections that were there
_EPOCHS = 4
_DRAWS = 3  # of half of the named things
_ROWS, _CAPTIONS = 128, 512


@torch.no_grad()
def pooled_pairs(
    model: CachedModel, data: Described, texts: Texts, scale: ChannelScale
) -> FeaturePairs:
    """What both projections read of whole pictures and of all of their captions.

    Args:
        model: in evaluation.
        data: the pictures.
        texts: their captions.
        scale: of the training set's states.
    """
    device = model.temperature.device
    images = []
    for start in range(0, len(data), _ROWS):
        states = torch.from_numpy(scale.apply(data.views[0][start : start + _ROWS]))
        images.append(model.see(states.to(device))[:, 0])
    written = read_captions(model, texts, len(data.captions), Silent())
    rows = np.arange(len(data.captions))
    column = rows - data.starts[data.owner]
    table = np.full((len(data), int(np.diff(data.starts).max())), -1)
    table[data.owner, column] = rows
    return FeaturePairs(
        images=torch.cat(images).float()[:, None],
        texts=written,
        captions=torch.from_numpy(table).to(device),
    )


@torch.no_grad()
def read_captions(model: CachedModel, texts: Texts, count: int, progress: Progress) -> Tensor:
    """(count, w) float32 pooled states of the first captions, as they are written."""
    device, states = model.temperature.device, []
    progress.start("reading captions", count)
    for start in range(0, count, _CAPTIONS):
        rows = np.arange(start, min(start + _CAPTIONS, count))
        words = texts.of(rows, mirrored=False).to(device)
        states.append(model.text_states(words.ids, words.mask).float())
        progress.advance(len(rows))
    progress.stop()
    return torch.cat(states)


@torch.no_grad()
def named_pairs(model: CachedModel, prototypes: Prototypes, texts: Texts) -> FeaturePairs:
    """What both projections read of named things, each about once or twice."""
    device, rng = model.temperature.device, np.random.default_rng(0)
    count = model.config.vision_config.image_size // model.config.vision_config.patch_size
    images, written = [], []
    for _ in range(_DRAWS):
        states, called = prototypes.draw(len(prototypes) // 2, rng)
        places = rng.random((len(states), count**2)).argsort(1)[:, : states.shape[1]]
        tokens = model.see(on_device(states, device), on_device(places, device))
        words = texts.encode(called).to(device)
        images.append(tokens[:, 0].float())
        written.append(model.text_states(words.ids, words.mask).float())
    rows = torch.arange(sum(map(len, images)), device=device)
    return FeaturePairs(
        images=torch.cat(images)[:, None], texts=torch.cat(written), captions=rows[:, None]
    )


@torch.no_grad()
def improve_projections(
    model: CachedModel, train: FeaturePairs, val: FeaturePairs, log: Path, progress: Progress
) -> float:
    """Train a head beside the projections of a model, and let it have the best of three ways.

    Args:
        model: whose towers stay as they are from now on.
        train: what is learned from.
        val: what decides.
        log: file that the head's epochs are written to.
        progress: told what it came to.

    Returns:
        Mean recall of the best on `val`, in per cent.
    """
    retrieval = model.retrieval
    dim = len(retrieval.vision_proj.weight)
    layers = retrieval.vision_proj, retrieval.text_proj
    ours = Affine.of_layer(layers[0]), Affine.of_layer(layers[1])
    head = _trained_head(
        train, val, dim, Listeners(log=log, began=time.perf_counter(), progress=Silent())
    )
    theirs = Affine.of_projection(head.image), Affine.of_projection(head.text)
    features = train.images[:, 0].double(), train.texts.double()
    both = narrowed(side_by_side(ours, theirs, features, _SHARE), features, dim)
    ways = {"the model's": ours, "with a head beside them": both, "the head's alone": theirs}
    found = {name: _mean_recall(maps, val) for name, maps in ways.items()}
    told = ", ".join(f"{name} {recall:.2f} %" for name, recall in found.items())
    progress.say(f"projections, mean recall: {told}")
    best = max(found, key=lambda name: found[name])  # of equals the first
    for layer, chosen in zip(layers, ways[best], strict=True):
        layer.weight.copy_(chosen.weight)
        layer.bias.copy_(chosen.bias)
    return found[best]


def _trained_head(train: FeaturePairs, val: FeaturePairs, dim: int, told: Listeners) -> Head:
    config = HeadConfig(
        kind=HeadKind.LINEAR,
        feature="pooled",
        image_width=train.images.shape[-1],
        text_width=train.texts.shape[-1],
        dim=dim,
    )
    head = Head(config).to(train.images.device)
    data = TrainingData(train=train, val=val, trained_on=TrainedOn())
    with torch.enable_grad():
        run = HeadRun(HeadRecipe(dim=dim, epochs=_EPOCHS), data, head, told)
        run.fit()
    return run.head


def _mean_recall(maps: Maps, pairs: FeaturePairs) -> float:
    images, texts = (
        nn.functional.normalize(each(x.double()), dim=1)
        for each, x in zip(maps, (pairs.images[:, 0], pairs.texts), strict=True)
    )
    return pairs.recall(images, texts).mean
