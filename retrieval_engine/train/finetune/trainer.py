"""Fine-tunes a model on a store. Read from top to bottom: it is the one loop for every task.

1. The store says which images to train and to select on, and which model made its states.
2. The modules that the task needs are loaded; all of them are trained, or adapters in them.
3. Each step: a batch decided by the seed and the step's number alone, losses of the task's
   objective, gradients added up over the processes, AdamW under a cosine.
4. The weights that validated best are written: a model directory, or an adapter.

A run that was killed goes on where it stood when the same command is given again.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import nn

from retrieval_engine.encoders.adapters import peft_quiet
from retrieval_engine.encoders.checkpoint import resolve
from retrieval_engine.errors import FingerprintMismatch, TrainingError, UsageError
from retrieval_engine.fingerprint import digest
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.store import open_store
from retrieval_engine.train.adapters import (
    LoraOptions,
    attach,
    matching_modules,
    refuse_dead,
)
from retrieval_engine.train.finetune.arithmetic import Arithmetic, training_dtype
from retrieval_engine.train.finetune.captions import Captions, Judge
from retrieval_engine.train.finetune.config import FinetuneConfig, Select, Task
from retrieval_engine.train.finetune.data import Captioned, Group, Order, load_sets
from retrieval_engine.train.finetune.learning import (
    CaptionLearner,
    Learner,
    RetrievalLearner,
    open_learner,
)
from retrieval_engine.train.finetune.output import FinetuneReport, Output, Trained, open_board
from retrieval_engine.train.finetune.processes import Processes
from retrieval_engine.train.finetune.retrieval import Retrieval
from retrieval_engine.train.finetune.states import Ahead, CachedStates, Loader, PixelStates
from retrieval_engine.train.pretrain.checkpoint import load_checkpoint, save_atomically
from retrieval_engine.train.pretrain.optimisers import step_factor
from retrieval_engine.train.pretrain.runlog import RunLog

_SAVE_EVERY_S = 120.0
_LOG_EVERY = 10
_SHOWN_IDS = 8
_REFERENCE_WIDTH, _REFERENCE_LR, _ADAPTERS = 768, 1e-5, 10.0


class Objective(Protocol):
    """What a task minimises and what it is judged by.

    Attributes:
        metric: name of the figure the best weights are chosen by.
        higher_is_better: of that figure.
    """

    metric: str
    higher_is_better: bool

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside parameters."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""

    def prepare(self, data: Captioned, group: Group, loaded: NDArray[Any]) -> Any:
        """A batch of this process; runs in another thread."""

    def step(self, batch: Any, step: int, *, along: float, scale: float) -> dict[str, float]:
        """Add the gradients of a batch, times `scale`, to the parameters.

        Returns:
            The losses by name, over all processes.
        """

    def validate(self, data: Captioned) -> dict[str, float]:
        """Figures on held-out images."""


@dataclass(slots=True, kw_only=True)
class State:
    """Where a run stands, besides weights and optimiser.

    Attributes:
        step: steps done.
        seconds: training time over all sessions, validation excluded.
        start: figures before the first step.
        best: figures of the best weights.
        best_step: when they were reached.
        stale: validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    start: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    stale: int = 0


