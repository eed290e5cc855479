"""The file systems of fsspec, set up so that none waits for ever, and their failures in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from retrieval_engine.errors import MissingExtra, UrlFailure, UrlMissing, UsageError
from retrieval_engine.urls.named import check_named

READERS = 16
"""Files that are read at once: most of the time of each is waiting."""
HTTP = frozenset(("http", "https"))
S3 = frozenset(("s3", "s3a"))
_ANSWER_S, _SILENCE_S = 5, 20


@contextmanager
def system_of(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of an address and its path there; failures within are told as of it."""
    check_named(url)
    with telling(url):
        system = file_system(scheme_of(url))
        yield system, str(system._strip_protocol(url))


def scheme_of(url: str) -> str:
    """What stands before `://`, in lower case."""
    return url.partition("://")[0].lower()


def file_system(scheme: str) -> Any:
    """The fsspec file system of a scheme, one for each process."""
    return _file_system(scheme, os.getpid())


@cache
def _file_system(scheme: str, process: int) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        if scheme in S3:
            raise MissingExtra("s3fs", "s3") from error
        raise UsageError(f"{scheme}:// needs another library: {error}") from error
    except ValueError as error:
        raise UsageError(f"{scheme}:// is no scheme that fsspec knows") from error


def _options(scheme: str) -> dict[str, Any]:
    """Limits of time, and no listing that is remembered; what the user's settings say comes first."""
    if scheme in S3:
        from fsspec.config import conf

        known = dict(conf.get(scheme, {}).get("config_kwargs", {}))
        limits = {"connect_timeout": _ANSWER_S, "read_timeout": _SILENCE_S}
        limits["max_pool_connections"] = 2 * READERS
        return {"use_listings_cache": False, "config_kwargs": {**limits, **known}}
    if scheme in HTTP:
        import aiohttp

        limit = aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_S, sock_read=_SILENCE_S)
        return {
            "client_kwargs": {"timeout": limit, "raise_for_status": _refuse_redirection},
            "allow_redirects": False,
        }
    return {"auto_mkdir": True} if scheme in {"file", "local"} else {}


async def _refuse_redirection(answer: Any) -> None:
    """What another machine's address answers for it is not what was named."""
    if 300 <= answer.status < 400:
        raise UrlFailure(
            f"{answer.request_info.url} is redirected to another address, which is not followed",
            hint="name the address it leads to",
        )


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Failures of any file system within the block become one line about this address.

    Raises:
        UrlMissing: nothing is there.
        UrlFailure: every other failure.
    """
    try:
        yield
    except (UrlFailure, MissingExtra, UsageError):
        raise
    except Exception as error:  # botocore, aiohttp, … have each their own tree
        told = reason_of(error)
        kind = UrlMissing if told is None else UrlFailure
        reason, hint = told or ("there is nothing", "")
        raise kind(f"cannot read {url}: {reason}", hint=hint) from error


def reason_of(error: BaseException) -> tuple[str, str] | None:
    """Why, and what to do about it; None where nothing is there."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and type(cause).__module__.startswith("aiohttp"):
        return (
            reason_of(cause) if cause else None
        )  # fsspec says of every failure that it is missing
    if isinstance(error, UrlFailure):
        return error.message, error.hint
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status", None)
    said = str(getattr(error, "strerror", None) or error)
    said = " ".join(said.split())[:200] or type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        return None
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        return (
            "no credentials were found",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if isinstance(error, PermissionError) or status in {401, 403}:
        return f"access is refused ({said})", ""
    if isinstance(error, TimeoutError) or any("Timeout" in name for name in kinds):
        return "no answer in time", ""
    if status is not None:
        return f"the server answers {status}", ""
    return said, ""
