"""The log of a run: one JSON object per line, the same to a tracker when asked for, and a plot."""

import importlib.util
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_engine.durable import replacing_file, writing
from retrieval_engine.records import Json
from retrieval_engine.train.trackers import RunTracker

OnValidation = Callable[[int, Mapping[str, float]], None]
"""Called with the step of a validation whose weights may be kept, and its figures by name.

What it raises ends the training there and then; nothing is written as its result.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot among those drawn of a run's log.

    Attributes:
        names: figures in the log's lines.
        label: what they measure, with the unit.
        top: end of the axis, or None to fit.
    """

    names: tuple[str, ...]
    label: str
    top: float | None = None


class RunLog:
    """Appends lines to `log.jsonl`; a resumed run first drops the lines it will write again.

    Args:
        path: the file.
        keep_steps: lines of later steps are dropped; 0 starts anew.
        tracker: gets every line too.
        is_kept: False in all processes of a run but the first: two would drop each other's lines.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_steps: int = 0,
        tracker: RunTracker | None = None,
        is_kept: bool = True,
    ) -> None:
        self._path, self._is_kept, self._tracker = path, is_kept, tracker
        if not is_kept:
            return
        lines = read_log(path) if keep_steps and path.exists() else []
        kept = [line for line in lines if int(str(line["step"])) <= keep_steps]
        with replacing_file(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, line: Mapping[str, Json]) -> None:
        """Append one line; it has a `step`."""
        if not self._is_kept:
            return
        with writing(self._path), self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, allow_nan=False) + "\n")
        if self._tracker is not None:
            self._tracker.log(line, int(str(line["step"])))

    def close(self) -> None:
        """Let the tracker write what it holds back."""
        if self._tracker is not None:
            self._tracker.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; one cut off by a crash is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in io.StringIO(text) if line.endswith("\n")]


def draw_curves(log: Path, plot: Path, panels: Sequence[Panel], *, along: str = "step") -> bool:
    """Plot figures of a log, panels side by side.

    Args:
        log: a `log.jsonl`.
        plot: where the PNG goes.
        panels: what to draw; figures that the log does not have are left out. A figure inside
            another, `{"a": {"b": 1}}`, is called `a b`.
        along: what the figures are plotted over.

    Returns:
        False where matplotlib (extra `plots`) is not installed; nothing is written then.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = [dict(_flat(line)) for line in read_log(log)]
    # Fixed margins: having them found takes as long as drawing, and every training draws.
    figure = Figure(figsize=(10, 4))
    margins = {"left": 0.07, "right": 0.985, "bottom": 0.13, "top": 0.95, "wspace": 0.22}
    for axes, panel in zip(
        figure.subplots(1, len(panels), gridspec_kw=margins), panels, strict=True
    ):
        for name in panel.names:
            points = [(line[along], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker=".")
        axes.set(xlabel=along, ylabel=panel.label, ylim=(0, panel.top))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # a tick takes milliseconds
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend(frameon=False)
    with replacing_file(plot) as file:
        packed = {"compress_level": 1}  # a twentieth larger, written in a third of the time
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None}, pil_kwargs=packed)
    return True


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in line.items():
        inner = value.items() if isinstance(value, dict) else None
        yield from [(name, value)] if inner is None else ((f"{name} {k}", v) for k, v in inner)
