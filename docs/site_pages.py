"""Makes the documentation site: lays its pages out, and has zensical build them.

    python docs/site_pages.py [OUT]        # OUT/site/index.html; OUT is build/ by default

Pages are the texts of this folder, README.md without its tree, CONTRIBUTING.md and other texts of
the project (`ELSEWHERE`), with their links turned; and a page for each command, written from
click's own help. A link that leads nowhere ends the build with an error.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from retrieval_engine.cli import SECTIONS, main

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/LOG.md": "benchmarks.md",
    "benchmarks/PEERS.md": "peers.md",
    "indices/README.md": "index-recipes.md",
    "retrieval_engine/store/FORMAT.md": "store-format.md",
    "retrieval_engine/checkpoints/vlre-photo/README.md": "vlre-photo.md",
    "retrieval_engine/checkpoints/vlre-tiny/README.md": "vlre-tiny.md",
}
_LINK = re.compile(r"\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def lay_out(pages: Path) -> list[str]:
    """Write every page and picture below a folder, which is made anew; names of the commands."""
    shutil.rmtree(pages, ignore_errors=True)
    (pages / "commands").mkdir(parents=True)
    own = [path for path in sorted((ROOT / "docs").iterdir()) if path.suffix in (".md", ".png")]
    places = {**{f"docs/{path.name}": path.name for path in own}, **ELSEWHERE}
    for place, page in places.items():
        if place.endswith(".md"):
            text = (ROOT / place).read_text(encoding="utf-8")
            if place == "README.md":  # the tree is for those who have it before them
                text = re.sub(r"^## The tree\n.*?(?=^## )", "", text, flags=re.M | re.S)
            (pages / page).write_text(_turn_links(text, place, places), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / place, pages / page)
    (pages / "examples.md").write_text(_examples(), encoding="utf-8")
    commands = command_pages()
    for name, text in commands.items():
        (pages / "commands" / f"{name}.md").write_text(text, encoding="utf-8")
    return list(commands)


def _turn_links(text: str, place: str, places: dict[str, str]) -> str:
    """Links between files of the project as links between pages of the site."""

    def turned(link: re.Match[str]) -> str:
        target = os.path.normpath(Path(place).parent / link[1])
        return f"]({places.get(target, link[1])}{link[2] or ''})"

    return _LINK.sub(turned, text)


def _examples() -> str:
    """The scripts of `examples/`, whole, each below the first line of what it says of itself."""
    lines = [
        "# Examples",
        "",
        "Scripts to read from top to bottom; without arguments each runs in seconds.",
    ]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        title = code.partition('"""')[2].partition("\n")[0].rstrip(".")
        lines += ["", f"## {title}", "", f'```python title="examples/{path.name}"', code, "```"]
    return "\n".join(lines)


def command_pages() -> dict[str, str]:
    """Markdown of each command by its name, in the order of `vlre --help`, and of the overview."""
    with click.Context(main, info_name="vlre") as top:
        told = [name for section in SECTIONS.values() for name in section]
        pages = {}
        for name in [*told, *(name for name in main.list_commands(top) if name not in told)]:
            command = main.get_command(top, name)
            assert command, name
            pages[f"vlre-{name}"] = "\n".join(_command(command, name, top, level=1))
        lines = ["# Commands", "", *_text(main.help or ""), *_options(main, top)]
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}", "", "| command | |", "| --- | --- |"]
        lines += [f"| [`vlre {n}`](vlre-{n}.md) | {_plain(text)} |" for n, text in section.items()]
    return {**pages, "index": "\n".join(lines)}


def _command(command: click.Command, name: str, parent: click.Context, level: int) -> Iterator[str]:
    """The lines of a command's page, those of its subcommands behind its own."""
    with click.Context(command, info_name=name, parent=parent) as context:
        yield from (f"{'#' * level} {context.command_path}", "")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield from ("```text", usage, "```", "")
        yield from _text(command.help or "")
        yield from _options(command, context)
        yield from _text(command.epilog if isinstance(command.epilog, str) else "")
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found, child
                yield from _command(found, child, context, level + 1)


def _text(text: str) -> Iterator[str]:
    """Paragraphs of a help; those that click leaves as they are become blocks of code."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        kept = paragraph.startswith("\b")
        lines = paragraph.removeprefix("\b").strip("\n").splitlines()
        if kept and lines[0].strip() == "Example:":
            yield from (lines.pop(0), "")
        indented = inspect.cleandoc("\n".join(["", *lines]))
        yield from ("```sh", indented, "```", "") if kept else (_plain(" ".join(lines)), "")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    """A table of them, with what click says of defaults and ranges."""
    options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    records = [option.get_help_record(context) for option in options if option.name != "help"]
    if records:
        yield from ("| option | |", "| --- | --- |")
        yield from (f"| `{names}` | {_plain(told)} |" for names, told in filter(None, records))
        yield ""


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing but the code it holds."""
    parts = text.split("`")
    escaped = [re.sub(r"([\\*_|\[\]#])", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [part.replace("<", "&lt;") for part in escaped]
    return "`".join(parts)


def configure(out: Path, commands: Iterable[str]) -> Path:
    """Write zensical's configuration, with a line for each command, and return its place."""
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    lines = [
        f'{{ "{n.replace("-", " ", 1)}" = "commands/{n}.md" }}' for n in commands if n != "index"
    ]
    text = text.replace('"commands/index.md"', ", ".join(['"commands/index.md"', *lines]))
    config = out / "zensical.toml"
    config.write_text(text.replace("ROOT", ROOT.as_posix()), encoding="utf-8")
    return config


def build(out: Path) -> int:
    """The site in `out`/site; zensical's exit code, which is not 0 after a warning."""
    config = configure(out, lay_out(out / "pages"))
    shutil.rmtree(out / "site", ignore_errors=True)
    zensical = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.call([*zensical, "--config-file", str(config)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if sys.argv[1:] else ROOT / "build").resolve()))
