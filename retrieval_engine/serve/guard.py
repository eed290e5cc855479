"""What stands before every request: who may ask, how much, how fast; and what is noted of it."""

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrieval_engine.serve.figures import Figures
from retrieval_engine.serve.refusals import Overloaded, Refused, Stopping, refusal_of
from retrieval_engine.serve.settings import ServeSettings

COOKIE = "vlre_token"
_OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/session")
_OPEN_BELOW = "/static/"
_ALWAYS = ("/healthz", "/readyz", "/metrics")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})(?:\r\n|$)", re.IGNORECASE)
_BURST_S, _MOST_ADDRESSES = 5.0, 10_000
_DISCARD_S, _MOST_DISCARDED_BYTES = 2.0, 64 << 20
_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; "
     b"img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
     b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]  # fmt: skip
_log = logging.getLogger("vlre.requests")


class Guard:
    """The application behind its limits.

    Args:
        app: the application.
        settings: the limits.
        figures: where requests are counted.
        is_full: whether one more search would be refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        figures: Figures,
        is_full: Callable[[], bool],
    ) -> None:
        self._app = app
        self._settings = settings
        self._figures = figures
        self._is_full = is_full
        self._rates = _Rates(settings.requests_per_s)
        self._at_work = 0
        self._held = 0
        self.headers = list(_HEADERS)
        if settings.processes > 1:
            self.headers.append((b"x-process", str(os.getpid()).encode()))
        self.name, self.count = secrets.token_hex(4), itertools.count()  # make a request's id

    def refused_at_once(self, data: bytes, is_behind: bool = False) -> bytes | None:
        """The whole answer to what came over an idle connection, if it is a search too many.

        To read a request as others are read costs as much as to answer it: under several times the
        load that can be answered, refusing would take all the time, and nobody would hear of it.

        Args:
            data: as it came.
            is_behind: whether more comes than can be read, so that searches are too many anyhow.

        Returns:
            None for everything that is to be read, which are also requests of several parts.
        """
        if not data.startswith(b"POST /api/search ") or not (is_behind or self._is_full()):
            return None
        head, end, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or int(length[1]) != len(body) or b"\nExpect" in head:
            return None
        self._figures.note_request("/api/search", "POST", 429, 0.0)
        refused = Overloaded("encoder", 1)
        answer = refused.response(f"{self.name}{next(self.count):08x}")
        lines = [b"%s: %s" % pair for pair in (*answer.raw_headers, *self.headers)]
        return b"\r\n".join([b"HTTP/1.1 429 Too Many Requests", *lines, b"", bytes(answer.body)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the beginning and end of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def admit(self, scope: Scope, headers: "dict[bytes, bytes]") -> None:
        """Refuse whom this server does not answer.

        Raises:
            Refused: a foreign host name, another site's page, no token, too many, too large.
        """
        settings, path = self._settings, scope["path"]
        host = _name_of(headers.get(b"host", b"").decode("latin-1"))
        names = settings.host_names
        if names is not None and host not in names:
            raise Refused(
                421, "wrong_host", "this server has another name", hint="see `allowed_hosts`"
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            raise Refused(403, "cross_site", "pages of other sites may not ask here")
        if not self._rates.admit(str((scope.get("client") or ("",))[0]), time.monotonic()):
            raise Refused(
                429, "too_fast", "too many requests in a second", headers={"Retry-After": "1"}
            )
        if settings.token and not (path in _OPEN or path.startswith(_OPEN_BELOW)):
            self._check_token(headers)
        if path not in _ALWAYS and self._at_work > settings.max_requests:
            raise Stopping("too many requests are at work")
        self._check_length(headers)

    def _check_token(self, headers: "dict[bytes, bytes]") -> None:
        given = headers.get(b"authorization", b"")
        token = given[7:] if given[:7].lower() == b"bearer " else b""
        if not token and b"cookie" in headers:
            try:
                cookie = SimpleCookie(headers[b"cookie"].decode("latin-1")).get(COOKIE)
            except CookieError:
                cookie = None
            token = cookie.value.encode("latin-1", "replace") if cookie else b""
        if not is_token(token, self._settings.token):
            raise Refused(
                401,
                "unauthorized",
                "a token is needed",
                hint="send it in the header Authorization, after the word Bearer",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, headers: "dict[bytes, bytes]") -> None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._settings.max_body_bytes:
            raise _too_large(self._settings.max_body_bytes)


class _Exchange:
    """One request on its way through the application."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard = guard
        self._scope, self._receive, self._send = scope, receive, send
        self._headers: dict[bytes, bytes] = {}
        self._twice = False
        for name, value in scope["headers"]:
            self._twice |= name in self._headers and name in (b"host", b"content-length")
            self._headers[name] = value
        asked = self._headers.get(b"x-request-id", b"").decode("latin-1")
        self._id = asked if _ID.fullmatch(asked) else f"{guard.name}{next(guard.count):08x}"
        scope.setdefault("state", {})["request_id"] = self._id
        self._status = 0
        self._received = 0
        self._started = time.perf_counter()
        self._body_until: float | None = None

    async def run(self) -> None:
        """Answer, and note it."""
        guard = self._guard
        guard._at_work += 1
        try:
            if self._twice:
                raise Refused(400, "bad_request", "a header is there twice")
            guard.admit(self._scope, self._headers)
            await guard._app(self._scope, self._take, self._give)
        except Exception as error:  # noqa: BLE001
            # The outermost place: what comes here is refused above, or was answered and logged by
            # the application, which raises it once more for the server to log in its own form.
            if not self._status:
                response = refusal_of(error).response(self._id)
                await response(self._scope, self._receive, self._give)
        finally:
            guard._at_work -= 1
            guard._held -= self._received
            self._note()

    async def _take(self) -> Message:
        """The next part of the body, in time and within the limits."""
        settings = self._guard._settings
        now = time.monotonic()
        if self._status:  # the answer has begun; this waits for the client to go
            return await self._receive()
        self._body_until = self._body_until or now + settings.timeout_s
        try:
            async with asyncio.timeout(max(0.0, self._body_until - now)):
                message = await self._receive()
        except TimeoutError:
            raise _slow(settings.timeout_s) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._received += size
            self._guard._held += size
            if self._received > settings.max_body_bytes:
                raise _too_large(settings.max_body_bytes)
            if self._guard._held > settings.max_held_bytes:
                raise Overloaded("bodies of requests", 1)
        return message

    async def _give(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] == 413:
                await self._discard()
            self._status = message["status"]
            given = list(message.get("headers", []))
            given += [*self._guard.headers, (b"x-request-id", self._id.encode())]
            if self._status in (408, 413):  # the rest of the body is not read
                given.append((b"connection", b"close"))
            message = {**message, "headers": given}
        await self._send(message)

    async def _discard(self) -> None:
        """Let a body that is too large run out, within bounds.

        A connection that is closed over bytes nobody has read is reset, and a client that sends
        its whole body before it reads would never see the answer.
        """
        if b"expect" in self._headers:  # it waits for a word before it sends
            return
        most = min(_MOST_DISCARDED_BYTES, 4 * self._guard._settings.max_body_bytes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while most > 0:
                    message = await self._receive()
                    if not message.get("more_body"):
                        return
                    most -= len(message.get("body", b""))

    def _note(self) -> None:
        seconds = time.perf_counter() - self._started
        scope = self._scope
        route = getattr(scope.get("route"), "path", "") or "other"
        self._guard._figures.note_request(route, scope["method"], self._status, seconds)
        if _log.isEnabledFor(logging.INFO):
            client = (scope.get("client") or ("",))[0]
            said = {"request_id": self._id, "client": client, "method": scope["method"]}
            said |= {"path": scope["path"][:300], "status": self._status}
            _log.info("answered", extra={"said": {**said, "ms": round(seconds * 1e3, 1)}})


class _Rates:
    """A bucket for each address that fills at a steady rate."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, address: str, now: float) -> bool:
        """Whether one more request may come from an address."""
        if not self._per_s:
            return True
        most = max(1.0, self._per_s * _BURST_S)
        left, then = self._buckets.pop(address, (most, now))
        left = min(most, left + (now - then) * self._per_s)
        # A refusal costs nothing, or who asks again a little too early would never come in again.
        self._buckets[address] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return left >= 1


def is_token(given: bytes, token: str) -> bool:
    """Whether this is the token, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given, token.encode())


def _name_of(host: str) -> str:
    """The name in a Host header, without its port, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _too_large(limit: int) -> Refused:
    return Refused(413, "too_large", f"the body is larger than {limit:,} bytes")


def _slow(seconds: float) -> Refused:
    return Refused(408, "too_slow", f"the body did not come within {seconds:g} s")
