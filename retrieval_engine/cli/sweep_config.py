"""Reads the TOML file of a sweep, checked against the command it sweeps before any work."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval_engine.cli.sweep_trainer import FIGURES, CommandTrainer, Setting, refused
from retrieval_engine.errors import UsageError
from retrieval_engine.records import Json

if TYPE_CHECKING:
    from retrieval_engine.train.sweep import Span, SweepPlan

_KEYS = {
    "command": str,
    "objective": str,
    "trials": int,
    "seed": int,
    "pruning": bool,
    "fixed": dict,
    "search": dict,
}
_SPAN = {"low", "high", "log", "step"}
_CALLED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_TEST_SPLIT = re.compile(r"[?&]split=test(?![^&])")


def read_sweep(file: Path) -> "tuple[SweepPlan, CommandTrainer]":
    """The plan that a file holds, and what trains its trials.

    Raises:
        UsageError: one line that names the file, the key and the value, and what is allowed.
    """
    try:
        return _read(file)
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from error


def _read(file: Path) -> "tuple[SweepPlan, CommandTrainer]":
    from retrieval_engine.train.sweep import SweepPlan

    given = _parsed(file)
    name = given.get("command", "")
    if name not in FIGURES:
        raise UsageError(f"command = {name!r}; allowed: {', '.join(FIGURES)}")
    known = CommandTrainer(name, {})
    fixed = {
        _known(known, "fixed", key): _checked(known, "fixed", key, value)
        for key, value in given.get("fixed", {}).items()
    }
    search = {
        _known(known, "search", key): _tried(known, key, value)
        for key, value in given.get("search", {}).items()
    }
    trainer = CommandTrainer(name, fixed)
    beside = {key: given[key] for key in ("trials", "seed", "pruning") if key in given}
    plan = SweepPlan(training=name, fixed=fixed, search=search, **beside, objective="")
    config = _refuse_impossible(trainer, plan)
    objective = given.get("objective") or _usual_objective(name, config)
    if objective not in FIGURES[name]:
        raise UsageError(f"objective = {objective!r}; {name} has {', '.join(FIGURES[name])}")
    return SweepPlan(
        training=name, fixed=fixed, search=search, **beside, objective=objective
    ), trainer


def _parsed(file: Path) -> dict[str, Any]:
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"it is no TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}") from error
    for key, value in given.items():
        if key not in _KEYS:
            raise UsageError(f"{key} is unknown; known: {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            called = _CALLED.get(_KEYS[key], f"a table, [{key}]")
            raise UsageError(f"{key} = {value!r} must be {called}")
    return given


def _usual_objective(name: str, config: Any) -> str:
    """What the command itself selects by."""
    select = str(getattr(config, "select", ""))
    return select if name == "finetune caption" and select in FIGURES[name] else FIGURES[name][0]


def _known(trainer: CommandTrainer, section: str, key: str) -> str:
    name = key.replace("_", "-")
    if name not in trainer.settings and key in trainer.settings:
        name = key
    if name not in trainer.settings:
        known = ", ".join(sorted(n for n in trainer.settings if not refused(n)))
        raise UsageError(f"[{section}] {key} is no option of {trainer.name}; known: {known}")
    if why := refused(name):
        raise UsageError(f"[{section}] {key} cannot be given: {why}")
    return name


def _checked(trainer: CommandTrainer, section: str, key: str, value: Any) -> Json:
    """A value of an option, of its kind and among its choices."""
    setting = trainer.settings[_known(trainer, section, key)]
    if not _is_a(setting.kind, value):
        kind = _CALLED[setting.kind]
        raise UsageError(f"[{section}] {key} = {_toml(value)} must be {kind}")
    if not isinstance(setting.parameter.type, click.Path):
        try:
            setting.parameter.type.convert(value, None, None)
        except click.BadParameter as error:
            raise UsageError(f"[{section}] {key} = {_toml(value)}: {error.message}") from error
    name = str(setting.parameter.name)
    names_test = isinstance(value, str) and _TEST_SPLIT.search(value)
    if names_test or (name in ("split", "val_split") and value == "test"):
        raise UsageError(
            f"[{section}] {key} = {_toml(value)}: a sweep looks at no test split",
            hint="select on validation data; measure the best once, on test, in the end",
        )
    return float(value) if setting.kind is float else value


def _tried(trainer: CommandTrainer, key: str, value: Any) -> "Span | tuple[Json, ...]":
    """A span of numbers, or several values to choose from."""
    if isinstance(value, list):
        several = tuple(_checked(trainer, "search", key, each) for each in value)
        if len(several) < 2 or len(set(several)) < len(several):
            raise UsageError(f"[search] {key} = {_toml(value)} must be two or more, all different")
        return several
    setting = trainer.settings[_known(trainer, "search", key)]
    if not isinstance(value, dict):
        raise UsageError(
            f"[search] {key} = {_toml(value)} is one value: put it under [fixed], or give a list, or "
            "{low = …, high = …}"
        )
    if setting.kind not in (int, float):
        raise UsageError(f"[search] {key} is no number: give a list of values")
    return _span(trainer, key, setting, value)


def _span(trainer: CommandTrainer, key: str, setting: Setting, value: Mapping[str, Any]) -> "Span":
    from retrieval_engine.train.sweep import Span

    if unknown := sorted(value.keys() - _SPAN):
        raise UsageError(f"[search] {key}: {unknown[0]} is unknown; known: low, high, log, step")
    if missing := [name for name in ("low", "high") if name not in value]:
        raise UsageError(f"[search] {key} has no {missing[0]}")
    if type(value.get("log", False)) is not bool:
        raise UsageError(f"[search] {key}.log = {_toml(value['log'])} must be true or false")
    for name in ("low", "high", "step"):
        if name in value and not _is_a(setting.kind, value[name]):
            kind = _CALLED[setting.kind]
            raise UsageError(f"[search] {key}.{name} = {_toml(value[name])} must be {kind}")
    for name in ("low", "high"):
        _checked(trainer, "search", key, value[name])
    try:
        return Span(**value, whole=setting.kind is int)
    except UsageError as error:
        raise UsageError(f"[search] {key}: {error.message}") from error


def _refuse_impossible(trainer: CommandTrainer, plan: "SweepPlan") -> Any:
    """Build the trainer's config at the ends of what is tried; gives the first, if it can be.

    A value is refused when it cannot be, neither beside the first of all others nor by itself.
    """
    from retrieval_engine.cli.wording import as_options

    firsts = {name: _ends(tried)[0] for name, tried in plan.search.items()}
    fixed_wrong = _configured(trainer, {})[1]
    for name, tried in plan.search.items():
        wrong = {
            value: said
            for value in _ends(tried)
            if (said := _configured(trainer, {**firsts, name: value})[1])
            and _configured(trainer, {name: value})[1]
        }
        if fixed_wrong and len(wrong) == len(_ends(tried)):
            raise UsageError(f"[fixed]: {as_options(fixed_wrong, trainer.spoken)}")
        for value, said in wrong.items():
            told = as_options(said, trainer.spoken)
            raise UsageError(f"[search] {name} = {_toml(value)}: {told}")
    return _configured(trainer, firsts)[0]


def _configured(trainer: CommandTrainer, values: Mapping[str, Json]) -> tuple[Any, str]:
    """The config with these values, or None and why there is none."""
    try:
        return trainer.config(values), ""
    except UsageError as error:
        return None, error.message


def _ends(tried: "Span | tuple[Json, ...]") -> tuple[Json, ...]:
    from retrieval_engine.train.sweep import Span

    if not isinstance(tried, Span):
        return tried
    kind = int if tried.whole else float
    return kind(tried.low), kind(tried.high)


def _is_a(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _toml(value: object) -> str:
    """A value as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
