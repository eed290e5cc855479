"""Images of items, whole and small. Only what the store itself names is ever opened."""

import io
import threading
from collections import OrderedDict

from PIL import Image

from retrieval_engine.errors import SourceError
from retrieval_engine.serve.live import Live
from retrieval_engine.serve.refusals import not_found
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

THUMBNAIL_PIXELS = 320
_KEPT_BYTES = 64 << 20
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
    """

    def __init__(self, live: Live, *, max_pixels: int) -> None:
        self._live = live
        self._max_pixels = max_pixels
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._turn = threading.Lock()

    def read(self, item_id: str) -> bytes:
        """The file of an item.

        Raises:
            Refused: there is no such item, or its file has gone.
        """
        uri = self._live.entry(item_id).uri
        try:
            return read_bytes(uri)
        except SourceError as error:
            raise not_found(f"the image of {item_id[:200]!r} cannot be read") from error

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
        """An item's image as a JPEG of at most 320 pixels a side; the last ones are kept."""
        name = f"{self._live.entry(item_id).uri}\n{self._live.reloads}"
        with self._turn:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        side = THUMBNAIL_PIXELS
        picture = decode(self.read(item_id), max_pixels=self._max_pixels, least_side=side)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        made = _jpeg(picture)
        with self._turn:
            if name not in self._kept:
                self._kept[name] = made
                self._bytes += len(made)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
