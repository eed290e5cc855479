"""Pretrains a BLIP from scratch. Read from top to bottom: it is the whole recipe.

1. The source's pictures are drawn or decoded once; a tokenizer is learned from the captions.
2. Concept stage: the vision tower alone learns to name what is in the picture and in each patch.
3. Joint stage: contrastive (ITC), matching (ITM) and caption (LM) losses, the concepts beside them.
4. The weights that had the best mean recall on held-out items are written in transformers' layout.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from retrieval_engine.errors import TrainingError
from retrieval_engine.fingerprint import digest
from retrieval_engine.models.blip.attention import use_fused_attention
from retrieval_engine.models.device import pick_device
from retrieval_engine.models.pickled import load_pickled
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.train.pretrain.batches import Batcher
from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.export import export
from retrieval_engine.train.pretrain.joint_loss import Objective
from retrieval_engine.train.pretrain.model import build_model
from retrieval_engine.train.pretrain.optimisers import (
    concept_optimisers,
    joint_optimisers,
)
from retrieval_engine.train.pretrain.report import CURVES, PretrainReport, record
from retrieval_engine.train.pretrain.state import RunState
from retrieval_engine.train.pretrain.texts import Texts
from retrieval_engine.train.pretrain.tokenizer import make_tokenizer
from retrieval_engine.train.pretrain.training_set import load_sets
from retrieval_engine.train.pretrain.validation import validate
from retrieval_engine.train.resume import load_checkpoint, save_atomically
from retrieval_engine.train.runlog import RunLog, draw_curves
from retrieval_engine.train.schedule import step_factor

_CONCEPT_FLOOR = 0.2  # the concept stage ends at a fifth of its step: the joint stage goes on
_SAVE_EVERY_S = 60.0
_LOG_EVERY = 10
_NOISE = 0.25  # per cent of mean recall that two validations may differ by chance

__all__ = ["PretrainReport", "Run", "pretrain"]


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PretrainReport:
    """Train a BLIP and write it as one directory that transformers loads.

    Args:
        config: source and recipe.
        out: directory of the model; made where missing. `out/run` holds what a resumed run needs
            and goes when the run is complete.
        resume: go on where an interrupted run of the same config stopped.
        cache: where the drawn pictures are kept for other runs; `out/run` by default.
        progress: told about the run.

    Raises:
        TrainingError: no captions, too few items, a run that cannot be resumed, a loss that is
            not finite, or `out` already holds a model.
        UsageError: an option that cannot be.
        SourceError: the source cannot be read.
    """
    run = Run(config, out, cache or out / "run" / "cache", progress or Silent(), resume=resume)
    run.train()
    return run.finish()


class Run:
    """One pretraining, from the data to the directory."""

    def __init__(
        self, config: PretrainConfig, out: Path, cache: Path, progress: Progress, *, resume: bool
    ) -> None:
        _refuse_to_overwrite(out, resume=resume)
        self.out, self.progress = out, progress
        self.device = pick_device(config.device)
        self.train_set, self.val_set = load_sets(config, cache, progress)
        if config.epochs:
            steps = config.epochs * (len(self.train_set) // config.batch_size)
            config = replace(config, steps=steps)
        self.config = config
        self.tokenizer = make_tokenizer(
            config.tokenizer, self.train_set.captions, limit=config.size.vocabulary
        )
        length = config.size.text_length
        self.texts = Texts(self.train_set.captions, self.tokenizer, length)
        self.val_texts = Texts(self.val_set.captions, self.tokenizer, length)
        self.batcher = Batcher(self.train_set, self.texts, config, self.device)
        self.model = build_model(
            config.size,
            self.tokenizer,
            concepts=len(self.train_set.concepts),
            regions=sum(self.train_set.pictures.aspects),
            seed=config.seed,
        ).to(self.device)
        if self.device.type == "cuda":  # on a CPU the fused kernel's backward is half as fast
            use_fused_attention(self.model)
        self.objective = Objective(self.model, self.train_set, self.texts, config)
        vocabulary = self.tokenizer.get_vocab()
        self.identity = digest([config.identity, self.train_set.key, self.val_set.key, vocabulary])
        self.state = RunState()
        self.optimisers = concept_optimisers(self.model, config)
        self._checkpoint, self._best = out / "run" / "checkpoint.pt", out / "run" / "best.pt"
        (out / "run").mkdir(parents=True, exist_ok=True)
        if resume:
            self._resume()
        self.log = RunLog(out / "log.jsonl", keep_steps=self.state.step)

    # The loop

    def train(self) -> None:
        """Run the steps that are left."""
        config, state = self.config, self.state
        self.progress.start("pretraining", config.steps)
        self.progress.advance(state.step)
        self.model.train()
        saved_at = time.monotonic()
        while not self._is_over():
            started = time.monotonic()
            if not state.in_joint_stage and self._done() >= config.stage_share:
                self.optimisers = joint_optimisers(self.model, config)
                state.in_joint_stage = True
            losses = self._step()
            state.step += 1
            state.seconds += time.monotonic() - started
            self._log_step(losses)
            self.progress.advance()
            is_due = state.step % config.eval_every == 0 or self._is_over()
            if is_due:
                self._validate()
            if is_due or time.monotonic() - saved_at > _SAVE_EVERY_S:
                self.save()
                saved_at = time.monotonic()
        self.progress.stop()

    def _step(self) -> Mapping[str, Tensor]:
        done = self._stage_done()
        batch = self.batcher.batch(self.state.step, with_texts=self.state.in_joint_stage)
        with self._autocast():
            if self.state.in_joint_stage:
                losses = self.objective.joint(batch, self.state.step, hardness=min(1.0, 2 * done))
            else:
                losses = self.objective.concepts(batch)
        floor = 0.0 if self.state.in_joint_stage else _CONCEPT_FLOOR
        self._update(losses.total, step_factor(done, self.config.warmup, floor))
        return losses.parts

    def _update(self, loss: Tensor, factor: float) -> None:
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss is {float(loss)} at step {self.state.step}",
                hint="lower `matrix_lr`, or use `dtype='float32'`",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimisers.step(factor)

    def _log_step(self, losses: Mapping[str, Tensor]) -> None:
        if self.state.step % _LOG_EVERY and not self._is_over():
            return
        line = {name: round(float(value.detach()), 5) for name, value in losses.items()}
        line["seconds"] = round(self.state.seconds, 2)
        self.log.write({"step": self.state.step, **line})

    # Where the run stands

    def _done(self) -> float:
        """Part of the run that is over, by steps or by the clock, whichever is further."""
        by_steps = self.state.step / self.config.steps
        limit_s = self.config.minutes * 60
        return max(by_steps, self.state.seconds / limit_s) if limit_s else by_steps

    def _stage_done(self) -> float:
        share = self.config.stage_share
        if self.state.in_joint_stage:
            return (self._done() - share) / (1 - share)
        return self._done() / share

    def _is_over(self) -> bool:
        stale = bool(self.config.patience) and self.state.stale >= self.config.patience
        return stale or self._done() >= 1

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        wanted = self.config.dtype
        if wanted == "auto":
            fast = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
            wanted = "bfloat16" if fast else "float32"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted == "bfloat16")

    def _validate(self) -> None:
        state, config = self.state, self.config
        found = validate(self.model, self.val_set, self.val_texts, self.batcher)
        self.log.write({"step": state.step, **found.to_json()})
        left = state.seconds / 60 * (1 / self._done() - 1)
        self.progress.say(
            f"step {state.step:,} of {config.steps:,}: {found}; about {left:.0f} minutes left"
        )
        if not (state.in_joint_stage or self._is_over()):
            return
        mean = found.recall.mean_recall
        state.stale, state.best = (0, mean) if mean > state.best else (state.stale + 1, state.best)
        if mean > state.best - _NOISE:  # of equals the later: its captions are better
            state.kept, state.kept_step = mean, state.step
            save_atomically(self.model.state_dict(), self._best)

    def save(self) -> None:
        """Write the checkpoint that a resumed run goes on from."""
        value = {
            "identity": self.identity,
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "optimisers": self.optimisers.state_dict(),
        }
        save_atomically(value, self._checkpoint)

    def _resume(self) -> None:
        saved = load_checkpoint(self._checkpoint, identity=self.identity)
        self.state = RunState(**saved["state"])
        self.model.load_state_dict(saved["model"])
        if self.state.in_joint_stage:
            self.optimisers = joint_optimisers(self.model, self.config)
        self.optimisers.load_state_dict(saved["optimisers"])
        self.progress.say(f"going on from step {self.state.step:,}")

    # The end

    def finish(self) -> PretrainReport:
        """Write the best weights as a model directory and take the run's own files away."""
        best = load_pickled(self._best)
        self.model.load_state_dict(best)
        report = PretrainReport(
            out=self.out,
            steps=self.state.step,
            minutes=round(self.state.seconds / 60, 2),
            best_step=self.state.kept_step,
            mean_recall=round(self.state.kept, 2),
            parameters=sum(p.numel() for p in self.model.shipped_parameters()),
        )
        export(
            self.model,
            self.tokenizer,
            self.out,
            dtype=getattr(torch, self.config.save_dtype),
            facts=record(report, self.config, self.train_set, self.model),
        )
        draw_curves(self.out / "log.jsonl", self.out / "curves.png", CURVES)
        shutil.rmtree(self.out / "run")
        return report


def _refuse_to_overwrite(out: Path, *, resume: bool) -> None:
    if resume:
        return
    if (out / "config.json").exists():
        raise TrainingError(f"{out} already holds a model", hint="give another `out`")
    if (out / "run" / "checkpoint.pt").exists():
        raise TrainingError(
            f"{out} holds an interrupted run", hint="go on with `resume`, or give another `out`"
        )
