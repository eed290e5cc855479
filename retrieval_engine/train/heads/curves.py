"""The log of a training as a picture."""

import importlib.util
from pathlib import Path

from retrieval_engine.durable import replacing_file
from retrieval_engine.train.runlog import read_log


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

    lines = read_log(log)
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
    recall.set(xlabel="epoch (0 is the start)", ylabel="validation recall, percent", ylim=(0, 101))
    recall.legend(frameon=False, fontsize="small")
    for axes in (loss, recall):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    with replacing_file(picture) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return True
