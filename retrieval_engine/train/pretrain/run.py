"""The loop of every pretraining: steps, a log, validations, and a checkpoint to go on from.

What a step and a validation are, and what is written at the end, is in the two recipes:
`trainer.py` from scratch, `cached/trainer.py` on a backbone's states.
"""

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from retrieval_engine.errors import TrainingError
from retrieval_engine.models.device import is_fast_at_bfloat16
from retrieval_engine.models.lexicon import counted, write_word_counts
from retrieval_engine.models.pickled import load_pickled
from retrieval_engine.progress import Progress
from retrieval_engine.records import Json
from retrieval_engine.train.pretrain.report import CURVES, PretrainReport
from retrieval_engine.train.pretrain.run_config import RunConfig
from retrieval_engine.train.resume import load_checkpoint, save_atomically
from retrieval_engine.train.runlog import OnValidation, RunLog, draw_curves
from retrieval_engine.train.trackers import RUN, RunTracker

if TYPE_CHECKING:
    from transformers import BertTokenizer

_SAVE_EVERY_S = 120.0
_LOG_EVERY = 10


class Stateful(Protocol):
    """A part of a run that a checkpoint keeps."""

    def state_dict(self) -> Any:
        """What `load_state_dict` needs to go on exactly."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from a saved state."""


@dataclass(slots=True, kw_only=True)
class RunState:
    """Where a run stands, besides weights and optimisers.

    The order of the pictures, the augmentation and the negatives of a step follow from the seed
    and the step's number alone, so no random state needs keeping.

    Attributes:
        step: steps done.
        seconds: training time so far, over all sessions; validation and reading data excluded.
        kept: figure of the weights that would be written; -1 before there are any.
        kept_step: the step they are of.
    """

    step: int = 0
    seconds: float = 0.0
    kept: float = -1.0
    kept_step: int = 0


