"""Plots of comparisons; each function gives the bytes of one PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from retrieval_engine.errors import MissingExtra
from retrieval_engine.evaluate.compare.caption_comparison import CaptionComparison
from retrieval_engine.evaluate.compare.comparison import KS, SIDES, Comparison
from retrieval_engine.evaluate.compare.samples import Sample
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.records import Modality
from retrieval_engine.store import Gallery

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by every kind of eye, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_TITLES = {"image_to_text": "image to text", "text_to_image": "text to image"}
_DOTS = 250
_LINES = 40
_LABEL, _CELL, _ROW, _PICTURE = 170, 170, 190, 150  # pixels of what is retrieved


def recall_bars(comparison: Comparison) -> bytes:
    """Recall of every run, both directions, with 95 % intervals."""
    figure = _figure(11, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    width = 0.84 / len(comparison.rows)
    for panel, side in zip(axes, SIDES, strict=True):
        for number, row in enumerate(comparison.rows):
            values = np.array([row.recall[side][k] for k in KS])
            places = np.arange(len(KS)) + (number - (len(comparison.rows) - 1) / 2) * width
            panel.bar(places, values, 0.92 * width, color=colour(number), label=row.name)
            tops = values.copy()
            if row.interval:
                low, high = np.array([row.interval[side][k] for k in KS]).T
                panel.errorbar(
                    places, values, [values - low, high - values], fmt="none", ecolor="#333", lw=1
                )
                tops = high
            for place, value, top in zip(places, values, tops, strict=True):
                turned = 90 if len(comparison.rows) > 4 else 0  # side by side they would overlap
                panel.text(
                    place,
                    top + 1.5,
                    f"{value:.1f}",
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    rotation=turned,
                )
        panel.set(title=_TITLES[side], ylim=(0, 118), xticks=range(len(KS)), xticklabels=KS)
        panel.set_yticks(range(0, 101, 20))
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    axes[0].set_ylabel("recall, percent; 95 % intervals")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return _png(figure)


def training_curves(comparison: Comparison) -> bytes | None:
    """Validation recall and loss over epochs of those runs that have a log."""
    logged = [(n, run) for n, run in enumerate(comparison.runs) if len(run.log) > 1]
    if not logged:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = _figure(11, 3.8)
    recall, loss = figure.subplots(1, 2)
    for number, run in logged:
        for panel, name in ((recall, "mean_recall"), (loss, "loss")):
            lines = [line for line in run.log if name in line]
            epochs = [line["epoch"] for line in lines]
            values = [line[name] for line in lines]
            panel.plot(epochs, values, color=colour(number), label=run.name, marker=".", ms=4)
    recall.set(
        xlabel="epoch (0 is the start)", ylabel="validation mean recall, percent", ylim=(0, 101)
    )
    loss.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    recall.legend(frameon=False)
    for panel in (recall, loss):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    return _png(figure)


def feature_maps(comparison: Comparison) -> tuple[bytes, list[str]]:
    """Images and captions on their two main axes under every run, and what each panel says.

    Returns:
        The plot, and a line for each panel: share of the variance that the two axes show, and
        cosines of true pairs and of others, which the eye cannot read off two axes.
    """
    galleries = comparison.galleries
    columns = min(3, len(galleries))
    rows = -(-len(galleries) // columns)
    figure = _figure(4.1 * columns, 3.9 * rows)
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    remarks = []
    for panel, (name, gallery) in zip(panels, galleries.items(), strict=False):
        images, texts = _sample_pairs(gallery)
        both = np.concatenate([images, texts])
        _, values, axes = np.linalg.svd(both - both.mean(0), full_matrices=False)
        share = 100 * (values[:2] ** 2).sum() / (values**2).sum()
        flat = (both - both.mean(0)) @ axes[:2].T
        left, right = flat[: len(images)], flat[len(images) :]
        for a, b in zip(left[:_LINES], right[:_LINES], strict=True):
            panel.plot(*zip(a, b, strict=True), color="#bbb", lw=0.6, zorder=1)
        panel.scatter(*left.T, s=9, color=COLOURS[0], label="images", zorder=2)
        panel.scatter(*right.T, s=9, color=COLOURS[1], marker="^", label="captions", zorder=2)
        cosines = images @ texts.T
        true = float(np.diag(cosines).mean())
        others = float((cosines.sum() - np.diag(cosines).sum()) / (cosines.size - len(cosines)))
        panel.set_title(f"{name}\n{share:.0f} % of variance shown", fontsize=10)
        panel.set_aspect("equal")
        panel.grid(alpha=0.25)
        remarks.append(
            f"{name}: cosine of true pairs {true:.2f}, of others {others:.2f} on average"
        )
    for panel in panels[len(galleries) :]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return _png(figure), remarks


def retrieved(sample: Sample, images: Mapping[str, NDArray[np.uint8] | None]) -> bytes:
    """What every run finds for one caption, a row a run; the right image is framed.

    Args:
        sample: the query and the hits.
        images: of each hit's uri; None where it cannot be read.
    """
    # Pillow lays out a hundred pictures in the time matplotlib takes for one.
    columns = max(len(hits) for hits in sample.hits.values())
    drawn = Image.new("RGB", (_LABEL + columns * _CELL, len(sample.hits) * _ROW), "white")
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for row, (name, hits) in enumerate(sample.hits.items()):
        label = f"{name}\nright one: {sample.ranks[name] + 1:,}."
        middle = row * _ROW + _ROW // 2
        draw.multiline_text((_LABEL - 12, middle), label, "black", font, "rm", align="right")
        for column, hit in enumerate(hits):
            x, y = _LABEL + column * _CELL + _CELL // 2, row * _ROW
            mark = f"{column + 1}{'  right' if hit.is_right else ''}"
            draw.text((x, y + 14), mark, COLOURS[2] if hit.is_right else "black", font, "mm")
            image = images.get(hit.uri)
            if image is None:
                draw.text((x, y + _ROW // 2), hit.item_id[-20:], "black", font, "mm")
                continue
            shown = ImageOps.contain(Image.fromarray(image), (_PICTURE, _PICTURE))
            left, top = x - shown.width // 2, y + 28 + (_PICTURE - shown.height) // 2
            drawn.paste(shown, (left, top))
            if hit.is_right:
                frame = (left - 4, top - 4, left + shown.width + 3, top + shown.height + 3)
                draw.rectangle(frame, outline=COLOURS[2], width=5)
    file = io.BytesIO()
    drawn.save(file, format="PNG")
    return file.getvalue()


def caption_panels(comparison: CaptionComparison) -> bytes:
    """How long the captions of each run are, how often words come again, and CIDEr by image."""
    figure = _figure(11, 3.6)
    lengths, repeats, scores = figure.subplots(1, 3)
    told = [len(ptb_tokens(text)) for texts in comparison.references for text in texts]
    counts = [[len(ptb_tokens(text)) for text in row.captions] for row in comparison.rows]
    longest = max(max(told), *(max(own) for own in counts))
    places = np.arange(longest + 1)

    def shares(counted: Sequence[int]) -> NDArray[np.float64]:
        return 100 * np.bincount(counted, minlength=longest + 1) / len(counted)

    lengths.fill_between(places, shares(told), color="#ddd", label="references")
    for number, (row, own) in enumerate(zip(comparison.rows, counts, strict=True)):
        lengths.plot(places, shares(own), color=colour(number), label=row.name)
        cider = 100 * row.scores.per_image["CIDEr"]
        scores.plot(
            np.sort(cider), np.linspace(0, 100, len(cider)), color=colour(number), label=row.name
        )
    rates = [100 * row.diversity.repetition_rate for row in comparison.rows]
    colours = [colour(n) for n in range(len(rates))]
    repeats.bar(range(len(rates)), rates, color=colours, width=0.6)
    for place, rate in enumerate(rates):
        repeats.text(place, rate, f"{rate:.1f}", ha="center", va="bottom", fontsize=9)
    names = [row.name for row in comparison.rows]
    repeats.set_xticks(range(len(names)), names, rotation=0 if len(names) < 4 else 30)
    repeats.set_ylim(0, 1.25 * max(*rates, 1.0))
    lengths.set(xlabel="words", ylabel="percent of captions", title="length")
    repeats.set(ylabel="percent of word pairs", title="repeated in the same caption")
    scores.set(xlabel="CIDEr of an image", ylabel="percent of images below", title="CIDEr")
    lengths.legend(frameon=False)
    for panel in (lengths, repeats, scores):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    return _png(figure)


def _sample_pairs(gallery: Gallery) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(s, d) images, each by its vector nearest to its first caption, and (s, d) those captions."""
    _, first = np.unique(gallery.caption_image, return_index=True)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(first, min(_DOTS, len(first)), replace=False))
    store, image = gallery.store, gallery.caption_image[chosen]
    images = store.read(Modality.IMAGES, "itc", gallery.image_rows[image]).astype(np.float32)
    texts = store.read(Modality.CAPTIONS, "itc", gallery.caption_rows[chosen])
    texts = texts.astype(np.float32)[:, 0]
    best = np.einsum("nqd,nd->nq", images, texts).argmax(1)
    return images[np.arange(len(images)), best], texts


def colour(number: int) -> str:
    """The colour of the run with this number, on all plots and pages."""
    return COLOURS[number % len(COLOURS)]


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()
