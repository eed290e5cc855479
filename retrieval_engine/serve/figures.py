"""What a server counts, in the text form of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_METHODS = {"GET", "POST", "HEAD", "OPTIONS"}
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Figures:
    """Counters of one server; two in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here = self._registry
        self._requests = Counter(
            "vlre_requests", "Requests answered", ["route", "method", "status"], registry=here
        )
        self._seconds = Histogram(
            "vlre_request_seconds",
            "Time of a request",
            ["route"],
            buckets=_SECONDS,
            registry=here,
        )
        self._batches = Histogram(
            "vlre_batch_size", "Questions at once", ["model"], buckets=_SIZES, registry=here
        )
        self._busy = Counter(
            "vlre_model_seconds", "Time that a model worked", ["model"], registry=here
        )

    def note_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route).observe(seconds)

    def note_batches(self, model: str) -> Callable[[int, float], None]:
        """What counts the batches of a model: their sizes and seconds."""
        sizes, busy = self._batches.labels(model), self._busy.labels(model)

        def note(size: int, seconds: float) -> None:
            sizes.observe(size)
            busy.inc(seconds)

        return note

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Show a number as it is when it is asked for."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as `/metrics` shows it."""
        return generate_latest(self._registry)
