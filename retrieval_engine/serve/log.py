"""What a server notes: one JSON object a line."""

import asyncio
import json
import logging
import sys

_TOGETHER_S = 0.05


class JsonLines(logging.Formatter):
    """One JSON object a line; what a client sent cannot make a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        said: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
        }
        if request := getattr(record, "said", None):
            return json.dumps({**said, **request})
        said |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said)


class Gathered(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes what a loop notes within a twentieth of a second in one call; warnings at once.

    A call for each request would each time give the interpreter away to a model's thread.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._lines.append(self.format(record) + self.terminator)
        if record.levelno < logging.WARNING:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # another thread, which writes for itself
                pass
            else:
                if len(self._lines) == 1:
                    loop.call_later(_TOGETHER_S, self.flush)
                return
        self.flush()

    def flush(self) -> None:
        """Write what was noted."""
        with self.lock:  # type: ignore[union-attr]
            lines, self._lines = self._lines, []
            try:
                self.stream.write("".join(lines))
                self.stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                pass


def log_lines() -> None:
    """JSON lines on stderr, for requests and for what goes wrong."""
    handler = Gathered()
    for name in ("vlre", "retrieval_engine", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.WARNING if name == "uvicorn.error" else logging.INFO)
