"""Fine-tunes a model on a store. Read from top to bottom: it is the one loop for every task.

1. The store says which images to train and to select on, and which model made its states.
2. The modules that the task needs are loaded; all of them are trained, or adapters in them.
3. Each step: a batch decided by the seed and the step's number alone, losses of the task's
   objective, gradients added up over the processes, AdamW under a cosine.
4. The weights that validated best are written: a model directory, or an adapter.

A run that was killed goes on where it stood when the same command is given again.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retrieval_engine.errors import TrainingError
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.learner import CaptionLearner
from retrieval_engine.models.pickled import load_pickled
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.store import open_store
from retrieval_engine.train.finetune.captioned import Group
from retrieval_engine.train.finetune.captioning import CaptionObjective
from retrieval_engine.train.finetune.config import FinetuneConfig
from retrieval_engine.train.finetune.crossing import crossing_notes
from retrieval_engine.train.finetune.distributed import Processes
from retrieval_engine.train.finetune.model_output import FinetuneReport, Output
from retrieval_engine.train.finetune.objective import FinetuneState
from retrieval_engine.train.finetune.run_parts import open_parts, trained_parameters
from retrieval_engine.train.finetune.vision_states import Ahead
from retrieval_engine.train.lora import refuse_dead
from retrieval_engine.train.resume import load_checkpoint, save_atomically
from retrieval_engine.train.runlog import OnValidation, RunLog
from retrieval_engine.train.schedule import step_factor
from retrieval_engine.train.trackers import RUN, RunTracker, check_tracker

_SAVE_EVERY_S = 120.0
_LOG_EVERY = 10
_SHOWN_IDS = 8


def finetune(
    config: FinetuneConfig,
    out: Path,
    *,
    tracker: str = "",
    progress: Progress | None = None,
    on_validation: OnValidation | None = None,
) -> FinetuneReport:
    """Fine-tune a model and write it as a directory that `open_encoder` or a captioner opens.

    Args:
        config: store, task and recipe.
        out: directory of the model or adapter; `out/run` holds what a killed run goes on from and
            is gone when the run is complete.
        tracker: where the log goes as well, see `trackers.TRACKERS`; empty for nowhere.
        progress: told about the run.
        on_validation: see `OnValidation`; of several processes only the first calls it.

    Raises:
        TrainingError: no captions, `out` holds another run, a loss that is not finite.
        FeatureMissing: training from the cache of a store without `tokens`.
        FingerprintMismatch: the model's vision tower did not make the store's states.
        UsageError: an option that cannot be.
        MissingExtra: the tracker is not installed.
    """
    check_tracker(tracker)
    run = FinetuneRun(config, out, progress or Silent(), tracker)
    run.on_validation = on_validation
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
            run.train()
        return run.finish()
    finally:
        run.close()


class FinetuneRun:
    """One fine-tuning, from the store to the directory."""

    def __init__(
        self, config: FinetuneConfig, out: Path, progress: Progress, tracker: str = ""
    ) -> None:
        if (out / "training.json").exists():
            raise TrainingError(f"{out} already holds a trained model", hint="give another `out`")
        self.config, self.out = config, out
        run = out / "run"
        self._checkpoint_path, self._best_path = run / "checkpoint.pt", run / "best.pt"
        self.processes = Processes(config.device)
        self.on_validation: OnValidation | None = None
        self.progress = progress if self.processes.is_first else Silent()
        self.parts = parts = open_parts(config, self.processes)
        self.sets, self.order, self.loader = parts.sets, parts.order, parts.loader
        self.learner, self.objective = parts.learner, parts.objective
        self.optimiser, self.peak, self.scaler = parts.optimiser, parts.peak, parts.scaler
        self.progress.say(f"{len(self.sets.train):,} images to train on; {self.sets.how}")
        if self.processes.is_first and not (out / "run").exists():
            for line in crossing_notes(open_store(config.store), self.sets):
                self.progress.say(line)
        self.total = config.epochs * self.order.steps_per_epoch
        self.total = min(self.total, config.max_steps or self.total)
        self.every = config.eval_every or self.order.steps_per_epoch
        self.identity = digest([config.to_json(), self.sets.train.digest, self.learner.vision])
        if config.negatives:
            mined = Path(config.negatives).read_bytes()
            self.identity = digest([self.identity, hashlib.sha256(mined).hexdigest()])
        self.state = FinetuneState()
        prompt = parts.learner.prompt if isinstance(parts.learner, CaptionLearner) else None
        self.output = Output(config, parts.checkpoint, out, self.sets, parts.wrapped, prompt=prompt)
        self.ahead = Ahead(self.batch)
        (out / "run").mkdir(parents=True, exist_ok=True)
        if self._checkpoint_path.exists():
            self._resume()
        self.log = RunLog(
            out / "log.jsonl",
            keep_steps=self.state.step,
            tracker=self._tracker(tracker),
            is_kept=self.processes.is_first,
        )

    def _tracker(self, name: str) -> RunTracker | None:
        if not name or not self.processes.is_first:
            return None
        kept, step = self.out / "run" / RUN, self.state.step
        return RunTracker(name, self.out, self.config.to_json(), kept=kept, from_step=step)

    # The loop

    def train(self) -> None:
        """Run the steps that are left."""
        state = self.state
        self.progress.say(str(self.output.counted(self.learner.model)))
        if not state.start:
            state.start = self._figures()
            self.log.write({"step": 0, **state.start})
        self.progress.start("fine-tuning", self.total)
        self.progress.advance(state.step)
        saved_at = time.monotonic()
        while not self._is_over():
            self._step()
            self._keep()
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
        scale = float(self.scaler.scale(torch.ones((), device=self.processes.device)))
        losses = self.objective.step(batch, state.step, along=along, scale=scale)
        if config.lora and state.step == 0:
            refuse_dead(self.learner.model)
        lr = self.peak * step_factor(state.step / self.total, config.warmup)
        norm = self._update(group, losses, lr, scale)
        state.step += 1
        state.seconds += time.monotonic() - started
        if state.step % _LOG_EVERY == 0 or self._is_over():
            rounded = {name: round(value, 5) for name, value in losses.items()}
            times = {"seconds": round(state.seconds, 2), "lr": lr}
            if math.isfinite(norm):
                rounded["norm"] = round(norm, 4)
            if state.skipped:
                rounded["skipped"] = state.skipped
            self.log.write({"step": state.step, **times, **rounded})

    def _update(self, group: Group, losses: Mapping[str, float], lr: float, scale: float) -> float:
        """Add up the gradients over the processes and take the step; their norm before clipping.

        Gradients that overflow float16 because of the scale are no step: the scale is halved.
        """
        trained = trained_parameters(self.learner, self.objective)
        self.processes.all_reduce_gradients(trained)
        self.scaler.unscale_(self.optimiser)
        norm = float(nn.utils.clip_grad_norm_(trained, self.config.clip))
        overflows = not math.isfinite(norm)
        if not all(map(math.isfinite, losses.values())) or (overflows and scale <= 1):
            self._stop_at(group, losses)
        self.state.skipped += overflows
        for each in self.optimiser.param_groups:
            each["lr"] = lr
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def _stop_at(self, group: Group, losses: Mapping[str, float]) -> None:
        ids = [self.sets.train.ids[i] for i in group.images.tolist()]
        shown = ", ".join(ids[:_SHOWN_IDS]) + (", …" if len(ids) > _SHOWN_IDS else "")
        values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise TrainingError(
            f"loss or gradient is not finite at step {self.state.step} ({values}); the batch is "
            f"{shown}",
            hint="lower `lr`, or use `dtype='float32'`; the run before this step is kept",
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
        found = self.processes.broadcast(found)
        return {name: round(value, 5) for name, value in found.items()}

    def _validate(self) -> None:
        state, objective = self.state, self.objective
        found = self._figures()
        self.log.write({"step": state.step, **found})
        words = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items())
        self.progress.say(f"step {state.step:,} of {self.total:,}: {', '.join(words)}")
        better = objective.higher_is_better
        improved = state.improves(found, objective.metric, higher_is_better=better)
        if not self.processes.is_first:
            return
        if isinstance(objective, CaptionObjective):
            self._tell_samples(objective)
        if improved:
            save_atomically(self.parts.weights(), self._best_path)
        if self.on_validation:
            self.on_validation(state.step, found)

    def _keep(self) -> None:
        """Write the model as it stands after every so many passes."""
        epoch, part = divmod(self.state.step, self.order.steps_per_epoch)
        keep = self.config.keep_every
        if keep and not part and epoch % keep == 0 and self.processes.is_first:
            self.output.write(self.out / f"epoch-{epoch}", self.learner.model)

    def _tell_samples(self, objective: CaptionObjective) -> None:
        self.output.log_samples(self.state.step, objective.samples)
        if objective.warning:
            self.progress.say(f"warning: {objective.warning}")
            self.log.write({"step": self.state.step, "warning": objective.warning})

    # Where the run stands

    def save(self) -> None:
        """Write the checkpoint that a resumed run goes on from."""
        if self.processes.is_first:
            at = {"identity": self.identity, "state": asdict(self.state)}
            save_atomically(at | self.parts.state_dict(), self._checkpoint_path)
        self.processes.barrier()

    def _resume(self) -> None:
        saved = load_checkpoint(self._checkpoint_path, identity=self.identity)
        self.state = FinetuneState(**saved["state"])
        self.parts.load_state_dict(saved)
        self.progress.say(f"going on from step {self.state.step:,}")

    # The end

    def finish(self) -> FinetuneReport:
        """Write the best weights, and the last ones in `out/last` where they are others."""
        state = self.state
        report: FinetuneReport | None = None
        if self.processes.is_first:
            if state.best_step != state.step:
                self.output.write(self.out / "last", self.learner.model)
            self.parts.set_weights(load_pickled(self._best_path))
            report = self.output.finish(state, self.learner.model)
            shutil.rmtree(self.out / "run")
        report = self.processes.broadcast(report)
        assert report is not None
        return report

    def close(self) -> None:
        """End the threads and leave the group of processes."""
        self.ahead.close()
        self.log.close()
        self.processes.end()
