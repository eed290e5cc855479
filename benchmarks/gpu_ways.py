"""What a vision tower could reach on a GPU: its pixels already there, compiled, as a CUDA graph."""

import copy
import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.report import emit
from retrieval_engine.models.batching import piece_size
from retrieval_engine.models.device import forbid_tf32, normalized_pixels, on_device

_ROUNDS = 3


class Clock:
    """Times work on a device, until the time is used up.

    Args:
        device: `cuda` or `cpu`.
        tiny: one run of each, for a test.
        seconds: after which nothing further begins.
    """

    def __init__(self, device: str, *, tiny: bool, seconds: float) -> None:
        self.device, self.tiny = torch.device(device), tiny
        self.on_cuda = self.device.type == "cuda"
        self._until = time.perf_counter() + seconds
        forbid_tf32(self.device, torch.float32)

    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.perf_counter() > self._until

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = _ROUNDS) -> float:
        """Median of some runs, after one that warms up; the device is waited for."""
        work()
        taken = []
        for _ in range(1 if self.tiny else rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


@torch.inference_mode()
def variants(
    clock: Clock, encoder: Any, said: dict[str, Any], pixels: Any, *, compiled: bool
) -> None:
    """Images a second of the copies alone, and of the model with its pixels on the device.

    Args:
        clock: times.
        encoder: a float16 one on CUDA; with `compiled` its layers are compiled in the end.
        said: goes into every line.
        pixels: (n, s, s, 3) uint8; a piece of them is used.
        compiled: also as a CUDA graph, and with compiled layers.
    """
    n = piece_size(encoder.tokens_per_image, clock.device.type) or len(pixels)
    pixels = pixels[:n]
    prepare = partial(normalized_pixels, pixels, encoder.preprocessor, clock.device)
    x = prepare()
    states = encoder.vision_tower(x)
    told = partial(_tell, clock, said)
    told("copy and normalise", prepare, len(x))
    told("copy, pageable", lambda: torch.from_numpy(pixels).to(clock.device), len(x))
    told("copy, pinned", lambda: on_device(pixels, clock.device), len(x))
    told("tokens back, pageable", lambda: states.cpu(), len(x))
    told("tower", lambda: encoder.vision_tower(x), len(x))
    features = partial(itc, encoder, x)
    told = partial(told, batch=len(x), expected=_in_float32(encoder, x[:16]))
    told("features", features)
    if not clock.on_cuda:
        return
    if hasattr(encoder, "queries"):
        told("features, Q-Former in float16", partial(_half, features))
    torch.set_float32_matmul_precision("high")
    try:
        told("features, TF32", features)
        if compiled:
            profile(clock, f"features of {said['model']}, TF32", features)
            for layer in _tower(encoder).vision_model.encoder.layers:
                layer.compile()
            told("features, TF32, compiled layers", features)
            told("features, TF32, compiled layers, CUDA graph", features, graphed=True)
    finally:
        torch.set_float32_matmul_precision("highest")


def itc(encoder: Any, x: Tensor) -> Tensor:
    """(n, q, d) ITC vectors of normalised pixels."""
    found: Tensor = encoder.of_vision_states(encoder.vision_tower(x), ["itc"])["itc"]
    return found


def _tell(
    clock: Clock,
    said: dict[str, Any],
    way: str,
    work: Callable[[], Any],
    batch: int,
    *,
    expected: Tensor | None = None,
    graphed: bool = False,
) -> None:
    if clock.is_over():
        return
    try:
        work = _graph(work) if graphed else work
        rate = round(batch / clock.seconds(work, 5), 1)
        found = {}
        if expected is not None:
            some = work()[: len(expected)].float().flatten(1)
            found["smallest_cosine"] = float(cosine_similarity(some, expected.flatten(1)).min())
        emit("gpu-model", **said, way=way, batch=batch, images_per_s=rate, **found)
    except Exception as error:  # noqa: BLE001  one way that fails costs no other
        failed(f"{said['model']} {way}", error)


def _tower(encoder: Any) -> Any:
    return encoder.vision if hasattr(encoder, "vision") else encoder.model.vision_model


def _half(features: Callable[[], Tensor]) -> Tensor:
    with torch.autocast("cuda", torch.float16):
        return features()


def _graph(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _in_float32(encoder: Any, x: Tensor) -> Tensor:
    """ITC vectors of a float32 copy of the tower."""
    tower, dtype = _tower(encoder), encoder.dtype
    held, name = (
        (encoder, "vision") if hasattr(encoder, "vision") else (encoder.model, "vision_model")
    )
    try:
        setattr(held, name, copy.deepcopy(tower).float())
        encoder.dtype = torch.float32
        return itc(encoder, x).float()
    finally:
        setattr(held, name, tower)
        encoder.dtype = dtype


def profile(clock: Clock, what: str, work: Callable[[], object]) -> None:
    """The ten kernels that take longest, and how busy the device is; nothing on a CPU."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    if not clock.on_cuda or clock.is_over():
        return
    try:
        work()
        clock.wait()
        with recorded(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            began = time.perf_counter()
            work()
            clock.wait()
            whole_ms = round(1000 * (time.perf_counter() - began), 1)
        events: list[Any] = list(found.key_averages())
        rows = [e for e in events if e.self_device_time_total and "CPU" not in str(e.device_type)]
        rows.sort(key=lambda row: -row.self_device_time_total)
        top = [f"{r.key[:60]} x{r.count} {r.self_device_time_total / 1000:.2f}" for r in rows[:10]]
        busy_ms = round(sum(row.self_device_time_total for row in rows) / 1000, 1)
        emit("gpu-profile", of=what, whole_ms=whole_ms, busy_ms=busy_ms, top_ms=top)
    except Exception as error:  # noqa: BLE001  figures are worth more than their profile
        failed(f"profile of {what}", error)


def failed(what: str, error: Exception) -> None:
    """An error as a line."""
    emit("gpu-failed", of=what, error="".join(traceback.format_exception(error)[-4:])[-900:])
