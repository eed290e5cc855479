"""A training command as a sweep drives it: settings become the words that would be typed."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval_engine.errors import UsageError
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.train.runlog import OnValidation

_RECALLS = (
    "mean_recall",
    *(f"{side}@{k}" for side in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
)
FIGURES = {
    "train-head": _RECALLS,
    "finetune retrieval": _RECALLS,
    "finetune caption": ("caption_loss", "cider", "bleu4"),
    "pretrain": (*_RECALLS, "concept_precision", "matching", "next_word"),
}
"""Commands that can be swept, with the figures they validate by; the first is the objective."""
_OURS = {"out": "each trial has its own", "resume": "trials are done whole"}
_SILENT = {"json": "the sweep has its own"}
_TEMPORARY = Path("out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A parameter of a command under one of the names it is typed by."""

    parameter: click.Parameter
    typed: str

    def words(self, value: Json) -> list[str]:
        """The words that give it a value; none for a flag that is off."""
        parameter = self.parameter
        if isinstance(parameter, click.Option) and parameter.is_flag:
            on, off = parameter.opts, parameter.secondary_opts
            if self.typed in off:
                on, off = off, on
            return [self.typed] if value else off[:1]
        text = repr(value) if isinstance(value, float) else str(value)
        return [self.typed, text] if isinstance(parameter, click.Option) else [text]

    @property
    def kind(self) -> type:
        """What a value must be: bool, int, float or str."""
        known: dict[str, type] = {"boolean": bool, "integer": int, "integer range": int}
        known |= {"float": float, "float range": float}
        return known.get(self.parameter.type.name, str)


class CommandTrainer:
    """Trains as a command of the command line does; see `train.sweep.Trainer`.

    Args:
        name: of the command, e.g. `finetune retrieval`.
        fixed: what every trial is given, by the names of the command's options.

    Attributes:
        settings: what may be given, by name without dashes in front.
    """

    def __init__(self, name: str, fixed: Mapping[str, Json]) -> None:
        from retrieval_engine.cli import COMMANDS, main
        from retrieval_engine.cli.wording import context_of

        first, _, task = name.partition(" ")
        module: Any = COMMANDS.load(first)
        self.name, self.fixed = name, fixed
        self.spoken = context_of(main, name.split())
        self._command = self.spoken.command
        self.settings = dict(_settings(self._command))
        self._before = (task,) if task else ()
        self._train: Callable[..., Any] = module.train
        self._configured: Callable[..., Any] = module.configured

    def config(self, values: Mapping[str, Json]) -> Any:
        """The trainer's config with these values.

        Raises:
            UsageError: it cannot be.
        """
        with self._context(values, _TEMPORARY) as context:
            try:
                return self._configured(*self._before, context.params)
            except click.UsageError as error:
                raise UsageError(error.format_message()) from error

    def train(self, values: Mapping[str, Json], out: Path, on_validation: "OnValidation") -> int:
        """See `Trainer.train`."""
        self.config(values)
        with self._context(values, out) as context:
            report = self._train(*self._before, context.params, on_validation=on_validation)
        return int(report.best_epoch if hasattr(report, "best_epoch") else report.best_step)

    def command(self, values: Mapping[str, Json], out: Path) -> str:
        """See `Trainer.command`."""
        return shlex.join(["vlre", *self.name.split(), *self._words(values, out)])

    def _words(self, values: Mapping[str, Json], out: Path) -> list[str]:
        given = {**self.fixed, **values}
        words = ["--out", str(out)]
        for name in sorted(given, key=lambda name: isinstance(self._of(name), click.Option)):
            words += self.settings[name].words(given[name])
        return words

    def _of(self, name: str) -> click.Parameter:
        return self.settings[name].parameter

    def _context(self, values: Mapping[str, Json], out: Path) -> click.Context:
        try:
            return self._command.make_context(self.name, self._words(values, out))
        except click.UsageError as error:
            raise UsageError(error.format_message()) from error


def refused(name: str) -> str:
    """Why a sweep decides an option itself; empty for one that may be given."""
    return {**_OURS, **_SILENT}.get(name, "")


def _settings(command: click.Command) -> Iterator[tuple[str, Setting]]:
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield str(parameter.name), Setting(parameter=parameter, typed=str(parameter.name))
        for typed in (*parameter.opts, *parameter.secondary_opts):
            if typed.startswith("--"):
                yield typed.removeprefix("--"), Setting(parameter=parameter, typed=typed)
