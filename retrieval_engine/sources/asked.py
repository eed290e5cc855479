"""The one picture that a person asks with: a path, an item's uri, `file://…` or `http(s)://…`.

Only what a person names is fetched: `read_bytes`, which reads the items of sources and stores,
opens a connection to nothing but what lies below a source or store that a person named.
"""

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler

from retrieval_engine.errors import SourceError
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.reading import read_whole

MAX_DOWNLOAD = 64 << 20
"""Largest picture fetched, in bytes."""
TIMEOUT_S = 30.0
"""Time a picture may take to come, all redirections included."""
_ANSWER_S = 10.0
_CHUNK = 1 << 16


def read_asked(uri: str, *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_DOWNLOAD) -> bytes:
    """The bytes of a picture.

    Args:
        uri: a path (an existing file comes before a source of that name; `~` is the home
            directory), the uri of an item, `file:///path`, `http://…` or `https://…`.
        timeout_s: for `http(s)`, how long it may take in all.
        max_bytes: for `http(s)`, refuse more than this.

    Raises:
        SourceError: the bytes cannot be had; the message is the reason.
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if scheme in {"http", "https"}:
        return _fetch(uri, timeout_s, max_bytes)
    if scheme == "file":
        return read_whole(_local(uri))
    path = os.path.expanduser(uri)
    return read_whole(path) if os.path.lexists(path) else read_bytes(uri)


def _local(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in {"", "localhost"}:
        raise SourceError(
            f"{uri} is on another machine, {parts.netloc}",
            hint="a file of this machine is file:///path, with three slashes",
        )
    return Path(urllib.request.url2pathname(parts.path))


def _fetch(url: str, timeout_s: float, max_bytes: int) -> bytes:
    begun = time.monotonic()
    # the default opener would also follow to ftp:// and read data: and file:
    opener = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(), *_answers()):
        opener.add_handler(handler)
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vlre", "Accept": "image/*"})
        with opener.open(request, timeout=min(_ANSWER_S, timeout_s)) as answer:
            while chunk := answer.read1(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise SourceError(f"{url} has more than {max_bytes:,} bytes")
                if time.monotonic() - begun > timeout_s:
                    raise SourceError(
                        f"{url} is not here after {timeout_s:g} s; {len(data):,} bytes came"
                    )
            promised = answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        error.close()
        said = " ".join(str(error.reason).split())
        raise SourceError(f"{url} answers {error.code} {said}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", "") or error).split())
        raise SourceError(f"cannot fetch {url}: {reason}") from error
    if promised.isdecimal() and int(promised) > len(data):
        raise SourceError(f"{url} ended after {len(data):,} of {int(promised):,} bytes")
    return bytes(data)


def _answers() -> tuple[urllib.request.BaseHandler, ...]:
    """What makes an error of an answer, and follows redirections; within http and https alone."""
    return (
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirect(),
        urllib.request.UnknownHandler(),
    )


class _Redirect(urllib.request.HTTPRedirectHandler):
    max_redirections = 5
