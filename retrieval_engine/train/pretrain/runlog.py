"""The log of a run: one JSON object per line, and a plot of it."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_engine.records import Json


class RunLog:
    """Appends lines to `log.jsonl`; a resumed run first drops the lines it will write again.

    Args:
        path: the file.
        keep_steps: lines of later steps are dropped; 0 starts anew.
    """

    def __init__(self, path: Path, *, keep_steps: int = 0) -> None:
        self._path = path
        lines = read_log(path) if keep_steps and path.exists() else []
        kept = [line for line in lines if int(str(line["step"])) <= keep_steps]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(path)

    def write(self, line: Mapping[str, Json]) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, allow_nan=False) + "\n")


def read_log(path: Path) -> list[dict[str, Json]]:
    """The whole lines of a log; one cut off by a crash is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def draw_curves(log: Path, picture: Path) -> bool:
    """Plot losses and recall over steps.

    Args:
        log: a `log.jsonl`.
        picture: where the PNG goes.

    Returns:
        False where matplotlib (extra `plots`) is not installed; nothing is written then.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    lines = read_log(log)
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, recalls = figure.subplots(1, 2)
    for name in ("itc", "itm", "lm", "concept", "region"):
        _curve(losses, lines, name)
    for name in ("text_to_image@1", "text_to_image@10", "image_to_text@1", "mean_recall"):
        _curve(recalls, lines, name)
    losses.set(xlabel="step", ylabel="loss", ylim=(0, None))
    recalls.set(xlabel="step", ylabel="recall on held-out items, per cent", ylim=(0, 100))
    for axes in (losses, recalls):
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(picture, dpi=120, metadata={"Software": None})
    return True


def _curve(axes: Any, lines: list[dict[str, Json]], name: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
