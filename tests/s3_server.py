"""A real S3 server (moto's) on a free port of this machine, which fails when it is told to."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.loopback import serving

BUCKET = "photos"
Fault = Callable[[str, str], str]
"""From method and path: `503`, `403`, `slow`, `half` (a body cut off), `lost` (done, and yet
answered by 503), or empty for a request that goes well."""


@dataclass(slots=True)
class Served:
    """The server.

    Attributes:
        url: of the server itself.
        fault: asked about each request.
        requests: method and path of those that came.
    """

    app: Any
    url: str = ""
    fault: Fault = lambda method, path: ""
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if fault == "slow":
            time.sleep(1.2)
        if fault in {"503", "403"}:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = "SlowDown" if fault == "503" else "AccessDenied"
            return _error(start, f"{fault} {code}", code)
        if fault == "lost":
            list(self.app(environ, lambda *given: None))
            return _error(start, "503 SlowDown", "SlowDown")
        answer = self.app(environ, start)
        return _half(answer) if fault == "half" else answer

    def count(self, method: str, ending: str = "") -> int:
        """How many requests of a method there were for paths that end so."""
        return sum(m == method and path.endswith(ending) for m, path in self.requests)


def _error(start: Any, status: str, code: str) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>as the test asked</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _half(answer: Iterable[bytes]) -> Iterator[bytes]:
    body = b"".join(answer)
    yield body[: len(body) // 2]


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[Served]:
    """The server with an empty bucket, until the block ends."""
    served = Served(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, served, threaded=True, request_handler=_Quiet)
    with serving(server) as served.url:
        yield served


def environment(served: Served) -> dict[str, str]:
    """What a user would set to reach it."""
    return {
        "AWS_ENDPOINT_URL": served.url,
        "AWS_ACCESS_KEY_ID": "for-a-test",
        "AWS_SECRET_ACCESS_KEY": "for-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
