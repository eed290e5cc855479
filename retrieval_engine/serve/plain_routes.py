"""Routes that FastAPI describes and does not slow down, and what it says of bodies and answers."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import to_json

from retrieval_engine.serve import schema


class PlainRoute(APIRoute):
    """A route whose endpoint reads the request itself: FastAPI describes it, and no more."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        if self.param_convertors or self.dependant.query_params:
            return super().get_route_handler()
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class Json(Response):
    """As `JSONResponse`, several times as fast."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See `Response`."""
        return to_json(content)


def body_of(model: type[schema.Body], *files: str) -> dict[str, Any]:
    """What OpenAPI says of a body that is JSON or a form."""
    shown = model.model_json_schema(ref_template="#/components/schemas/{model}")
    form = {**shown, "properties": dict(shown["properties"])}
    for name in files:
        one = {"type": "string", "format": "binary"}
        many = shown["properties"][name].get("type") == "array"
        form["properties"][name] = {"type": "array", "items": one} if many else one
    kinds = {
        "application/json": {"schema": shown, "example": model.example},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": kinds}}


def says(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of an answer."""
    return {200: {"model": model}, "4XX": {"model": schema.ProblemAnswer}}
