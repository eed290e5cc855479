"""Search, captions and similar images as tools of assistants (Model Context Protocol)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

from fastapi import FastAPI
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from retrieval_engine import __version__
from retrieval_engine.engine import Engine
from retrieval_engine.search import Hits
from retrieval_engine.serve import schema
from retrieval_engine.serve.captioning import caption_rows
from retrieval_engine.serve.figures import Figures
from retrieval_engine.serve.log import log_lines
from retrieval_engine.serve.questions import Like, Question
from retrieval_engine.serve.refusals import refusal_of
from retrieval_engine.serve.room import Room
from retrieval_engine.serve.settings import ServeSettings

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_SAID = (
    "A collection of images. Search it by words; images have ids, with which they are asked for."
)
Most = Annotated[int, Field(ge=1, le=100, description="How many images.")]


class Found(BaseModel):
    """One image; a higher score is nearer."""

    id: str
    score: float
    captions: list[str] = Field(description="What its source says of it.")
    place: str = Field(description="Where the image is.")


class Finds(BaseModel):
    """Images, the best first."""

    images: list[Found]


class Described(BaseModel):
    """Sentences about one image, or why there are none."""

    id: str
    captions: list[str]
    error: str | None


class Descriptions(BaseModel):
    """Sentences about images, in the order asked."""

    images: list[Described]


def run_assistant(engine: Engine, settings: ServeSettings) -> None:
    """Serve an assistant over standard input and output, until it closes them."""
    log_lines()
    asyncio.run(_over_stdio(Room(engine, settings, Figures())))


async def _over_stdio(room: Room) -> None:
    room.live.start()
    try:
        await tools_of(room).run_stdio_async()
    finally:
        await asyncio.to_thread(room.close)


@asynccontextmanager
async def tools_at(app: FastAPI, path: str, room: Room) -> AsyncIterator[None]:
    """Let an application offer the tools over HTTP, for as long as the block runs.

    Host names and tokens are seen to before it.
    """
    tools = tools_of(room)
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    web = tools.streamable_http_app(
        streamable_http_path=path,
        stateless_http=True,
        json_response=True,
        transport_security=unchecked,
    )
    app.router.routes.extend(web.routes)
    async with tools.session_manager.run():
        yield


def tools_of(room: Room) -> MCPServer[Any]:
    """The tools over an engine room, before a way to reach them."""
    server: MCPServer[Any] = MCPServer(
        "vlre", version=__version__, instructions=_SAID, log_level="WARNING"
    )

    @server.tool(annotations=_READS)
    async def search(text: schema.Text, k: Most = 10) -> Finds:
        """The images that fit words best."""
        with _told():
            return _finds(await room.encoder.ask(Question(((text, 1.0),), k)))

    @server.tool(annotations=_READS)
    async def similar(id: schema.Id, k: Most = 10) -> Finds:
        """The images most like one of the collection, by its id."""
        with _told():
            return _finds(await room.encoder.ask(Like(id, k)))

    @server.tool(annotations=_READS)
    async def caption(
        ids: Annotated[list[schema.Id], Field(min_length=1, max_length=16)],
        n: Annotated[int, Field(ge=1, le=5, description="Sentences for each image.")] = 1,
    ) -> Descriptions:
        """What a model sees in images of the collection, by their ids, in sentences."""
        with _told():
            rows = await caption_rows(
                room, schema.CaptionRequest.model_validate({"ids": ids, "n": n})
            )
        return Descriptions(
            images=[
                Described(id=row["image"], captions=row["captions"], error=row["error"])
                for row in rows
            ]
        )

    return server


def _finds(hits: Any) -> Finds:
    assert isinstance(hits, Hits)
    return Finds(
        images=[
            Found(
                id=hit.item_id,
                score=round(hit.score, 4),
                captions=list(hit.captions),
                place=hit.uri,
            )
            for hit in hits
        ]
    )


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong, said to the assistant as to other clients."""
    try:
        yield
    except Exception as error:  # of any library: `refusal_of` tells what a client may know
        refused = refusal_of(error)
        raise ToolError(f"{refused.message}. {refused.hint}".removesuffix(". ")) from error
