"""What a server counts, in the text form of Prometheus."""

import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

TOGETHER = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which several processes count together; set before this is imported."""

_METHODS = {"GET", "POST", "HEAD", "OPTIONS"}
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Figures:
    """Counters of one server; two in one process do not mix.

    Where several processes serve, they count together; what is watched is each one's own.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here = self._registry
        self._watched = _Watched()
        here.register(self._watched)
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
        self._watched.values[name] = what, value

    def text(self) -> bytes:
        """All of it, as `/metrics` shows it."""
        folder = os.environ.get(TOGETHER)
        if not folder:
            return generate_latest(self._registry)
        whole = CollectorRegistry()
        MultiProcessCollector(whole, folder)  # type: ignore[no-untyped-call]
        whole.register(self._watched)
        return generate_latest(whole)


class _Watched(Collector):
    """Numbers as they are when they are asked for; with the process, where there are several."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, Callable[[], float]]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `Collector`."""
        labels = {"process": str(os.getpid())} if os.environ.get(TOGETHER) else {}
        for name, (what, value) in self.values.items():
            family = GaugeMetricFamily(name, what, labels=list(labels))
            family.add_metric(list(labels.values()), value())
            yield family
