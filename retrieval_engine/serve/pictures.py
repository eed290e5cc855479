"""Images of items, whole and small. Only what the store itself names is ever opened."""

import hashlib
import io

from PIL import Image

from retrieval_engine.errors import SourceError
from retrieval_engine.index.catalog import Entry
from retrieval_engine.serve.live import Live
from retrieval_engine.serve.refusals import not_found
from retrieval_engine.serve.thumbnails import Thumbnails
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

THUMBNAIL_PIXELS = 320
# Formats that browsers show; all others are sent as JPEG.
_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
}


class ServedPictures:
    """Images of the items that are served.

    Args:
        live: says where they are.
        max_pixels: of an image.
        kept: small ones that were made before.
    """

    def __init__(self, live: Live, *, max_pixels: int, kept: Thumbnails) -> None:
        self._live = live
        self._max_pixels = max_pixels
        self._kept = kept

    def read(self, item_id: str) -> bytes:
        """The file of an item.

        Raises:
            Refused: there is no such item, or its file has gone.
        """
        return _bytes_of(self._live.entry(item_id))

    def image(self, item_id: str) -> tuple[bytes, str]:
        """An item's image as a browser shows it, and its media type."""
        data = self.read(item_id)
        try:
            kind = Image.open(io.BytesIO(data)).format or ""
        except (OSError, ValueError, Image.DecompressionBombError):
            kind = ""
        if kind in _TYPES:
            return data, _TYPES[kind]
        return _jpeg(decode(data, max_pixels=self._max_pixels)), _TYPES["JPEG"]

    def thumbnail(self, item_id: str) -> bytes:
        """An item's image as a JPEG of at most 320 pixels a side, made once for its content."""
        entry = self._live.entry(item_id)
        if kept := self._kept.get(entry.key):
            return kept
        data, side = _bytes_of(entry), THUMBNAIL_PIXELS
        picture = decode(data, max_pixels=self._max_pixels, least_side=side)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        made = _jpeg(picture)
        if hashlib.sha256(data).hexdigest() == entry.key:  # else its file has changed
            self._kept.put(entry.key, made)
        return made


def _bytes_of(entry: Entry) -> bytes:
    try:
        return read_bytes(entry.uri)
    except SourceError as error:
        raise not_found(f"the image of {entry.id[:200]!r} cannot be read") from error


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
