"""The forms in which captions leave the server."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.responses import Response

from retrieval_engine.errors import DecodeError
from retrieval_engine.serve.answering import Picture, Written
from retrieval_engine.serve.refusals import Refused


def row_of(name: str, picture: Any, written: Iterator[Written]) -> dict[str, Any]:
    """What was written about one image, or why nothing was.

    Args:
        name: of the image.
        picture: it, or what made reading it fail.
        written: what was written about those that could be read; one is taken.

    Raises:
        Exception: what made it fail, where that is no fault of the image.
    """
    if isinstance(picture, Picture):
        found = next(written)
        scores = [round(score, 4) for score in found.scores]
        return {"image": name, "captions": list(found.captions), "scores": scores, "error": None}
    if isinstance(picture, DecodeError) or (isinstance(picture, Refused) and picture.status == 404):
        return {"image": name, "captions": [], "scores": [], "error": picture.message}
    raise picture


def as_csv(rows: Sequence[dict[str, Any]]) -> Response:
    """A row for each sentence; what a spreadsheet would run as a formula is told to be text."""
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(["image", "caption", "score", "error"])
    for row in rows:
        lines = list(zip(row["captions"], row["scores"], strict=True)) or [("", "")]
        for text, score in lines:
            table.writerow([_cell(row["image"]), _cell(text), score, _cell(row["error"] or "")])
    headers = {"Content-Disposition": 'attachment; filename="captions.csv"'}
    return Response(file.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
