"""The addresses of the API. Each reads a body, asks the engine room, and says the answer."""

import base64
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from retrieval_engine.errors import UsageError
from retrieval_engine.search import Hits, Mix
from retrieval_engine.serve import schema
from retrieval_engine.serve.bodies import read_body
from retrieval_engine.serve.caption_forms import FORMS
from retrieval_engine.serve.captioning import caption_rows
from retrieval_engine.serve.heat_maps import shade
from retrieval_engine.serve.plain_routes import Json, PlainRoute, body_of, says
from retrieval_engine.serve.questions import (
    Explain,
    Explained,
    Like,
    Match,
    Picture,
    Question,
    Rerank,
)
from retrieval_engine.serve.refusals import Refused, Stopping
from retrieval_engine.serve.room import Room

router = APIRouter(route_class=PlainRoute)
_MOST_FAILURES = 100
_PNG = "image/png"
_CACHED = {"Cache-Control": "private, max-age=300"}


def _room(request: Request) -> Room:
    room: Room = request.app.state.room
    return room


def _route(path: str, answer: type[BaseModel], body: dict[str, Any]) -> Callable[..., Any]:
    return router.post(path, responses=says(answer), openapi_extra=body)


@_route("/api/search", schema.SearchAnswer, body_of(schema.SearchRequest, "image"))
async def search(request: Request) -> Response:
    """Images by words, an image, an item, or a weighted mix of them."""
    room = _room(request)
    asked, _ = await read_body(request, schema.SearchRequest)
    wanted = asked.parts
    names = [_name(part) for part in wanted]
    if len(wanted) > 1 or wanted[0].weight != 1:  # a mix that cannot be is refused here
        Mix(tuple(zip(names, (part.weight for part in wanted), strict=True)))
    if asked.where:  # away from the models' threads, which then find it evaluated
        await room.off_loop(room.live.filtered, asked.where)
    parts = [(await _part(room, part), part.weight) for part in wanted]
    if asked.rerank or asked.min_match:
        text, name = parts[0][0], "rerank" if asked.rerank else "min_match"
        if len(parts) > 1 or not isinstance(text, str):
            raise UsageError(f"`{name}` matches words with pictures: it goes with `text` alone")
        if 0 < asked.rerank < asked.k + asked.offset:
            raise UsageError("`rerank` must be at least `k` and `offset` together")
        question = Rerank(text, asked.k, asked.offset, asked.rerank, asked.where, asked.min_match)
        hits = await room.matcher.ask(question)
    else:
        asking = Question(tuple(parts), asked.k, asked.offset, asked.where)
        hits = await room.encoder.ask(asking)
    return _hits(room, ", ".join(names), asked.offset, hits)


def _name(part: schema.MixPart) -> str:
    said = part.text or part.id or "an image"
    sign = "not " if part.weight < 0 else ""
    return f"{sign}{'' if abs(part.weight) == 1 else f'{abs(part.weight):g}:'}{said}"


async def _part(room: Room, part: schema.MixPart) -> str | Picture:
    if part.text is not None:
        return part.text
    return await room.picture(part.image, part.id)


@lru_cache(maxsize=20_000)
def _place(item_id: str) -> str:
    return f"/api/items/{quote(item_id, safe='')}"


def _hits(room: Room, query: str, offset: int, hits: Any) -> Response:
    assert isinstance(hits, Hits)
    shown = [
        {
            "rank": hit.rank,
            "score": round(hit.score, 6),
            "id": hit.item_id,
            "title": hit.title,
            "source": hit.source.partition(":")[0],
            "captions": hit.captions,
            "meta": hit.meta,
            "image": f"{(place := _place(hit.item_id))}/image",
            "thumbnail": f"{place}/thumbnail",
            "match": None if hit.match is None else round(hit.match, 4),
        }
        for hit in hits
    ]
    items = len(room.live.searcher.catalog)
    said = {"query": query, "offset": offset, "items": items, "hits": shown, "note": hits.note}
    return Json({**said, "best_match": hits.best_match})


@router.get("/api/similar/{item_id:path}", responses=says(schema.SearchAnswer))
async def similar(request: Request, item_id: str, k: int = 20, where: str = "") -> Response:
    """The images most like one of the store's, without itself and its copies; `where` as above."""
    if not 1 <= k <= schema.MOST_HITS:
        raise UsageError(f"`k` is {k}; it must be 1 to {schema.MOST_HITS}")
    if len(where) > schema.MOST_TEXT:
        raise UsageError(f"`where` has {len(where):,} characters; at most {schema.MOST_TEXT:,}")
    room = _room(request)
    return _hits(room, item_id, 0, await room.encoder.ask(Like(item_id, k, where)))


@_route("/api/caption", schema.CaptionAnswer, body_of(schema.CaptionRequest, "images"))
async def caption(request: Request) -> Response:
    """Sentences about one image or many; an image that cannot be read fails alone."""
    room = _room(request)
    asked, files = await read_body(request, schema.CaptionRequest)
    rows = await caption_rows(room, asked, files)
    if asked.format != "json":
        return FORMS[asked.format](rows)
    return Json({"model": asked.model or room.live.caption_models[0], "images": rows})


