"""The library names arguments and calls; whoever types commands reads options and commands."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

import retrieval_engine
from retrieval_engine.cli import COMMANDS, main
from retrieval_engine.cli.wording import COMMAND_OF, as_options, context_of

PACKAGE = Path(retrieval_engine.__file__).parent
# A style sheet has `--names` of its own; a model card says with which command the model was made.
NO_MESSAGES = (
    *("cli/", "search/contact_sheet.py", "duplicates/duplicate_page.py"),
    *("train/pretrain/export.py", "train/pretrain/cached/write_model.py", "hub/card.py"),
)
# Other tools' commands, and options in a source's name (`?id=COLUMN`): typed alike everywhere.
ALIKE = re.compile(r"`((hf|pip|if) |\?)[^`]*`")
# Words of config.json, which everybody writes alike.
IN_CONFIG = {"architectures", "vocab_size", "max_position_embeddings", "eos_token_id"}
EXPRESSION = re.compile(r"`([^`\n]+)`")


@pytest.mark.parametrize(
    ("command", "said", "typed"),
    [
        (
            "search",
            "`rerank` is 3; it must be at least `k`",
            "--rerank is 3; it must be at least -k",
        ),
        ("caption", "`num_captions=3` and `sample`", "--num-captions 3 and --sample"),
        ("caption", "`explain='a b.png'`", "--explain 'a b.png'"),
        (
            "encode",
            "one `source`, `features=('itc', 'tokens')`",
            "one SOURCE, --features itc,tokens",
        ),
        ("train-head", "`out=DIR`, `recipe='siglip'`", "--out DIR, --recipe siglip"),
        ("finetune retrieval", "train with `from_pixels`", "train with --from-pixels"),
        ("eval", "`meteor=False`, `dataset`", "--no-meteor, --published"),
        ("merge-adapter", "`base=DIR`", "--model DIR"),
        ("push", "`private=False`, `private`", "--public, --private"),
        ("search", "`train_head(out=DIR)`", "`vlre train-head --out DIR`"),
        ("search", "`store.verify()`", "`vlre store verify`"),
        ("search", "`build_index(store='a', out='b')`", "`vlre index --store a --index b`"),
        ("eval", "`encode(source, store=PATH)`", "`vlre encode SOURCE --store PATH`"),
        ("eval", "`EncodeOptions(features=('itc',))`", "`vlre encode --features itc`"),
        ("eval", "`EncodeOptions(overwrite=True)`", "`vlre encode --overwrite`"),
    ],
)
def test_arguments_become_options_and_calls_commands(command: str, said: str, typed: str) -> None:
    assert as_options(said, context_of(main, command.split())) == typed


@pytest.mark.parametrize(
    "text",
    [
        "`batch_size` is unknown to search",
        "`encode(encoder=x)` has no option for that",
        "`captions=False` has no opposite option",
        "install it with `pip install 'vlre[cpu]'`",
        "`unknown_call()`, `a b c`, `=`, ``, one ` alone",
    ],
)
def test_what_the_command_line_does_not_know_stays(text: str) -> None:
    assert as_options(text, context_of(main, ["search"])) == text


def test_the_command_is_found_behind_other_options() -> None:
    context = context_of(main, ["--debug", "store", "verify", "--store", "search"])
    assert context.command_path == "vlre store verify"
    assert context_of(main, ["--help"]).command is main


@cache
def trees() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {f.relative_to(PACKAGE).as_posix(): ast.parse(f.read_text("utf-8")) for f in files}


def strings() -> Iterator[tuple[str, str]]:
    """Every string of the library that is no docstring, with where it stands."""
    for name, tree in trees().items():
        if not name.startswith(NO_MESSAGES):
            for node in messages(tree):
                yield f"{name}:{node.lineno}", text_of(node)


def messages(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr | ast.Constant):
            if not isinstance(node, ast.Expr):  # a docstring is a statement of its own
                yield child
        else:
            yield from messages(child)


def text_of(node: ast.expr) -> str:
    """A string as a message would have it, `x` for each value in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        return repr("x") if node.conversion == ord("r") else "x"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_no_message_of_the_library_names_an_option_or_a_command() -> None:
    names = "|".join(COMMANDS.names()).replace("_", "-")
    command = re.compile(rf"(?<![\w-])--[a-z]|vlre ({names})\b")
    found = [(where, text) for where, text in strings() if command.search(ALIKE.sub("", text))]
    assert found == []


