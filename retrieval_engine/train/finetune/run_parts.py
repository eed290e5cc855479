"""Brings together what a run needs: data, model, what of it is trained, loader, objective."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_engine.errors import FingerprintMismatch, UsageError
from retrieval_engine.models import decodes_fast
from retrieval_engine.models.adapters import peft_quiet, resolve
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.learner import Learner, open_learner
from retrieval_engine.store import Store, open_store
from retrieval_engine.train.finetune.captioned import Order, Sets, load_sets
from retrieval_engine.train.finetune.captioning import CaptionObjective
from retrieval_engine.train.finetune.config import FinetuneConfig, Task
from retrieval_engine.train.finetune.distributed import Processes
from retrieval_engine.train.finetune.hard_negatives import read_negatives
from retrieval_engine.train.finetune.objective import Arithmetic, TaskObjective, training_dtype
from retrieval_engine.train.finetune.retrieval import RetrievalObjective
from retrieval_engine.train.finetune.rewarded import RewardObjective
from retrieval_engine.train.finetune.vision_states import CachedStates, Loader, PixelStates
from retrieval_engine.train.lora import LoraOptions, attach, matching_modules

_REFERENCE_WIDTH, _REFERENCE_LR, _ADAPTERS = 768, 1e-5, 10.0
_REWARDED = 0.25  # a reward is noisier than a loss


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """Everything a fine-tuning works with, before its first step.

    Attributes:
        checkpoint: what it starts from.
        sets: what it trains and validates on.
        order: the batches.
        learner: the model, adapters included.
        wrapped: the `peft.PeftModel` around it, or None where the weights themselves are trained.
        loader: gives states.
        objective: the losses.
        optimiser: over all that is trained.
        peak: its largest step.
        scaler: of float16 losses; switched off otherwise.
    """

    checkpoint: Checkpoint
    sets: Sets
    order: Order
    learner: Learner
    wrapped: Any
    loader: Loader
    objective: TaskObjective
    optimiser: torch.optim.Optimizer
    peak: float
    scaler: torch.amp.GradScaler

    def weights(self) -> dict[str, Tensor]:
        """What is trained of the model, by name; not copied."""
        named = self.learner.model.named_parameters()
        return {name: p.detach() for name, p in named if p.requires_grad}

    @torch.no_grad()
    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put values into the model that `weights` gave."""
        named = dict(self.learner.model.named_parameters())
        for name, value in values.items():
            named[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs of these parts."""
        return {
            "weights": self.weights(),
            "beside": [p.detach() for p in self.objective.parameters()],
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.set_weights(saved["weights"])
        for mine, value in zip(self.objective.parameters(), saved["beside"], strict=True):
            mine.copy_(value)
        self.objective.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])


def open_parts(config: FinetuneConfig, processes: Processes) -> RunParts:
    """Open and check everything; see `trainer.finetune` for what it raises."""
    store = open_store(config.store)
    checkpoint = resolve(config.model or store.spec.checkpoint)
    checkpoint = replace(checkpoint, fast_decode=decodes_fast(store.spec, checkpoint.name))
    if checkpoint.adapter is not None:
        raise UsageError(
            f"{checkpoint.name} is an adapter; training starts from a whole model",
            hint="merge it first with `merge_adapters(out=DIR)`",
        )
    sets = load_sets(store, from_cache=not config.from_pixels)
    images = config.batch_size // config.captions_per_image
    mined = read_negatives(Path(config.negatives), sets.train) if config.negatives else None
    order = Order(
        sets.train,
        batch_size=config.batch_size,
        per_image=config.captions_per_image,
        seed=config.seed,
        company=mined,
    )
    if images % processes.size:
        raise UsageError(
            f"`batch_size={config.batch_size}` is not divided by {processes.size} processes"
        )
    device = processes.device
    learner = _open_learner(config, checkpoint, store, device)
    wrapped = _choose_parameters(config, learner)
    dtype = training_dtype(config.dtype, device)
    loader = _loader(config, learner, store, sets, device)
    arithmetic = Arithmetic(device, dtype, config.seed)
    kind = RetrievalObjective if config.task is Task.RETRIEVAL else CaptionObjective
    kind = RewardObjective if config.reward else kind
    objective: TaskObjective = kind(learner, loader, config, processes, arithmetic)
    if isinstance(objective, RewardObjective):
        objective.refer_to(sets.train)
    optimiser, peak = _optimiser(config, learner, objective)
    return RunParts(
        checkpoint=checkpoint,
        sets=sets,
        order=order,
        learner=learner,
        wrapped=wrapped,
        loader=loader,
        objective=objective,
        optimiser=optimiser,
        peak=peak,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


def trained_parameters(learner: Learner, objective: TaskObjective) -> list[nn.Parameter]:
    """Parameters that the optimiser moves, those beside the model included."""
    model = [p for p in learner.model.parameters() if p.requires_grad]
    return [*model, *objective.parameters()]


def _open_learner(
    config: FinetuneConfig, checkpoint: Checkpoint, store: Store, device: torch.device
) -> Learner:
    # What is trained is float32; a base that stays as it is may be half of that on CUDA.
    half = bool(config.lora) and device.type == "cuda"
    half = half and training_dtype(config.dtype, device) != torch.float32  # no autocast joins them
    learner = open_learner(
        checkpoint,
        config.task,
        with_tower=config.from_pixels,
        dtype=torch.bfloat16 if half else torch.float32,
        quantize=config.quantize,
    )
    made_by = store.spec.weights.get("vision", "")
    if not config.from_pixels and learner.vision != made_by:
        raise FingerprintMismatch(
            f"the vision states in {store.path}",
            seen=made_by,
            expected=learner.vision,
            hint=f"they are of {store.spec.checkpoint}: use a model with the same vision tower, "
            "encode with this one, or train with `from_pixels`",
        )
    if not config.quantize:  # bitsandbytes has put it there already
        learner.model.to(device)
    return learner


def _choose_parameters(config: FinetuneConfig, learner: Learner) -> Any:
    """Mark what is trained; gives the `PeftModel` where that is an adapter."""
    model = learner.model.train()
    wrapped = None
    if config.lora:
        options = LoraOptions.parse(config.lora)
        # Without ITM nothing runs through BLIP's cross-attention: adapters there would be dead.
        itc_alone = config.task is Task.RETRIEVAL and not config.itm
        usual = "text-self" if itc_alone and learner.targets == "text" else learner.targets
        modules = matching_modules(model, options.targets or usual)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            wrapped = attach(model, options, modules, name=config.adapter_name)
    else:
        fixed = (*learner.frozen, *(("vision_model.",) if config.freeze_vision else ()))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(fixed))
    if config.checkpointing:
        # After the adapters, and in the tower alone: transformers' text embeddings add in place
        # to what peft makes require a gradient.
        tower: Any = model.vision_model
        with peft_quiet():
            tower.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
    return wrapped


def _loader(
    config: FinetuneConfig, learner: Learner, store: Store, sets: Sets, device: torch.device
) -> Loader:
    if config.from_pixels:
        return PixelStates(
            learner.preprocessor,
            device,
            augment=config.augment,
            colour_jitter=config.colour_jitter,
            seed=config.seed,
            frozen=config.freeze_vision,
        )
    loader = CachedStates(store, device)
    for data in (sets.val, sets.train):
        loader.keep(data)
    return loader


def _optimiser(
    config: FinetuneConfig, learner: Learner, objective: TaskObjective
) -> tuple[torch.optim.Optimizer, float]:
    trained = trained_parameters(learner, objective)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr = config.lr
    if not lr:
        lr = _REFERENCE_LR * max(1.0, (_REFERENCE_WIDTH / learner.width) ** 2)
        lr *= (_ADAPTERS if config.lora else 1.0) * (_REWARDED if config.reward else 1.0)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)), lr
