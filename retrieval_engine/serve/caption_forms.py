"""The forms in which captions leave the server."""

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from starlette.responses import Response

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_csv(rows: Sequence[dict[str, Any]]) -> Response:
    """A row for each sentence; what a spreadsheet would run as a formula is told to be text."""
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(["image", "caption", "score", "error"])
    for row in rows:
        lines = list(zip(row["captions"], row["scores"], strict=True)) or [("", "")]
        for text, score in lines:
            table.writerow([_cell(row["image"]), _cell(text), score, _cell(row["error"] or "")])
    return _file(file.getvalue(), "csv", "text/csv; charset=utf-8")


def as_coco(rows: Sequence[dict[str, Any]]) -> Response:
    """COCO's results file: the best sentence of each image; those that failed are left out."""
    found = [{"image_id": r["image"], "caption": r["captions"][0]} for r in rows if r["captions"]]
    return _file(json.dumps(found, ensure_ascii=False), "json", "application/json")


def as_xml(rows: Sequence[dict[str, Any]]) -> Response:
    """An element for each image, and in it one for each sentence, or for what went wrong."""
    root = ElementTree.Element("captions")
    for row in rows:
        image = ElementTree.SubElement(root, "image", name=_NOT_IN_XML.sub("?", row["image"]))
        for text, score in zip(row["captions"], row["scores"], strict=True):
            caption = ElementTree.SubElement(image, "caption", score=f"{score:g}")
            caption.text = _NOT_IN_XML.sub("?", text)
        if row["error"]:
            ElementTree.SubElement(image, "error").text = _NOT_IN_XML.sub("?", row["error"])
    ElementTree.indent(root)
    data = ElementTree.tostring(root, encoding="unicode")
    return _file(f"<?xml version='1.0' encoding='UTF-8'?>\n{data}", "xml", "application/xml")


FORMS = {"csv": as_csv, "coco": as_coco, "xml": as_xml}


def _file(text: str, suffix: str, media_type: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="captions.{suffix}"'}
    return Response(text, media_type=media_type, headers=headers)


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