def finetune(
    config: FinetuneConfig,
    out: Path,
    *,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> FinetuneReport:
    """Fine-tune a model and write it as a directory that `open_encoder` or a captioner opens.

    Args:
        config: store, task and recipe.
        out: directory of the model or adapter; `out/run` holds what a killed run goes on from and
            is gone when the run is complete.
        judge: scores written captions against references; needed for `Select.CIDER`.
        progress: told about the run.

    Raises:
        TrainingError: no captions, `out` holds another run, a loss that is not finite.
        FeatureMissing: training from the cache of a store without `tokens`.
        FingerprintMismatch: the model's vision tower did not make the store's states.
        UsageError: an option that cannot be.
    """
    run = Run(config, out, judge, progress or Silent())
    try:
        run.train()
        return run.finish()
    finally:
        run.close()


class Run:
    """One fine-tuning, from the store to the directory."""

    def __init__(
        self, config: FinetuneConfig, out: Path, judge: Judge | None, progress: Progress
    ) -> None:
        if (out / "training.json").exists():
            raise TrainingError(f"{out} already holds a trained model", hint="give another --out")
        if config.select is Select.CIDER and judge is None:
            raise UsageError("selecting by CIDEr needs a judge of captions")
        self.config, self.out, self.progress = config, out, progress
        self.processes = Processes(config.device)
        self.store = open_store(config.store)
        self.checkpoint = resolve(config.model or self.store.spec.checkpoint)
        if self.checkpoint.adapter is not None:
            raise UsageError(
                f"{self.checkpoint.name} is an adapter; training starts from a whole model",
                hint="merge it first with `vlre merge-adapter`",
            )
        self.sets = load_sets(self.store, from_cache=not config.from_pixels)
        self._say(f"{len(self.sets.train):,} images to train on; {self.sets.how}")
        self.order = Order(
            self.sets.train,
            batch_size=config.batch_size,
            per_image=config.captions_per_image,
            seed=config.seed,
        )
        if (config.batch_size // config.captions_per_image) % self.processes.size:
            raise UsageError(
                f"batch_size {config.batch_size} is not divided by {self.processes.size} processes"
            )
        device = self.processes.device
        # What is trained is float32; a base that stays as it is may be half of that on CUDA.
        half = bool(config.lora) and device.type == "cuda"
        self.learner = open_learner(
            self.checkpoint,
            config.task,
            with_tower=config.from_pixels,
            dtype=torch.bfloat16 if half else torch.float32,
            quantize=config.quantize,
        )
        self._check_tower()
        if not config.quantize:  # bitsandbytes has put it there already
            self.learner.model.to(device)
        self.wrapped = self._choose_parameters()
        dtype = training_dtype(config.dtype, device)
        arithmetic = Arithmetic(device, dtype, config.seed)
        self.loader = self._loader()
        self.objective = self._objective(arithmetic, judge)
        self.optimiser, self.peak = self._optimiser()
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.total = config.epochs * self.order.steps_per_epoch
        self.total = min(self.total, config.max_steps or self.total)
        self.every = config.eval_every or self.order.steps_per_epoch
        self.identity = digest([config.to_json(), self.sets.train.digest, self.learner.vision])
        self.state = State()
        self.output = Output(self.config, self.checkpoint, self.out, self.sets, self.wrapped)
        self.ahead = Ahead(self.batch)
        (out / "run").mkdir(parents=True, exist_ok=True)
        if self._checkpoint_path.exists():
            self._resume()
        self.log = RunLog(out / "log.jsonl", keep_steps=self.state.step)
        self.board = open_board(out / "tensorboard") if config.tensorboard else None

    # What is trained

    def _check_tower(self) -> None:
        made_by = self.store.spec.weights.get("vision", "")
        if not self.config.from_pixels and self.learner.vision != made_by:
            raise FingerprintMismatch(
                f"the vision states in {self.store.path}",
                seen=made_by,
                expected=self.learner.vision,
                hint=f"they are of {self.store.spec.checkpoint}: use a model with the same vision "
                "tower, encode with this one, or train --from-pixels",
            )

    def _choose_parameters(self) -> Any:
        """Mark what is trained; the `PeftModel` where that is an adapter."""
        config, model = self.config, self.learner.model
        model.train()
        wrapped = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.lora:
                options = LoraOptions.parse(config.lora)
                modules = matching_modules(model, options.targets or self._targets())
                wrapped = attach(model, options, modules, name=config.adapter_name)
        if wrapped is None:
            fixed = self.learner.frozen
            if config.freeze_vision:
                fixed = (*fixed, "vision_model.")
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

    def _targets(self) -> str:
        """Without ITM nothing runs through BLIP's cross-attention: adapters there would be dead."""
        retrieval = self.config.task is Task.RETRIEVAL
        return "text-self" if retrieval and not self.config.itm else self.learner.targets

    def _trained(self) -> list[nn.Parameter]:
        model = [p for p in self.learner.model.parameters() if p.requires_grad]
        return [*model, *self.objective.parameters()]

    def _optimiser(self) -> tuple[torch.optim.Optimizer, float]:
        config = self.config
        trained = self._trained()
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        lr = config.lr
        if not lr:
            lr = _REFERENCE_LR * max(1.0, (_REFERENCE_WIDTH / self.learner.width) ** 2)
            lr *= _ADAPTERS if config.lora else 1.0
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)), lr

    def _loader(self) -> Loader:
        config, device = self.config, self.processes.device
        if config.from_pixels:
            return PixelStates(
                self.learner.preprocessor,
                device,
                augment=config.augment,
                seed=config.seed,
                frozen=config.freeze_vision,
            )
        loader = CachedStates(self.store, device)
        for data in (self.sets.val, self.sets.train):
            loader.keep(data)
        return loader

    def _objective(self, arithmetic: Arithmetic, judge: Judge | None) -> Objective:
        learner: Learner = self.learner
        if isinstance(learner, RetrievalLearner):
            return Retrieval(learner, self.loader, self.config, self.processes, arithmetic)
        assert isinstance(learner, CaptionLearner)
        return Captions(learner, self.loader, self.config, self.processes, arithmetic, judge)

    # The loop

    def train(self) -> None:
        """Run the steps that are left."""
        state = self.state
        self._say(str(self.output.counted(self.learner.model)))
        if not state.start:
            state.start = self._figures()
            self._write_log({"step": 0, **state.start})
        self._start_bar()
        saved_at = time.monotonic()
        while not self._is_over():
            self._step()
            if self.processes.is_first:
                self.progress.advance()
            if state.step % self.every == 0 or self._is_over():
                self._validate()
            elif time.monotonic() - saved_at < _SAVE_EVERY_S:
                continue
            self.save()
            saved_at = time.monotonic()
        self.progress.stop()

    def batch(self, step: int) -> tuple[Group, Any]:
        """A step's batch of this process; runs ahead in a thread."""
        whole = self.order(step)
        mine = self.processes.share(len(whole.images))
        group = Group(images=whole.images[mine], captions=whole.captions[mine])
        loaded = self.loader.load(self.sets.train, group.images, step)
        return whole, self.objective.prepare(self.sets.train, group, loaded)

    def _step(self) -> None:
        state, config = self.state, self.config
        started = time.monotonic()
        group, batch = self.ahead(state.step, last=state.step + 1 >= self.total)
        along = state.step / self.order.steps_per_epoch
        scale = float(self.scaler.get_scale()) if self.scaler.is_enabled() else 1.0
        losses = self.objective.step(batch, state.step, along=along, scale=scale)
        if config.lora and state.step == 0:
            refuse_dead(self.learner.model)
        trained = self._trained()
        self.processes.add_gradients(trained)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        finite = all(abs(value) < float("inf") for value in losses.values())
        if not finite or not (self.scaler.is_enabled() or bool(torch.isfinite(norm))):
            self._stop_at(group, losses)
        factor = step_factor(state.step / self.total, config.warmup)
        for each in self.optimiser.param_groups:
            each["lr"] = self.peak * factor
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        state.step += 1
        state.seconds += time.monotonic() - started
        if state.step % _LOG_EVERY == 0 or self._is_over():
            rounded = {name: round(value, 5) for name, value in losses.items()}
            times = {"seconds": round(state.seconds, 2), "lr": self.peak * factor}
            self._write_log({"step": state.step, **times, **rounded, "norm": round(float(norm), 4)})

    def _stop_at(self, group: Group, losses: Mapping[str, float]) -> None:
        ids = [self.sets.train.ids[i] for i in group.images.tolist()]
        shown = ", ".join(ids[:_SHOWN_IDS]) + (", …" if len(ids) > _SHOWN_IDS else "")
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise TrainingError(
            f"loss or gradient is not finite at step {self.state.step} ({values}); the batch is "
            f"{shown}",
            hint="lower --lr, or use --dtype float32; the run before this step is kept",
        )

    def _is_over(self) -> bool:
        stale = bool(self.config.patience) and self.state.stale >= self.config.patience
        return stale or self.state.step >= self.total

    def _figures(self) -> dict[str, float]:
        """Validation by the first process; the others wait for what it says."""
        found: dict[str, float] = {}
        if self.processes.is_first:
            self.learner.model.eval()
            found = self.objective.validate(self.sets.val)
            self.learner.model.train()
        told: dict[str, float] = self.processes.told_by_first([found])[0]
        return {name: round(value, 5) for name, value in told.items()}

    def _validate(self) -> None:
        state, objective = self.state, self.objective
        found = self._figures()
        self._write_log({"step": state.step, **found})
        words = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items())
        self._say(f"step {state.step:,} of {self.total:,}: {words}")
        if isinstance(objective, Captions):
            self._tell_samples(objective)
        sign = 1 if objective.higher_is_better else -1
        best = state.best.get(objective.metric)
        if best is None or sign * found[objective.metric] > sign * best:
            state.best, state.best_step, state.stale = found, state.step, 0
            if self.processes.is_first:
                save_atomically(self._weights(), self._best_path)
        else:
            state.stale += 1
        epoch, part = divmod(state.step, self.order.steps_per_epoch)
        keep = self.config.keep_every
        if keep and not part and epoch % keep == 0 and self.processes.is_first:
            self.output.write(self.out / f"epoch-{epoch}", self.learner.model)

    def _tell_samples(self, objective: Captions) -> None:
        if not self.processes.is_first:
            return
        self.output.log_samples(self.state.step, objective.samples)
        if objective.warning:
            self._say(f"warning: {objective.warning}")
            self._write_log({"step": self.state.step, "warning": objective.warning})

    # Where the run stands

    def _weights(self) -> dict[str, Any]:
        named = self.learner.model.named_parameters()
        return {name: p.detach() for name, p in named if p.requires_grad}

    def _set_weights(self, values: Mapping[str, Any]) -> None:
        named = dict(self.learner.model.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                named[name].copy_(value)

    def save(self) -> None:
        """Write the checkpoint that a resumed run goes on from."""
        if self.processes.is_first:
            value = {
                "identity": self.identity,
                "state": asdict(self.state),
                "weights": self._weights(),
                "beside": [p.detach() for p in self.objective.parameters()],
                "objective": self.objective.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            save_atomically(value, self._checkpoint_path)
        self.processes.wait()

    def _resume(self) -> None:
        saved = load_checkpoint(self._checkpoint_path, identity=self.identity)
        self.state = State(**saved["state"])
        self._set_weights(saved["weights"])
        with torch.no_grad():
            for mine, value in zip(self.objective.parameters(), saved["beside"], strict=True):
                mine.copy_(value)
        self.objective.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.scaler.load_state_dict(saved["scaler"])
        self._say(f"going on from step {self.state.step:,}")

    @property
    def _checkpoint_path(self) -> Path:
        return self.out / "run" / "checkpoint.pt"

    @property
    def _best_path(self) -> Path:
        return self.out / "run" / "best.pt"

    # The end

    def finish(self) -> FinetuneReport:
        """Write the best weights, and the last ones in `out/last` where they are others."""
        state = self.state
        report = None
        if self.processes.is_first:
            if state.best_step != state.step:
                self.output.write(self.out / "last", self.learner.model)
            self._set_weights(torch.load(self._best_path, weights_only=True))
            trained = Trained(
                steps=state.step,
                best_step=state.best_step,
                seconds=round(state.seconds, 2),
                start=state.start,
                final=state.best,
            )
            report = self.output.finish(trained, self.learner.model)
            shutil.rmtree(self.out / "run")
        found: FinetuneReport = self.processes.told_by_first([report])[0]
        return found

    def close(self) -> None:
        """End the threads and leave the group of processes."""
        self.ahead.close()
        if self.board is not None:
            self.board.close()
        self.processes.end()

    def _start_bar(self) -> None:
        if self.processes.is_first:
            self.progress.start("fine-tuning", self.total)
            self.progress.advance(self.state.step)

    def _say(self, line: str) -> None:
        if self.processes.is_first:
            self.progress.say(line)

    def _write_log(self, line: Mapping[str, Any]) -> None:
        if not self.processes.is_first:
            return
        self.log.write(line)
        for name, value in line.items():
            if self.board is not None and isinstance(value, float):
                self.board.add_scalar(name, value, line["step"])