@_route("/api/match", schema.MatchAnswer, body_of(schema.MatchRequest, "image"))
async def match(request: Request) -> Response:
    """The probability that each text fits an image, by the cross-encoder (ITM)."""
    room = _room(request)
    asked, _ = await read_body(request, schema.MatchRequest)
    picture = await room.picture(asked.image, asked.id, reader=lambda: room.live.searcher.encoder)
    found = await room.matcher.ask(Match(picture, tuple(asked.texts)))
    assert isinstance(found, np.ndarray)
    return Json({"probabilities": [round(float(p), 6) for p in found]})


@_route("/api/explain", schema.ExplainAnswer, body_of(schema.ExplainRequest, "image"))
async def explain(request: Request) -> Response:
    """Where the model looked for each word of a text: a heat map each, as PNG."""
    room = _room(request)
    asked, _ = await read_body(request, schema.ExplainRequest)
    picture = await room.picture(asked.image, asked.id, reader=lambda: room.live.searcher.encoder)
    found = await room.matcher.ask(Explain(picture, asked.text))
    assert isinstance(found, Explained)
    if asked.format == "png":
        return Response(await room.off_loop(room.sheet, picture.data, found), media_type=_PNG)
    words = [{"word": word, "map": shade(seen)} for word, seen in found.words]
    return Json({"probability": round(found.probability, 6), "words": words})


@_route("/api/items", schema.AddAnswer, body_of(schema.AddRequest, "images"))
async def add(request: Request) -> Response:
    """Encode images into the store, where the server allows it; a broken one refuses all."""
    room = _room(request)
    if not room.settings.allow_adding:
        raise Refused(403, "not_allowed", "this server takes no images", hint="see `allow_adding`")
    asked, _ = await read_body(request, schema.AddRequest)
    return Json(await room.add(asked.images, asked.captions))


@_route("/v1/embeddings", schema.EmbeddingsAnswer, body_of(schema.EmbeddingsRequest))
async def embeddings(request: Request) -> Response:
    """Vectors of texts and images, in OpenAI's form."""
    room = _room(request)
    asked, _ = await read_body(request, schema.EmbeddingsRequest)
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    parts = [schema.MixPart.model_validate({_side(text): text}) for text in inputs]
    questions = [Question(((await _part(room, part), 1.0),)) for part in parts]
    found = await room.encoder.ask_all(questions)
    dim = found[0].shape[-1] if isinstance(found[0], np.ndarray) else 0
    if asked.dimensions not in (None, dim):
        raise UsageError(f"`dimensions` is {asked.dimensions}; this encoder gives {dim}")
    data = []
    for number, vectors in enumerate(found):
        assert isinstance(vectors, np.ndarray)
        if len(vectors) != 1:
            raise Refused(501, "not_supported", f"an image has {len(vectors)} vectors here")
        row = vectors[0].astype("<f4")
        coded = asked.encoding_format == "base64"
        value = base64.b64encode(row.tobytes()).decode() if coded else row.tolist()
        data.append({"object": "embedding", "index": number, "embedding": value})
    words = sum(len(text.split()) for text in inputs if _side(text) == "text")
    return Json(
        {
            "object": "list",
            "data": data,
            "model": room.live.searcher.spec.checkpoint,
            "usage": {"prompt_tokens": words, "total_tokens": words},
        }
    )


def _side(text: str) -> str:
    return "image" if text.startswith("data:image/") else "text"


@router.get("/api/items/{item_id:path}/image", response_class=Response)
async def image(request: Request, item_id: str) -> Response:
    """An item's image."""
    room = _room(request)
    data, kind = await room.off_loop(room.pictures.image, item_id)
    return Response(data, media_type=kind, headers=_CACHED)


@router.get("/api/items/{item_id:path}/thumbnail", response_class=Response)
async def thumbnail(request: Request, item_id: str) -> Response:
    """An item's image as a JPEG of at most 320 pixels a side."""
    room = _room(request)
    data = await room.off_loop(room.pictures.thumbnail, item_id)
    return Response(data, media_type="image/jpeg", headers=_CACHED)


@router.get("/api/store", responses=says(schema.StoreAnswer))
async def store(request: Request) -> Response:
    """What is served: how many images, by which model, through which index, what failed."""
    room = _room(request)
    return Json(await room.off_loop(_store, room))


def _store(room: Room) -> dict[str, Any]:
    live, searcher = room.live, room.live.searcher
    failures = searcher.store.failures() if searcher.store else []
    index = searcher.saved
    return {
        "items": len(searcher.catalog),
        "model": searcher.spec.checkpoint,
        "captioners": live.caption_models,
        "failures": [{"id": f.item_id, "reason": f.reason} for f in failures[:_MOST_FAILURES]],
        "failed": len(failures),
        "index": index.manifest.recipe if index else "",
        "recall_at_10": index.manifest.report.get("recall_at_10") if index else None,
        "reloads": max(0, live.reloads),
        "notes": [live.fault] if live.fault else [],
    }


@router.get("/healthz", include_in_schema=False)
async def health(request: Request) -> Response:
    """Whether the model answers: a real forward pass."""
    if await _room(request).is_healthy():
        return Json({"status": "ok"})
    raise Stopping("the model does not answer")


@router.get("/readyz", include_in_schema=False)
async def ready(request: Request) -> Response:
    """Whether questions can be answered."""
    live = _room(request).live
    if live.is_ready:
        return Json({"status": "ready", "fault": live.fault})
    raise Stopping("the model is being loaded")
