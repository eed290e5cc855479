"""The command `vlre`: finds its commands by file name and turns errors into one clear line.

A command is one file in `commands/` that defines `command`. Such files import click and the
standard library at the top and everything else inside the command, so that `vlre --help` answers
at once.
"""

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from retrieval_engine import __version__
from retrieval_engine.cli.signals import Told, ending_cleanly
from retrieval_engine.errors import PluginBroken, VlreError, one_line
from retrieval_engine.plugins import Plugins

COMMANDS = Plugins(package="retrieval_engine.cli.commands", noun="command", group="vlre.commands")
INTERRUPTED = 130
_GARBAGE = 100_000  # new objects before cycles are looked for: what is imported is none of it
_HELP = """Encode once. Everything else reads the cache.

\b
  vlre demo                                  see all of it in a minute
  vlre search "a dog on grass" ~/Pictures    encode what is new, then search
"""
SECTIONS = {
    "Data": {
        "encode": "pictures and captions into features in a store",
        "watch": "a folder: encode what comes, forget what goes",
        "import-embeddings": "vectors of another encoder (CLIP, SigLIP) into a store",
        "store": "look at a store, check it, repair it",
        "duplicates": "pictures of a store that are one",
    },
    "Search": {
        "search": "words or a picture in, ranked pictures or captions out",
        "index": "FAISS over a store, its recall measured",
        "calibrate": "probabilities of a match, and how honest they are",
        "up": "a folder as a page to search, while it is being encoded",
        "serve": "a page and an HTTP API over a store",
    },
    "Measure": {
        "eval": "exact Recall@K, re-ranked too; quality of captions",
        "compare": "heads, encoders and saved figures side by side",
        "study": "whole experiments in one command",
    },
    "Train": {
        "train-head": "a linear or MLP head on stored features, in seconds",
        "finetune": "BLIP or BLIP-2, whole or LoRA, from cached states",
        "pretrain": "a BLIP from scratch, or on a frozen backbone",
        "mine": "hard negatives for finetune",
        "merge-adapter": "LoRA into its base",
        "export": "a model as ONNX graphs for programs without torch",
        "import-checkpoint": "the authors' own files into Hugging Face layout",
    },
    "The hub": {
        "push": "a model, adapter, head, index or store to the hub",
        "pull": "and back, checked",
    },
    "Captions": {
        "caption": "captions of pictures, folders, sources or a store",
        "capfilt": "write captions and keep what matches (BLIP's CapFilt)",
    },
    "This machine": {
        "demo": "draw pictures, encode, index, search and measure them",
        "doctor": "does it give the authors' numbers?",
        "plugins": "sources, families, backends, commands that there are",
    },
}


class Commands(click.Group):
    """A group whose members are the files of a folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, without importing one."""
        return [name.replace("_", "-") for name in COMMANDS.names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command in the file of this name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            command: click.Command = COMMANDS.load(cmd_name).command
        except PluginBroken as error:
            return _broken(cmd_name, error)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All commands by what they are for, without importing one; plug-ins under their own."""
        known = {name for section in SECTIONS.values() for name in section}
        more = {
            name: command.get_short_help_str(60)
            for name in self.list_commands(ctx)
            if name not in known and (command := self.get_command(ctx, name))
        }
        for title, section in {**SECTIONS, "More": more}.items():
            if section:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(17), text) for name, text in section.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was typed; a mistyped one is told which are near."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            typed = args[0]
            near = get_close_matches(typed, self.list_commands(ctx), 3, 0.5)
            meant = f'vlre search "{typed}"' if " " in typed else " or ".join(near)
            if not meant:
                raise
            raise click.UsageError(f"{error.message} Did you mean {meant}?", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named.

        The reader of our output may go (`vlre search … | head`): nothing is wrong then. It is seen
        here because click itself would make an error of it.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_output()
            return 0

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and end with the right exit code and at most two lines on an explained failure."""
        typed = list(kwargs.get("args") or sys.argv[1:])
        if "args" not in kwargs and not args:  # the process is this command's
            gc.set_threshold(_GARBAGE)
        debug = "--debug" in typed
        kwargs["standalone_mode"] = False
        try:
            with ending_cleanly():
                code = super().main(*args, **kwargs)
            _flush()
        except VlreError as error:
            if debug:
                raise
            _explain(error, typed)
            code = error.exit_code
        except click.exceptions.Abort as error:
            told = error.__cause__ if isinstance(error.__cause__, Told) else None
            click.echo(str(told or "interrupted"), err=True)
            code = told.exit_code if told else INTERRUPTED
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except BrokenPipeError:  # at the last flush
            _drop_output()
            code = 0
        except Exception as error:  # of any library: a line for people, whole with --debug
            if debug:
                raise
            explained = _of_the_machine(error) or _unforeseen(error)
            _drop_output()
            _explain(explained, typed)
            code = explained.exit_code
        sys.exit(code if isinstance(code, int) else 0)


def _broken(name: str, error: PluginBroken) -> click.Command:
    """Stands for a command that cannot be imported, so that the help of the others is shown."""

    def explain() -> None:
        raise error

    any_words = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        name,
        callback=explain,
        short_help="cannot be imported",
        add_help_option=False,
        context_settings=any_words,
    )


def _flush() -> None:
    if sys.stdout is not None:  # None where it was closed from the start
        sys.stdout.flush()


def _drop_output() -> None:
    """Send to nowhere what is left for a pipe without a reader or a full disk.

    Else Python would try again at its very end, and complain.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # a stream without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _of_the_machine(error: Exception) -> VlreError | None:
    """What a file, a disk or memory refused, in words; None when it is something else."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        if not where and error.errno == errno.ENOSPC:
            where = "writing the output: "
        return VlreError(f"{where}{error.strerror}", hint="--debug shows where it happened")
    if "No space left on device" in str(error) or "os error 28" in str(error):
        return VlreError(
            f"the disk is full: {one_line(error)}", hint="make room, then run it again"
        )
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "can't allocate memory" in str(error):
        hint = "use a smaller --batch-size, or fewer --features; --debug shows where it happened"
        return VlreError("there is not enough memory", hint=hint)
    return None


def _unforeseen(error: Exception) -> VlreError:
    """What nobody thought of: still one line."""
    return VlreError(
        f"unforeseen {type(error).__name__}: {one_line(error)}",
        hint="this is a fault of vlre; --debug shows where it happened, for a report",
    )


def _explain(error: VlreError, typed: Sequence[str]) -> None:
    from retrieval_engine.cli.output import note
    from retrieval_engine.cli.wording import context_of

    context = context_of(main, typed)
    note(f"Error: {error.message}", context)
    if error.hint:
        note(f"hint: {error.hint}", context)


@click.group(cls=Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vlre")
@click.option("--debug", is_flag=True, help="Show tracebacks and the libraries' own messages.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """The group; each command is a file in `commands/`."""
    from retrieval_engine.cli.output import quiet_libraries, write_any_name

    ctx.obj = debug
    talks = ctx.invoked_subcommand in ("push", "pull") and sys.stderr and sys.stderr.isatty()
    quiet_libraries(debug=debug, transfers=bool(talks))
    write_any_name()
