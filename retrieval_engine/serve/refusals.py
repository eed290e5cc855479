"""Every answer that is an error, in one form.

    {"error": {"code": "not_found", "message": "…", "hint": "…", "request_id": "…"}}

Beyond status 499 nothing of what went wrong inside is told; it is in the server's log.
"""

import logging
import math
from collections.abc import Mapping

from starlette.responses import JSONResponse

from retrieval_engine.errors import (
    CheckpointInvalid,
    DecodeError,
    FeatureMissing,
    ShapeError,
    UsageError,
    VlreError,
)

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        code: one word for programs.
        message: one line for people.
        hint: what to do.
        headers: more of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.headers = dict(headers or {})

    def response(self, request_id: str) -> JSONResponse:
        """The answer."""
        error = {"code": self.code, "message": self.message, "hint": self.hint}
        return JSONResponse(
            {"error": {**error, "request_id": request_id}}, self.status, headers=self.headers
        )


class Overloaded(Refused):
    """More questions wait than the server takes on.

    Args:
        name: of what they wait for.
        wait_s: when there may be room again.
    """

    def __init__(self, name: str, wait_s: float) -> None:
        super().__init__(
            429,
            "overloaded",
            f"too many questions wait for the {name}",
            hint="ask again after the seconds in Retry-After",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
        )


class Stopping(Refused):
    """The server ends, or has not begun."""

    def __init__(self, message: str = "the server is stopping") -> None:
        super().__init__(503, "unavailable", message, headers={"Retry-After": "1"})


def not_found(what: str) -> Refused:
    """There is no such thing."""
    return Refused(404, "not_found", what)


def refusal_of(error: BaseException) -> Refused:
    """What is told of an error."""
    match error:
        case Refused():
            return error
        case DecodeError():
            return Refused(400, "bad_image", error.message, hint=error.hint)
        case UsageError() | ShapeError():
            return Refused(400, "bad_request", error.message, hint=error.hint)
        case CheckpointInvalid() | FeatureMissing():
            _log.warning("%s", error)
            return Refused(501, "not_supported", "this model or store cannot do that")
        case VlreError():
            _log.error("%s", error)
            return Refused(
                503, "unavailable", "the store cannot answer now", headers={"Retry-After": "1"}
            )
    _log.error("unforeseen", exc_info=error)
    return Refused(500, "internal", "something went wrong inside; the log has it by request_id")
