"""The tools of assistants, used by the protocol's own client against real servers."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from retrieval_engine import Engine
from tests.serving import make_store, served

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters

LONG_S = 120.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("mcp"), 12)


async def used(server: str | StdioServerParameters) -> dict[str, Any]:
    """What each tool answers, and what it says when it cannot."""
    async with Client(server, read_timeout_seconds=LONG_S) as client:
        answers: dict[str, Any] = {"names": {t.name for t in (await client.list_tools()).tools}}

        async def ask(name: str, **given: object) -> Any:
            answer = await client.call_tool(name, given)
            text = "".join(getattr(part, "text", "") for part in answer.content)
            return text if answer.is_error else (answer.structured_content or {})["images"]

        answers["search"] = await ask("search", text="a dog on grass", k=3)
        first = answers["search"][0]["id"]
        answers["similar"] = await ask("similar", id=first, k=2)
        answers["caption"] = await ask("caption", ids=[first, "nowhere"], n=2)
        answers["unknown"] = await ask("similar", id="nowhere")
        answers["wrong"] = await ask("search", text="a dog", k=0)
        return answers


@pytest.mark.whole
def test_an_assistant_searches_captions_and_finds_similar_ones(store: Path) -> None:
    index = store.with_name("index")
    code = "from retrieval_engine.cli import main; main()"
    arguments = ["-c", code, "serve", "--mcp", "--store", str(store), "--index", str(index)]
    process = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    over_pipes = asyncio.run(used(process))
    with served(store, mcp=True) as client:
        over_http = asyncio.run(used(f"{client.base_url}/mcp".replace("//mcp", "/mcp")))
    engine = Engine(store=store, index=index)
    hits = engine.search("a dog on grass", 3)
    for found in (over_pipes, over_http):
        assert found["names"] == {"search", "similar", "caption"}
        assert [image["id"] for image in found["search"]] == [hit.item_id for hit in hits]
        assert [image["captions"] for image in found["search"]] == [list(h.captions) for h in hits]
        like = [hit.item_id for hit in engine.similar(hits[0].item_id, 2)]
        assert [image["id"] for image in found["similar"]] == like
        described, missing = found["caption"]
        assert described["captions"] == engine.caption(hits[0].uri, 2)
        assert missing["error"] == "no item has the id 'nowhere'"
        assert found["unknown"].endswith(missing["error"])
        assert "greater than or equal to 1" in found["wrong"]
