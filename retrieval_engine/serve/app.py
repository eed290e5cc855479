"""The application: the API, the page, and what begins and ends with the server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from retrieval_engine import __version__
from retrieval_engine.engine import Engine
from retrieval_engine.errors import MissingExtra
from retrieval_engine.serve.figures import Figures
from retrieval_engine.serve.guard import COOKIE, Guard, is_token
from retrieval_engine.serve.refusals import Refused, refusal_of
from retrieval_engine.serve.room import Room
from retrieval_engine.serve.routes import router, search
from retrieval_engine.serve.settings import ServeSettings

STATIC = Path(__file__).with_name("static")
_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(engine: Engine, settings: ServeSettings | None = None) -> ASGIApp:
    """The ASGI application over an engine, its limits around it.

    Args:
        engine: what is served; closed when the server ends.
        settings: limits; the address in them says which host names are allowed.
    """
    settings = settings or ServeSettings()
    figures = Figures()
    room = Room(engine, settings, figures)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        room.live.start()
        async with tools:
            yield
        room.close()

    app = FastAPI(
        title="vlre",
        version=__version__,
        summary="Search images by words and images, write and match captions.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    tools = _tools(app, room) if settings.mcp else nullcontext()
    app.state.room = room
    app.state.settings = settings
    app.include_router(router)
    app.add_exception_handler(Exception, _explain)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(Refused, _explain)
    app.add_api_route("/metrics", lambda: _metrics(figures), include_in_schema=False)
    app.add_api_route("/session", _begin_session, methods=["POST"], include_in_schema=False)
    for path, name in (("/", "index.html"), ("/docs", "docs.html")):
        app.add_api_route(path, _page(name), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC))
    _complete_openapi(app)
    return Guard(_directly(app, "/api/search", search), settings, figures)


def _tools(app: FastAPI, room: Room) -> AbstractAsyncContextManager[None]:
    try:
        from retrieval_engine.serve.assistants import tools_at
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "mcp") from error
    return tools_at(app, "/mcp", room)


def _directly(
    app: FastAPI, path: str, endpoint: Callable[[Request], Awaitable[Response]]
) -> ASGIApp:
    """The application, with one address past its layers: they cost as much as half the answer."""
    route = next(found for found in router.routes if getattr(found, "path", "") == path)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == path and scope.get("method") == "POST":
            scope.update(app=app, route=route)
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


def _complete_openapi(app: FastAPI) -> None:
    """Put what the bodies' schemas refer to among the components."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        whole = made()
        schemas = whole["components"]["schemas"]
        for path in whole["paths"].values():
            body = path.get("post", {}).get("requestBody", {})
            for content in body.get("content", {}).values():
                schemas.update(content["schema"].pop("$defs", {}))
        return whole

    app.openapi = openapi  # type: ignore[method-assign]


def _page(name: str) -> Any:
    async def page() -> FileResponse:
        return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    return page


def _metrics(figures: Figures) -> Response:
    return Response(figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _begin_session(request: Request) -> Response:
    """Keep the token that came as a header in a cookie that scripts and other sites cannot use."""
    token = request.headers.get("authorization", "")[7:]
    expected = request.app.state.room.settings.token
    if expected and not is_token(token.encode("utf-8", "replace"), expected):
        raise Refused(401, "unauthorized", "this is not the token")
    answer = JSONResponse({"status": "ok"})
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
    return answer


async def _explain(request: Request, error: Exception) -> Response:
    return refusal_of(error).response(request.state.request_id)


async def _explain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "bad_request")
    refused = Refused(error.status_code, code, str(error.detail), headers=error.headers)
    return refused.response(request.state.request_id)
