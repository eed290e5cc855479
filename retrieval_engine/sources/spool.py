"""Files behind addresses that are read in many small pieces: copied whole, a few at a time.

A tar's headers lie between its pictures. Asking for each alone would take a request and a wait for
every one of them, and its pictures would come a second time.
"""

import tempfile
import threading
from collections import OrderedDict
from functools import cache
from itertools import count
from pathlib import Path

from retrieval_engine.sources.reading import open_regular
from retrieval_engine.urls import Place, State, Url

_KEPT = 4
_lock = threading.Lock()
_numbers = count()
_copies: OrderedDict[str, tuple[State, Path]] = OrderedDict()


def local_copy(place: Place) -> Path:
    """A file of this machine with the same bytes; the last four are kept while the process runs.

    Raises:
        UrlFailure: it cannot be had.
    """
    if not isinstance(place, Url):
        return place
    state = place.state()
    with _lock:
        known = _copies.get(place.url)
    if known and known[0] == state and known[1].exists():
        return known[1]
    file = Path(_folder().name) / f"{next(_numbers)}-{place.name[-80:]}"
    try:
        place.download(str(file))
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    with _lock:
        old = [_copies.pop(place.url)] if place.url in _copies else []
        _copies[place.url] = state, file
        while len(_copies) > _KEPT:
            old.append(_copies.popitem(last=False)[1])
        for _, path in old:
            path.unlink(missing_ok=True)
    return file


def read_piece(place: Place, offset: int, size: int) -> bytes:
    """Bytes of a file, fewer where it ends before; of an address out of the copy where one is kept.

    Raises:
        OSError: a file of this machine cannot be read.
        UrlFailure: the address cannot be, or nobody named it.
    """
    if isinstance(place, Url):
        with _lock:
            known = _copies.get(place.url)
            file = open_regular(known[1]) if known else None
        if file is None:
            return place.read(size, start=offset) if size else b""
    else:
        file = open_regular(place)
    with file:
        file.seek(offset)
        return file.read(size)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vlre-")  # goes when the process ends
