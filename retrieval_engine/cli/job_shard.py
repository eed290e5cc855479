"""`--shard`: which share of a job this process has, and the store that it goes into."""

import os
from collections.abc import Mapping
from pathlib import Path

import click
from click.core import ParameterSource

from retrieval_engine.cli.output import note
from retrieval_engine.records import JobShard

AUTO = "auto"
PLACE = "{shard}"


def shard_of(text: str | None) -> JobShard | None:
    """The share that `--shard` names; for `auto` the one that the environment names.

    Raises:
        UsageError: it names none.
    """
    if text is None or text != AUTO:
        return None if text is None else JobShard.of(text)
    number, count, why = _of_environment(os.environ)
    shard = JobShard(number, count)
    note(f"shard {shard}, by {why}")
    return shard


def store_of(shard: JobShard | None, store: Path, context: click.Context) -> Path:
    """The store that a share goes into.

    Args:
        shard: the share, or None for a whole job.
        store: as `--store` or VLRE_STORE has it; `{shard}` in it stands for `3-of-64`.
        context: of the command; a store that was not typed gets `-3-of-64` at its end.

    Raises:
        click.UsageError: `{shard}` where there is no shard.
    """
    if shard is None:
        if PLACE in str(store):
            raise click.UsageError(f"{PLACE} in --store stands for what --shard says: give both.")
        return store
    label = f"{shard.number}-of-{shard.count}"
    if PLACE in str(store):
        return Path(str(store).replace(PLACE, label))
    typed = context.get_parameter_source("store") is ParameterSource.COMMANDLINE
    return store if typed else store.with_name(f"{store.name}-{label}")


def _of_environment(env: Mapping[str, str]) -> tuple[int, int, str]:
    """Number, count, and which variables said so."""
    of_array, of_torchrun = "SLURM_ARRAY_TASK_ID" in env, "RANK" in env
    if of_array and of_torchrun:
        raise _cannot_tell("both SLURM_ARRAY_TASK_ID and RANK are set")
    if of_array:
        return _of_array(env)
    if of_torchrun:
        rank, size = (_number(env, name) for name in ("RANK", "WORLD_SIZE"))
        return rank + 1, size, f"RANK={rank} and WORLD_SIZE={size}"
    raise _cannot_tell("neither SLURM_ARRAY_TASK_ID nor RANK is set")


def _of_array(env: Mapping[str, str]) -> tuple[int, int, str]:
    task, first, last, count = (
        _number(env, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT")
    )
    # Slurm counts the tasks that were submitted now: of an array that is run again in part, that
    # is not the job.
    if first not in (0, 1) or last - first + 1 != count or count == 1:
        raise _cannot_tell(
            f"the array's {count} tasks from {first} to {last} are no whole array from 0 or 1, "
            "as when a part of one is run again"
        )
    return task - first + 1, count, f"SLURM_ARRAY_TASK_ID={task} of {first}-{last}"


def _number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise _cannot_tell(f"{name} is {text!r}" if name in env else f"{name} is not set")
    return int(text)


def _cannot_tell(why: str) -> click.UsageError:
    return click.UsageError(
        f"--shard auto cannot tell which shard this is: {why}. Say it: --shard 3/64."
    )
