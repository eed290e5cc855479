"""The log of a training as a picture."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval_engine.train.runlog import read_log


def kept_lines(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the run that was kept, where several were tried."""
    kind = lines[-1].get("kind") if lines else None
    mine = [line for line in lines if line.get("kind") == kind]
    best: Mapping[str, Any] = max(mine, key=lambda line: line["mean_recall"], default={})
    return [line for line in mine if line.get("start") == best.get("start")]


def draw_curves(log: Path, picture: Path) -> bool:
    """Plot the loss and the validation recall over epochs.

    Args:
        log: a `log.jsonl`.
        picture: where the PNG goes.

    Returns:
        False where matplotlib (extra `plots`) is not installed; nothing is written then.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    every = read_log(log)
    lines = kept_lines(every)
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, recall = figure.subplots(1, 2)
    learned = [line for line in lines if "loss" in line]
    loss.plot([line["epoch"] for line in learned], [line["loss"] for line in learned], marker=".")
    loss.set(xlabel="epoch", ylabel="training loss")
    epochs = [line["epoch"] for line in lines]
    recall.plot(epochs, [line["mean_recall"] for line in lines], label="mean of six", lw=2.5)
    for side, name in (("text_to_image", "text to image"), ("image_to_text", "image to text")):
        for k in ("R@1", "R@10"):
            values = [line[side][k] for line in lines]
            recall.plot(epochs, values, label=f"{name} {k}", lw=1, marker=".")
    others = {(line.get("kind"), line.get("start")): line for line in every if line not in lines}
    for kind, start in others:
        some = [line for line in every if (line.get("kind"), line.get("start")) == (kind, start)]
        values = [line["mean_recall"] for line in some]
        name = f"mean, {kind} from {start}"
        recall.plot([line["epoch"] for line in some], values, "--", lw=1, label=name)
    recall.set(xlabel="epoch (0 is the start)", ylabel="validation recall, percent", ylim=(0, 101))
    recall.legend(frameon=False, fontsize="small")
    for axes in (loss, recall):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=120, metadata={"Software": None})
    return True
