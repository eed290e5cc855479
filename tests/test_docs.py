"""The documentation site builds without a warning, leads nowhere in vain and loads nothing."""

import doctest
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urljoin

import click
import pytest

import retrieval_engine
from retrieval_engine.cli import main
from tests.chromium import CHROMIUM, open_page

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "site_pages.py"
_WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "retrieval_engine").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
EXAMPLES = [
    pytest.param(name, marks=[pytest.mark.whole] * name.endswith(".engine"))
    for name in _WITH_EXAMPLES
]


@pytest.fixture(scope="module")
def pages() -> Any:
    """The script that lays the pages out."""
    spec = importlib.util.spec_from_file_location("site_pages", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("docs")
    built = subprocess.run([sys.executable, SCRIPT, out], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "No issues found" in built.stdout + built.stderr
    return out / "site"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_are_true(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


def test_every_command_has_its_page_with_all_options(pages: Any) -> None:
    texts = pages.command_pages()
    with click.Context(main, info_name="vlre") as context:
        for name in main.list_commands(context):
            command = main.get_command(context, name)
            assert command
            known = [command, *getattr(command, "commands", {}).values()]
            options = {o for c in known for p in c.params for o in p.opts if o.startswith("-")}
            assert options or name == "plugins"
            for option in options:
                assert re.search(rf"[`, ]{option}[`, ]", texts[f"vlre-{name}"]), option
    assert "## vlre store merge" in texts["vlre-store"]
    assert "| [`vlre search`](vlre-search.md) | words or" in texts["index"]


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = [name for name in retrieval_engine.__all__ if f"{name}\n" not in text]
    assert missing == ["SearchEngine"]  # of which it says that it is `Searcher`
    assert "`SearchEngine` is" in text


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "indices" / "README.md"],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_commands_in_texts_have_these_options(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text("utf-8"), flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for words in re.findall(r"`(vlre [^`]+)`", text) + re.findall(
        r"^(?:\$ )?(vlre .*)", "\n".join(lines), flags=re.M
    ):
        check_options(words.partition("  #")[0].split()[1:])


def check_options(words: list[str]) -> None:
    """Whether a command that a text shows is one, and has the options it is shown with."""
    command: click.Command = main
    with click.Context(main) as context:
        for word in words:
            if not isinstance(command, click.Group) or word.startswith("-") or word.isupper():
                break
            found = command.get_command(context, word)
            assert found, f"vlre {' '.join(words)}"
            command = found
        known = {option for param in command.get_params(context) for option in param.opts}
        known |= {o for param in command.get_params(context) for o in param.secondary_opts}
    for word in words:
        if option := re.match(r"--[a-z][a-z-]*", word):
            assert option[0] in known, f"vlre {' '.join(words)}: {option[0]}"


class Links(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids = {"", "__top"}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value and value != "#":
                (self.links if tag == "a" else self.loads).append(value)


parsed = cache(Links)


@pytest.mark.whole
def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 40
    for page in found:
        assert not [load for load in parsed(page).loads if "//" in load], page
        if page.name == "404.html":  # is shown at any address, and so links from the root
            continue
        for link in parsed(page).links + parsed(page).loads:
            if link.startswith(("http://", "https://", "data:")):
                continue
            path, _, anchor = urljoin(page.as_uri(), link).partition("#")
            target = Path(unquote(path.removeprefix("file://").partition("?")[0]))
            assert target.is_file(), f"{page.name}: {link}"
            if target.suffix == ".html" and not anchor.startswith("__"):
                assert unquote(anchor) in parsed(target).ids, f"{page.name}: {link}"
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8").replace('"', "")


@pytest.mark.whole
def test_a_link_that_leads_nowhere_ends_the_build(pages: Any, tmp_path: Path) -> None:
    config = pages.configure(tmp_path, [*pages.lay_out(tmp_path / "pages")])
    (tmp_path / "pages" / "api.md").write_text("# API\n")  # what takes long to build
    (tmp_path / "pages" / "faq.md").write_text("# Q\n\n[a](nowhere.md) [b](api.md#nothing)\n")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", config]
    built = subprocess.run(command, capture_output=True, text=True)
    said = built.stdout + built.stderr
    assert built.returncode
    assert "page does not exist" in said
    assert "anchor does not exist" in said


SHADOW = (  # where the search field and its answers are
    "[...document.querySelectorAll('div')]"
    '.some(e => e.shadowRoot && e.shadowRoot.querySelector("{}"))'
)


class Quiet(SimpleHTTPRequestHandler):
    """Files over HTTP, without a line for each."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.whole
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_a_reader_searches_and_nothing_leaves_the_machine(address: str, tmp_path: Path) -> None:
    with open_page(tmp_path) as page:
        page.open(address + "faq.html")
        page.run("document.querySelector('button.md-search__button').click()")
        page.wait(SHADOW.format("[open]"))
        page.call("Input.insertText", text="fingerprint")
        page.wait(SHADOW.format("a[href*='concepts.html'][href$='#fingerprint']"))
        assert not [r for r in page.requests if not r.startswith((address, "data:", "blob:"))]
        assert page.complaints == []
