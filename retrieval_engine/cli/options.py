"""Options that several commands share, defined once."""

import os
from pathlib import Path

import click

from retrieval_engine.cli.completion import models
from retrieval_engine.records import DEFAULT_INDEX, DEFAULT_MODEL, DEFAULT_STORE


class UserPath(click.Path):
    """A path as a `pathlib.Path`; `~` is the home directory also where no shell has seen it.

    A shell leaves the `~` of `--store=~/photos` and of quoted paths as it is.
    """

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """The path with the home directory in place of `~` or `~name`."""
        return super().convert(os.path.expanduser(value), param, ctx)


class StorePath(UserPath):
    """Where a store is: a path, or an address, for which the folder that mirrors it stands."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """The path, or the mirror of the address."""
        if "://" not in os.fspath(value):
            return super().convert(value, param, ctx)
        from retrieval_engine.store.mirror import local_store

        return local_store(value)


store_option = click.option(
    "--store",
    type=StorePath(),
    envvar="VLRE_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    help="Directory of features, or an address such as s3://bucket/store. [env: VLRE_STORE]",
)
index_option = click.option(
    "--index",
    type=UserPath(),
    envvar="VLRE_INDEX",
    default=DEFAULT_INDEX,
    show_default=True,
    help="Directory of the index, or its hub id. [env: VLRE_INDEX]",
)
model_option = click.option(
    "--model",
    shell_complete=models,
    envvar="VLRE_MODEL",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Directory or hub id of a checkpoint, e.g. Salesforce/blip-itm-base-coco. "
    "[env: VLRE_MODEL]",
)
adapter_option = click.option(
    "--adapter", default="", help="Directory or hub id of an adapter for --model."
)
moved_model_option = click.option(
    "--model",
    default="",
    shell_complete=models,
    help="Where the store's model is now, if it has moved.",
)
any_model_option = click.option(
    "--model",
    default="",
    shell_complete=models,
    help="Where the store's model is now, if it has moved; the model of a new store.",
)
device_option = click.option(
    "--device",
    envvar="VLRE_DEVICE",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:1, … [env: VLRE_DEVICE]",
)
devices_option = click.option(
    "--devices",
    default="",
    help="A process and a model on each of several devices: all, cuda:0,cuda:1 or cpu:2 (two on the "
    "CPU, of one thread each). With --on: all (the default), gpu:8, cpu:16. Results are the same "
    "whatever their number.",
)
on_option = click.option(
    "--on",
    metavar="CLUSTER",
    default="",
    help="Run models on a Ray cluster (extra ray): HOST:PORT from one of its nodes, "
    "ray://HOST:PORT from anywhere, or ray: the one that RAY_ADDRESS names, else one on this machine.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16", "float8", "int8"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the towers; auto is the store's own, in a new one half precision where the "
    "device is fast at it. int8 and float8 are of the linear layers of a large vision tower, on a "
    "CPU and on a GPU such as H100; int8 also of vlre-photo's convolutions.",
)
fast_decode_option = click.option(
    "--fast-decode",
    is_flag=True,
    help="Decode large JPEGs at a half, a quarter or an eighth of their size, never below the "
    "model's: several times as quick for photographs of 12 megapixels, in a store of its own.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per line on stdout."
)
head_option = click.option(
    "--head",
    type=UserPath(),
    help="Score by what this head makes of the features (`vlre train-head`); a hub id, too.",
)
tracker_option = click.option(
    "--tracker",
    type=click.Choice(["tensorboard", "wandb", "trackio", "mlflow"]),
    help="Follow the training there too; each is an extra of its name.",
)
split_option = click.option("--split", default=None, help="Only the items of this split.")


def example(line: str) -> str:
    """The epilog of a command's help: one example, which a test runs as printed."""
    return f"\b\nExample:\n  {line}"
