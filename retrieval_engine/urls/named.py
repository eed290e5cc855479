"""Which addresses may be opened: those below one that a person named.

Named is what was given as a source or store to this process or to one that started it, and what the
environment variable `VLRE_URLS` holds.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import unquote, urlsplit

from retrieval_engine.errors import UrlFailure, UsageError

NAMED = "VLRE_URLS"
"""Environment variable: addresses, with blanks between them, below which files may be read."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_MAGIC = re.compile(r"[*?\[{]")
_is_closed: ContextVar[bool] = ContextVar("_is_closed", default=False)


def is_url(text: str) -> bool:
    """Whether a text is an address rather than a path."""
    return _URL.match(text) is not None


def as_url(place: str | os.PathLike[str]) -> str:
    """The address that a path stands for, also where `Path` made `s3:/b` of it; else empty."""
    found = _COLLAPSED.match(os.fspath(place))
    if not found:
        return ""
    local = "/" if found[1].lower() in {"file", "local"} else ""
    return f"{found[1]}://{local}{os.fspath(place)[found.end() :]}"


def name_url(url: str) -> None:
    """Let files below an address be read: a person named it.

    Raises:
        UsageError: it has a password in it, which would be written down with it, or cannot be one.
        UrlFailure: strangers' addresses alone are read now, and this is none of those named.
    """
    parts = urlsplit(url)
    if "::" in url or ":" in parts.netloc.rpartition("@")[0]:
        raise UsageError(
            f"an address of {parts.scheme}:// has a password or a chain :: in it",
            hint="give credentials by the environment: an address is written down in stores",
        )
    root = fixed_part(url)
    if _is_closed.get():
        check_named(root)
    elif not _is_named(root):
        # processes that this one starts read the same items
        os.environ[NAMED] = f"{os.environ.get(NAMED, '')} {root.replace(' ', '%20')}".strip()


@contextmanager
def only_named() -> Iterator[None]:
    """Within the block no address is taken for a person's: what is opened comes from a file."""
    token = _is_closed.set(True)
    try:
        yield
    finally:
        _is_closed.reset(token)


def check_named(url: str) -> None:
    """Refuse an address that nobody named.

    Raises:
        UrlFailure: it is not below one of those named.
    """
    if not _is_named(url):
        raise UrlFailure(
            f"{url} is not read: nobody named it, or an address above it",
            hint=f"to trust it, set {NAMED} to the address of its folder",
        )


def _is_named(url: str) -> bool:
    parts = re.split(r"[/\\]", unquote(url.partition("://")[2]))
    if ".." in parts or "." in parts:
        return False
    roots = (root.replace("%20", " ") for root in os.environ.get(NAMED, "").split())
    return any(url == root or url.startswith(root.rstrip("/") + "/") for root in roots if root)


def fixed_part(url: str) -> str:
    """The folder above the first `*`, `?`, `[` or `{` of a pattern; an address without one is all."""
    return url[: found.start()].rpartition("/")[0] if (found := _MAGIC.search(url)) else url
