"""What a step minimises: the four losses of the joint stage, and the two of the concept stage."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from retrieval_engine.train.pretrain.batches import Batch
from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.itm import MatchingPairsDraw, MatchingPlan
from retrieval_engine.train.pretrain.losses import (
    caption_loss,
    concept_loss,
    itc_loss,
    region_loss,
)
from retrieval_engine.train.pretrain.model import PretrainModel
from retrieval_engine.train.pretrain.texts import Texts
from retrieval_engine.train.pretrain.training_set import TrainingSet

_PROMPTED = 0.75
_COLDEST, _WARMEST = 0.01, 0.5  # bounds of the learned temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The scalar to minimise, and its parts for the log."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Objective:
    """Losses of a model on a batch.

    Args:
        model: the network.
        data: the training set.
        texts: its captions as tokens.
        config: weights of the losses, smoothing, seed.
    """

    def __init__(
        self, model: PretrainModel, data: TrainingSet, texts: Texts, config: PretrainConfig
    ) -> None:
        self._model = model
        self._data = data
        self._texts = texts
        self._config = config
        plan = MatchingPlan(batch_share=config.itm_share)
        self._matcher = MatchingPairsDraw(data, texts, plan, config.seed)

    def concepts(self, batch: Batch) -> Losses:
        """Concept stage: what is in the picture from its first state, and in each patch."""
        parts = self._concepts(batch, self._model.see(batch.pixels))
        return Losses(total=torch.stack(list(parts.values())).sum(), parts=parts)

    def joint(self, batch: Batch, step: int, *, hardness: float) -> Losses:
        """Joint stage: contrastive, matching and caption loss, the concepts beside them, as asked.

        Args:
            batch: with captions.
            step: decides the negatives and the captions to tell, together with the seed.
            hardness: of the matching loss's negatives, 0 to 1.
        """
        assert batch.tokens is not None
        assert batch.true is not None
        model, config = self._model, self._config
        states = model.see(batch.pixels)
        images = model.embed_images(states)
        texts = model.embed_texts(batch.tokens.ids, batch.tokens.mask)
        temperature = model.temperature.clamp(_COLDEST, _WARMEST)
        with torch.autocast(states.device.type, enabled=False):  # in bfloat16 near ties are lost
            scores = texts @ images.T / temperature
        parts = {"itc": itc_loss(scores, batch.true)}

        if "itm" in config.objective:
            pairs = self._matcher.pairs(batch, scores.detach(), step, hardness)
            logits = model.match(pairs.tokens.ids, pairs.tokens.mask, states, pairs.image)
            parts["itm"] = cross_entropy(logits, pairs.label)

        parts["lm"] = self._caption_loss(batch, states, step)
        if config.has_concepts:
            parts |= self._concepts(batch, states)
        weights = {
            "lm": config.caption_weight,
            "concept": config.concept_weight,
            "region": config.concept_weight,
        }
        weighted = [weights.get(name, 1.0) * loss for name, loss in parts.items()]
        parts["temperature"] = temperature.detach()
        return Losses(total=torch.stack(weighted).sum(), parts=parts)

    def _caption_loss(self, batch: Batch, states: Tensor, step: int) -> Tensor:
        rng = np.random.default_rng((self._config.seed, 3, step))
        captions = self._data.to_tell(batch.items, rng)
        prompted = rng.random(len(captions)) < _PROMPTED
        tokens, labels = self._texts.for_decoder(captions, prompted, mirrored=batch.is_mirrored)
        tokens = tokens.to(states.device)
        logits = self._model.caption_logits(tokens.ids, tokens.mask, states)
        smoothing = self._config.label_smoothing
        return caption_loss(logits, labels.to(states.device), smoothing=smoothing)

    def _concepts(self, batch: Batch, states: Tensor) -> dict[str, Tensor]:
        model = self._model
        logits = model.concept_head(states[:, 0])
        parts = {"concept": concept_loss(logits, batch.present, batch.known)}
        if model.region_head is not None and batch.regions is not None:
            aspects = self._data.pictures.aspects
            parts["region"] = region_loss(model.region_head(states[:, 1:]), batch.regions, aspects)
        return parts
