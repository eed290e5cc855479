"""Words what the library says in the terms of the command line.

The library names arguments and calls in backticks, as Python: `rerank=3`, `train_head(out=DIR)`.
Where a command prints them, an argument becomes an option of the command that runs, and a call the
command that does the same. What the command line does not know stays as it is.
"""

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress

import click

COMMAND_OF = {
    "EncodeOptions": "encode",
    "PretrainConfig": "pretrain",
    "build_index": "index",
    "calibrate": "calibrate",
    "encode": "encode",
    "evaluate_store": "eval --recall",
    "import_checkpoint": "import-checkpoint",
    "import_embeddings": "import-embeddings",
    "merge_adapters": "merge-adapter",
    "merge_stores": "store merge",
    "mine_negatives": "mine",
    "open_encoder": "encode",
    "repair_store": "store repair",
    "train_head": "train-head",
    "update_index": "index --update",
    "verify": "store verify",
}
"""Public functions, and classes of their settings, with the command that does the same."""
_OTHER_NAMES = {
    ("eval", "dataset"): "published",
    ("index", "out"): "index",
    ("merge-adapter", "base"): "model",
}
_EXPRESSION = re.compile(r"`([^`\n]+)`")


def context_of(root: click.Command, args: Sequence[str]) -> click.Context:
    """The context of the command that the words after `vlre`, the root, name."""
    context = click.Context(root, info_name="vlre")
    for word in args:
        if not isinstance(context.command, click.Group):
            break
        if command := context.command.get_command(context, word):
            context = click.Context(command, parent=context, info_name=word)
    return context


def as_options(text: str, context: click.Context) -> str:
    """A message of the library in the words of the command that runs: options and commands."""
    return _EXPRESSION.sub(lambda found: _worded(found[1], context) or found[0], text)


def _worded(expression: str, context: click.Context) -> str:
    with suppress(SyntaxError, LookupError):
        match ast.parse(f"_({expression})", mode="eval").body:
            case ast.Call(args=[ast.Call() as call], keywords=[]):
                line = COMMAND_OF[ast.unparse(call.func).rpartition(".")[2]]
                words = _options(call, context_of(context.find_root().command, line.split()))
                return f"`{' '.join(['vlre', line, *words])}`"
            case ast.Call() as arguments:
                return " ".join(_options(arguments, context))
    return ""


def _options(call: ast.Call, context: click.Context) -> Iterator[str]:
    """Arguments as words of a command line; LookupError when the command lacks one of them."""
    spelled = _spellings(context.command)
    named = [ast.keyword(ast.unparse(name), ast.Constant(True)) for name in call.args]
    for word in [*named, *call.keywords]:
        name, value = str(word.arg), ast.unparse(word.value)
        option = spelled[_OTHER_NAMES.get((str(context.info_name), name), name)]
        if value == "True":
            yield option
        elif value == "False":
            yield spelled[f"no_{name}"]
        else:
            yield f"{option} {_shown(word.value)}" if option[0] == "-" else _shown(word.value)


def _spellings(command: click.Command) -> dict[str, str]:
    """How arguments are typed: `from_pixels` is `--from-pixels`, `source` is `SOURCE`."""
    found = {}
    for known in command.params:
        for option in (*known.opts, *known.secondary_opts):
            found[option.lstrip("-").replace("-", "_")] = option
        for option in known.secondary_opts:
            found[f"no_{known.name}"] = option
        is_word = isinstance(known, click.Argument)
        found[str(known.name)] = known.human_readable_name if is_word else max(known.opts, key=len)
    return found


def _shown(value: ast.expr) -> str:
    try:
        said = ast.literal_eval(value)
    except ValueError:  # a name that stands for any value, as in `out=DIR`
        return ast.unparse(value)
    return shlex.quote(",".join(map(str, said)) if isinstance(said, tuple | list) else str(said))
