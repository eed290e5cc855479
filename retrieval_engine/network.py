"""Whether there is a network to wait for, and what people keep on the hub."""

import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from retrieval_engine.errors import HubFailure, UsageError, one_line

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
TOKEN_HINT = (
    "make one that may write at https://huggingface.co/settings/tokens, then run `hf auth login` or "
    "set HF_TOKEN"
)


def endpoint() -> str:
    """Where the hub is: `HF_ENDPOINT`, read at each call, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_is_reachable(timeout_s: float = 0.8) -> bool:
    """Whether the hub answers on its port; no longer than the timeout, DNS included.

    The hub's own client tries for 23 seconds before it says that there is no network.
    """
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    parts = urlsplit(endpoint())
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    answered = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection(address, timeout=timeout_s).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()


def hub_id(place: str | os.PathLike[str]) -> str:
    """A name as `USER/NAME` or `USER/NAME@REVISION`; empty where it can only be a path, or is one."""
    name = Path(place).as_posix()
    return name if _ID.fullmatch(name) and not Path(place).exists() else ""


def from_hub(what: str, name: str, patterns: Sequence[str] | None = None) -> Path:
    """The files of a model, adapter, head or index that lies on the hub, in the hub client's cache.

    Args:
        what: noun for the message, e.g. `checkpoint`.
        name: `USER/NAME`, perhaps with `@REVISION`.
        patterns: names of the files that are needed; None for all.

    Returns:
        A folder named after the commit.

    Raises:
        HubFailure: it is not on this machine, and the hub has it not, refuses it or is out of reach.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    online = hub_is_reachable()
    try:
        with explaining(repo):
            return Path(
                snapshot_download(
                    repo,
                    revision=revision or None,
                    allow_patterns=None if patterns is None else list(patterns),
                    local_files_only=not online,
                    endpoint=endpoint(),
                )
            )
    except HubFailure as error:
        why = error.message if online else "the hub cannot be reached from here"
        raise HubFailure(
            f"{what} {name} is not on this machine and {why}",
            hint=error.hint
            if online
            else f"where there is network, run `hf download {repo} --local-dir DIR`, and copy DIR here",
        ) from error


@contextmanager
def explaining(repo: str) -> Iterator[None]:
    """Failures of the hub's client within the block are `HubFailure`s of one line.

    Args:
        repo: what it is about, `USER/NAME`.

    Raises:
        HubFailure: the hub refuses, has no such repository, or is out of reach.
        UsageError: the name is none that the hub allows.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is no name on the hub: {one_line(error)}") from error
    except Exception as error:  # of the HTTP client, which has changed its name twice
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        if not (failure := _explained(cause or error, repo)):
            raise
        raise failure from error


def _explained(error: BaseException, repo: str) -> HubFailure | None:
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        inner = error.__cause__
        if not isinstance(inner, HfHubHTTPError):
            return HubFailure("the hub cannot be reached", hint="try again when there is network")
        error = inner
    if isinstance(error, GatedRepoError):
        return HubFailure(
            f"{repo} is given to those who asked for it alone", hint=f"ask at {endpoint()}/{repo}"
        )
    if isinstance(error, HfHubHTTPError):
        said = one_line(Exception(getattr(error, "server_message", "") or error))
        status = error.response.status_code
        if status == 401 and get_token():
            return HubFailure(f"the hub does not take the token (401: {said})", hint=TOKEN_HINT)
        if status in (401, 404):
            seen = "this token may see" if get_token() else "anybody may see, and no token is set"
            return HubFailure(f"the hub has no {repo} that {seen} ({status})", hint="")
        if status == 403:
            hint = "it needs the right to write for a push, to read for a private repository"
            return HubFailure(f"the token may not do this with {repo} (403: {said})", hint=hint)
        return HubFailure(f"the hub answered {status} about {repo}: {said}", hint="try again later")
    if type(error).__module__.startswith("httpx") or isinstance(error, ConnectionError):
        again = "try again when there is network; what was sent is not sent twice"
        return HubFailure(f"the hub cannot be reached: {one_line(error)}", hint=again)
    return None
