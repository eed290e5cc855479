"""Muon on the encoders' matrices and AdamW on the rest, or AdamW alone; how large a step when."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.model import PretrainModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisers:
    """The optimisers of a stage and the peak step of each of their groups."""

    each: tuple[torch.optim.Optimizer, ...]
    peaks: tuple[tuple[float, ...], ...]

    def step(self, factor: float) -> None:
        """Move the weights by their peak step times `factor`, and drop the gradients."""
        for optimiser, peaks in zip(self.each, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        """What `load_state_dict` needs to go on exactly."""
        return [optimiser.state_dict() for optimiser in self.each]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Go on from a saved state."""
        for optimiser, state in zip(self.each, states, strict=True):
            optimiser.load_state_dict(state)


def concept_optimisers(model: PretrainModel, config: PretrainConfig) -> Optimisers:
    """For the concept stage: the vision tower and the heads on it."""
    heads = [h for h in (model.concept_head, model.region_head) if h is not None]
    vision = model.retrieval.vision_model
    return _optimisers([(vision, config.concept_lr)], heads, [], config)


def joint_optimisers(model: PretrainModel, config: PretrainConfig) -> Optimisers:
    """For the joint stage: everything. The vision tower, already trained, takes half the step."""
    heads = [h for h in (model.concept_head, model.region_head) if h is not None]
    retrieval = model.retrieval
    towers = [
        (retrieval.vision_model, config.peak / 2),
        (retrieval.text_encoder.encoder, config.peak),
        (model.text_decoder.bert.encoder, config.peak),
    ]
    rest: list[nn.Module] = [
        *heads,
        retrieval.text_encoder.embeddings,
        model.text_decoder.cls,
        retrieval.vision_proj,
        retrieval.text_proj,
        retrieval.itm_head,
    ]
    return _optimisers(towers, rest, [model.temperature], config)


def _optimisers(
    towers: list[tuple[nn.Module, float]],
    rest: Iterable[nn.Module],
    scalars: list[nn.Parameter],
    config: PretrainConfig,
) -> Optimisers:
    taken: set[nn.Parameter] = set()  # the decoder shares layers with the encoder

    def fresh(module: nn.Module) -> list[nn.Parameter]:
        new = [p for p in module.parameters() if p not in taken]
        taken.update(new)
        return new

    matrices: list[dict[str, object]] = []
    others = list(scalars)
    for tower, peak in towers:
        weights = fresh(tower)
        matrices.append({"params": [p for p in weights if p.ndim == 2], "lr": peak})
        others += [p for p in weights if p.ndim != 2]
    for module in rest:
        others += fresh(module)
    if config.optimizer == "adamw":
        decayed = [p for group in matrices for p in group["params"]]  # type: ignore[attr-defined]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        alone = torch.optim.AdamW(groups, lr=config.peak, betas=(0.9, 0.98))
        return Optimisers(each=(alone,), peaks=((config.peak,) * len(groups),))
    muon = torch.optim.Muon(
        matrices,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        others,
        lr=config.other_lr,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    peaks = tuple(peak for _, peak in towers)
    return Optimisers(each=(muon, adamw), peaks=(peaks, (config.other_lr,)))