def defined() -> dict[str, set[str]]:
    """Functions and classes of the package, with the names of their parameters or fields."""
    found: dict[str, set[str]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                found.setdefault(node.name, set()).update(one.arg for one in given)
            elif isinstance(node, ast.ClassDef):
                fields = [n.target for n in node.body if isinstance(n, ast.AnnAssign)]
                names = {target.id for target in fields if isinstance(target, ast.Name)}
                found.setdefault(node.name, set()).update(names)
    return found


def test_what_messages_name_in_backticks_is_there() -> None:
    known = defined()
    arguments = set().union(*known.values(), {"x"}, IN_CONFIG)  # `{name}` of a message may be any
    calls = set()
    for where, text in strings():
        for expression in EXPRESSION.findall(ALIKE.sub("", text)):
            said = ast.parse(f"_({expression})", mode="eval").body
            assert isinstance(said, ast.Call), (where, expression)
            words: list[ast.expr | ast.keyword] = [*said.args, *said.keywords]
            [word] = words
            match word:
                case ast.Call():
                    function = ast.unparse(word.func).rpartition(".")[2]
                    given = {one.id for one in word.args if isinstance(one, ast.Name)}
                    given |= {str(one.arg) for one in word.keywords}
                    assert given <= known[function], (where, expression)
                    calls.add((function, expression))
                case ast.Name(id=name) | ast.keyword(arg=str(name)):
                    assert name in arguments, (where, expression)
                case ast.Attribute() if ast.unparse(word).startswith("model."):
                    pass  # what a wrapper of torch calls the model in it
                case ast.Attribute():
                    assert word.attr in known, (where, expression)
                case _:
                    pytest.fail(f"{where}: `{expression}` is neither argument nor call")
    assert len(calls) > 10
    for function, expression in calls:
        assert function in COMMAND_OF, expression
        assert as_options(f"`{expression}`", context_of(main, [])).startswith("`vlre ")


@pytest.mark.parametrize(
    ("command", "code", "lines"),
    [
        (
            ["search", "a dog", "--store", "none"],
            1,
            ["hint: make one with `vlre encode SOURCE --store PATH`, or name another --store"],
        ),
        (
            ["encode", "scenes:4", "--store", "s", "--device", "cuda:7"],
            2,
            ["hint: use --device auto or --device cpu"],
        ),
        (
            ["encode", "scenes:4", "--store", "full"],
            1,
            ["hint: name a new or empty directory as --store"],
        ),
        (
            ["caption", "--beams", "2", "--num-captions", "3"],
            2,
            [
                "Error: --num-captions 3 is more than --beams 2",
                "hint: use --beams 3 or more, or --sample",
            ],
        ),
        (["caption", "--overwrite"], 2, ["Error: --overwrite needs --out"]),
        (
            ["import-checkpoint", "full/a.pth", "--out", "full"],
            2,
            ["Error: --out full exists"],
        ),
        (
            ["store", "info", "--store", "broken"],
            1,
            ["hint: restore it from a copy, or encode again with `vlre encode --overwrite`"],
        ),
        (
            ["search", "a dog", "--index", "none", "--store", "none"],
            1,
            ["hint: build one with `vlre index`"],
        ),
    ],
)
def test_whoever_types_commands_reads_options(
    command: list[str], code: int, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("full/a.pth", "broken/store.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == code, result.stderr
    for line in lines:
        assert line in result.stderr.splitlines()
    assert "`" not in re.sub(r"`vlre [^`]*`", "", result.stderr)
