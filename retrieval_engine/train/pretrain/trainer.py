"""Pretrains a BLIP from scratch. Read from top to bottom: it is the whole recipe.

1. The source's pictures are drawn or decoded once; a tokenizer is learned from the captions.
2. Concept stage: the vision tower alone learns to name what is in the picture and in each patch.
3. Joint stage: contrastive (ITC), matching (ITM) and caption (LM) losses, the concepts beside them.
4. The weights that had the best mean recall on held-out items are written in transformers' layout.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrieval_engine.fingerprint import digest
from retrieval_engine.models.blip.attention import use_fused_attention
from retrieval_engine.models.device import pick_device
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.train.pretrain.batches import BatchMaker
from retrieval_engine.train.pretrain.config import PretrainConfig
from retrieval_engine.train.pretrain.export import export
from retrieval_engine.train.pretrain.joint_loss import Objective
from retrieval_engine.train.pretrain.model import PretrainModel, build_model
from retrieval_engine.train.pretrain.optimisers import concept_optimisers, joint_optimisers
from retrieval_engine.train.pretrain.report import PretrainReport, record
from retrieval_engine.train.pretrain.run import PretrainRun, RunState, Stateful
from retrieval_engine.train.pretrain.texts import Texts
from retrieval_engine.train.pretrain.tokenizer import make_tokenizer
from retrieval_engine.train.pretrain.training_set import load_sets
from retrieval_engine.train.pretrain.validation import validate
from retrieval_engine.train.runlog import OnValidation
from retrieval_engine.train.schedule import step_factor
from retrieval_engine.train.trackers import check_tracker

_CONCEPT_FLOOR = 0.2  # the concept stage ends at a fifth of its step: the joint stage goes on
_NOISE = 0.25  # per cent of mean recall that two validations may differ by chance

__all__ = ["PretrainReport", "Run", "pretrain"]


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    cache: Path | None = None,
    tracker: str = "",
    progress: Progress | None = None,
    on_validation: OnValidation | None = None,
) -> PretrainReport:
    """Train a BLIP and write it as one directory that transformers loads.

    Args:
        config: source and recipe.
        out: directory of the model; made where missing. `out/run` holds what a resumed run needs
            and goes when the run is complete.
        resume: go on where an interrupted run of the same config stopped.
        cache: where the drawn pictures are kept for other runs; `out/run` by default.
        tracker: where the log goes as well, see `trackers.TRACKERS`; empty for nowhere.
        progress: told about the run.
        on_validation: see `OnValidation`; not called in the concept stage.

    Raises:
        MissingExtra: the tracker is not installed.
        TrainingError: no captions, too few items, a run that cannot be resumed, a loss that is
            not finite, or `out` already holds a model.
        UsageError: an option that cannot be.
        SourceError: the source cannot be read.
    """
    check_tracker(tracker)
    cache, progress = cache or out / "run" / "cache", progress or Silent()
    run = Run(config, out, cache, progress, resume=resume, tracker=tracker)
    run.on_validation = on_validation
    return run.run()


@dataclass(slots=True, kw_only=True)
class ScratchState(RunState):
    """Where a run stands; `kept` is a mean recall.

    Attributes:
        in_joint_stage: text has come in.
        best: best mean recall so far in per cent; -1 before the first validation.
        stale: validations since it rose.
    """

    in_joint_stage: bool = False
    best: float = -1.0
    stale: int = 0


class Run(PretrainRun):
    """One pretraining from scratch."""

    config: PretrainConfig
    model: PretrainModel
    state: ScratchState

    def __init__(
        self,
        config: PretrainConfig,
        out: Path,
        cache: Path,
        progress: Progress,
        *,
        resume: bool,
        tracker: str = "",
    ) -> None:
        super().__init__(out, progress, resume=resume, tracker=tracker)
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
        self.batcher = BatchMaker(self.train_set, self.texts, config, self.device)
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
        self.state = ScratchState()
        self.optimisers = concept_optimisers(self.model, config)
        self._begin(resume=resume)

    # What the loop calls

    def _step(self) -> Mapping[str, Tensor]:
        if not self.state.in_joint_stage and self._done() >= self.config.stage_share:
            self.state.in_joint_stage = True
            self.optimisers = joint_optimisers(self.model, self.config)
        done = self._stage_done()
        batch = self.batcher.batch(self.state.step, with_texts=self.state.in_joint_stage)
        with self._autocast():
            if self.state.in_joint_stage:
                losses = self.objective.joint(batch, self.state.step, hardness=min(1.0, 2 * done))
            else:
                losses = self.objective.concepts(batch)
        floor = 0.0 if self.state.in_joint_stage else _CONCEPT_FLOOR
        self._backward(losses.total, "lower `matrix_lr`, or use `dtype='float32'`")
        self.optimisers.step(step_factor(done, self.config.warmup, floor))
        return losses.parts

    # Where the run stands

    def _stage_done(self) -> float:
        share = self.config.stage_share
        if self.state.in_joint_stage:
            return (self._done() - share) / (1 - share)
        return self._done() / share

    def _is_over(self) -> bool:
        stale = bool(self.config.patience) and self.state.stale >= self.config.patience
        return stale or super()._is_over()

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
            self._keep(mean, self.model)
        self._told(found.to_json())

    def _parts(self) -> Mapping[str, Stateful]:
        return {"model": self.model, "optimisers": self.optimisers}

    def _stand(self, at: Mapping[str, Any]) -> None:
        super()._stand(at)
        if self.state.in_joint_stage:
            self.optimisers = joint_optimisers(self.model, self.config)

    # The end

    def finish(self) -> PretrainReport:
        """Write the best weights as a model directory and take the run's own files away."""
        report = self._report(self.state.kept, self.model.shipped_parameters())
        settings = self.config.to_json()
        default = PretrainConfig(source=self.config.source).to_json()
        counted = "steps" if self.config.epochs else ""  # epochs say it
        changed = {k: v for k, v in settings.items() if v != default[k] and k != counted}
        self._count_words(self.tokenizer, self.train_set.captions)
        export(
            self.model,
            self.tokenizer,
            self.out,
            dtype=getattr(torch, self.config.save_dtype),
            facts=record(report, settings, changed, self.train_set, self.model.temperature),
        )
        self._close()
        return report
