"""The forms in which captions leave the server."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response


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