class PretrainRun(ABC):
    """One pretraining, from the data to the directory.

    A recipe sets `config`, `device`, `identity`, `model` and `state`, then calls `_begin`.

    Attributes:
        identity: digest of the config and the data: a checkpoint of another is refused.
        on_validation: see `OnValidation`.
    """

    config: RunConfig
    identity: str
    device: torch.device
    model: nn.Module
    state: RunState

    def __init__(self, out: Path, progress: Progress, *, resume: bool, tracker: str = "") -> None:
        self.out, self.progress, self._tracker = out, progress, tracker
        self.on_validation: OnValidation | None = None
        self._checkpoint, self._best = out / "run" / "checkpoint.pt", out / "run" / "best.pt"
        if resume:
            return
        if (out / "config.json").exists():
            raise TrainingError(f"{out} already holds a model", hint="give another `out`")
        if self._checkpoint.exists():
            raise TrainingError(
                f"{out} holds an interrupted run", hint="go on with `resume`, or give another `out`"
            )

    def _begin(self, *, resume: bool) -> None:
        """Make the directory, or go on from what is in it."""
        (self.out / "run").mkdir(parents=True, exist_ok=True)
        if resume:
            saved = load_checkpoint(self._checkpoint, identity=self.identity)
            self._stand(saved["state"])
            for name, part in self._parts().items():
                part.load_state_dict(saved[name])
            self.progress.say(f"going on from step {self.state.step:,}")
        step, tracker = self.state.step, None
        if name := self._tracker:
            kept, settings = self.out / "run" / RUN, self.config.to_json()
            tracker = RunTracker(name, self.out, settings, kept=kept, from_step=step)
        self.log = RunLog(self.out / "log.jsonl", keep_steps=step, tracker=tracker)

    def _stand(self, at: Mapping[str, Any]) -> None:
        """Set `state` to where the checkpoint's run stood."""
        self.state = type(self.state)(**at)

    # What a recipe says

    @abstractmethod
    def _step(self) -> Mapping[str, Tensor]:
        """Take one step; its losses by name."""

    @abstractmethod
    def _validate(self) -> None:
        """Judge the weights, and `_keep` those that would be written."""

    @abstractmethod
    def _parts(self) -> Mapping[str, Stateful]:
        """What the checkpoint keeps besides `state`, which is set before."""

    @abstractmethod
    def finish(self) -> PretrainReport:
        """Write the weights that were kept as a model directory."""

    # The loop

    def run(self) -> PretrainReport:
        """Train and finish; the tracker is closed however it ends."""
        try:
            self.train()
            return self.finish()
        finally:
            self.log.close()

    def train(self) -> None:
        """Run the steps that are left."""
        config, state = self.config, self.state
        self.progress.start("pretraining", config.steps)
        self.progress.advance(state.step)
        self.model.train()
        saved_at = time.monotonic()
        while not self._is_over():
            started = time.monotonic()
            losses = self._step()
            state.step += 1
            state.seconds += time.monotonic() - started
            if state.step % _LOG_EVERY == 0 or self._is_over():
                line = {name: round(float(value.detach()), 5) for name, value in losses.items()}
                self.log.write({"step": state.step, **line, "seconds": round(state.seconds, 2)})
            self.progress.advance()
            is_due = state.step % config.eval_every == 0 or self._is_over()
            if is_due:
                self._validate()
            if is_due or time.monotonic() - saved_at > _SAVE_EVERY_S:
                self.save()
                saved_at = time.monotonic()
        self.progress.stop()

    def _done(self) -> float:
        """Part of the run that is over, by steps or by the clock, whichever is further."""
        by_steps = self.state.step / self.config.steps
        limit_s = self.config.minutes * 60
        return max(by_steps, self.state.seconds / limit_s) if limit_s else by_steps

    def _is_over(self) -> bool:
        return self._done() >= 1

    def _autocast(self, *, on_cuda: bool = True) -> AbstractContextManager[object]:
        """The arithmetic of a step: bfloat16 where asked for.

        Args:
            on_cuda: whether `auto` is bfloat16 there; on a CPU it is where that is fast at it.
        """
        kind, asked = self.device.type, self.config.dtype
        auto = on_cuda if kind == "cuda" else is_fast_at_bfloat16()
        enabled = auto if asked == "auto" else asked == "bfloat16"
        return torch.autocast(kind, torch.bfloat16, enabled=enabled)

    def _backward(self, loss: Tensor, hint: str) -> None:
        """Clipped gradients of a loss; `hint` says what to do where it is not finite."""
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss is {float(loss)} at step {self.state.step}", hint=hint)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    def _keep(self, figure: float, weights: nn.Module) -> None:
        """Keep these weights as those that would be written."""
        self.state.kept, self.state.kept_step = figure, self.state.step
        save_atomically(weights.state_dict(), self._best)

    def _told(self, figures: Mapping[str, Json]) -> None:
        """Say what weights that may be kept are worth."""
        if self.on_validation:
            numbers = {n: float(v) for n, v in figures.items() if isinstance(v, int | float)}
            self.on_validation(self.state.step, numbers)

    def save(self) -> None:
        """Write the checkpoint that a resumed run goes on from."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        value = {"identity": self.identity, "state": asdict(self.state), **parts}
        save_atomically(value, self._checkpoint)

    # The end

    def _report(self, mean_recall: float, weights: Iterable[Tensor]) -> PretrainReport:
        """Take the weights that were kept; what the run came to, with the weights it ships."""
        self.model.load_state_dict(load_pickled(self._best))
        return PretrainReport(
            out=self.out,
            steps=self.state.step,
            minutes=round(self.state.seconds / 60, 2),
            best_step=self.state.kept_step,
            mean_recall=round(mean_recall, 2),
            parameters=sum(p.numel() for p in weights),
        )

    def _count_words(self, tokenizer: "BertTokenizer", captions: Iterable[str]) -> None:
        """Tell, beside the model to come, how often its training had each word."""
        write_word_counts(self.out, counted(tokenizer, captions))

    def _close(self) -> None:
        """Draw the curves and take the run's own files away."""
        draw_curves(self.out / "log.jsonl", self.out / "curves.png", CURVES)
        shutil.rmtree(self.out / "run")
