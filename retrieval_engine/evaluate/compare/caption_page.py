"""One HTML file about several caption runs: figures, plots, and images with what each run says."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import EvaluationError, MissingExtra, SourceError
from retrieval_engine.evaluate.compare.caption_comparison import CaptionComparison, CaptionRow
from retrieval_engine.evaluate.compare.plots import COLOURS
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.page import page_start, png_uri, thumbnail_uri
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_THUMBNAIL_PIXELS = 260
_SHOWN = 8  # images of each section
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 72rem; background: #fafaf8;
  color: #1c1d21; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.soft { color: #5d606a; } .wide { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #e3e3df; text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } td small { display: block; color: #5d606a; }
.plot { max-width: 100%; border: 1px solid #e3e3df; border-radius: .5rem; background: #fff; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
.card { background: #fff; border: 1px solid #e3e3df; border-radius: .6rem; overflow: hidden; }
.card img, .missing { display: block; width: 100%; height: 13rem; object-fit: contain;
  background: #eceae5; }
.missing { display: grid; place-items: center; color: #5d606a; overflow-wrap: anywhere; }
.card div.text { padding: .7rem .9rem; } .card p { margin: .2rem 0; overflow-wrap: anywhere; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em; }
.score { float: right; color: #5d606a; font-variant-numeric: tabular-nums; margin-left: .5rem; }
ul { margin: .4rem 0 0; padding-left: 1.1rem; color: #5d606a; font-size: .87rem; }
"""


def write_caption_page(
    comparison: CaptionComparison,
    out: Path,
    *,
    images: Path | None = None,
    title: str = "Captions",
) -> Path:
    """Write `captions.html` and `captions.csv` into a directory.

    Args:
        comparison: what `compare_captions` gave.
        out: the directory, made when absent.
        images: folder of the images, where the runs' files do not say where they are.
        title: of the page.

    Returns:
        The page.

    Raises:
        MissingExtra: matplotlib is not installed.
        EvaluationError: the directory cannot be written.
    """
    parts = [_head(comparison, title), _table(comparison), _plots(comparison)]
    better, worse = comparison.changes(_SHOWN) if len(comparison.rows) > 1 else ([], [])
    rng = np.random.default_rng(0)
    drawn = rng.permutation(len(comparison.images))[:_SHOWN].tolist()
    names = comparison.rows[0].name, comparison.rows[-1].name
    for heading, chosen in (
        (f"Most improved from {names[0]} to {names[1]}", better),
        (f"Most damaged from {names[0]} to {names[1]}", worse),
        ("Drawn at random", drawn),
    ):
        if chosen:
            cards = "\n".join(_card(comparison, number, images) for number in chosen)
            parts.append(f"<h2>{escape(heading)}</h2>\n<div class='cards'>{cards}</div>")
    parts.append("</body></html>\n")
    page = out / "captions.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "captions.csv", comparison.captions_csv().encode())
        replace_file(page, "\n".join(parts).encode())
    except OSError as error:
        raise EvaluationError(f"cannot write {page}: {error.strerror}") from error
    return page


def _head(comparison: CaptionComparison, title: str) -> str:
    left = ""
    if comparison.left_out:
        left = f" {comparison.left_out:,} others lack a caption of some run and are left out."
    count = sum(map(len, comparison.references))
    return f"""{page_start(title, _STYLE)}
<h1>{escape(title)}</h1>
<p>{len(comparison.images):,} images with {count:,} references.{left} BLEU, ROUGE-L and CIDEr-D as
the COCO tools define them, in percent.</p>"""


def _table(comparison: CaptionComparison) -> str:
    heads = "".join(f"<th>{escape(heading)}</th>" for heading in comparison.HEADINGS)
    rows = []
    for number, row in enumerate(comparison.rows):
        name, *figures = row.cells()
        cells = "".join(f"<td>{figure}</td>" for figure in figures)
        gain = ""
        if row.gain:
            value, (low, high) = row.gain
            bounds = f"<small>{100 * low:+.1f} to {100 * high:+.1f}</small>"
            gain = f"{100 * value:+.1f}{bounds}"
        rows.append(f"<tr><td>{_key(number)}{escape(name)}</td>{cells}<td>{gain}</td></tr>")
    against = escape(comparison.rows[0].name)
    return f"""<div class="wide"><table>
<tr>{heads}<th>CIDEr against {against}</th></tr>
{"".join(rows)}
</table></div>
<p class="soft">Words: mean length. Repeated: word pairs that stood before in the same caption.
Distinct: different captions. The last column has the 95 % bootstrap bounds of the paired difference
in small print: it is more than chance where they do not hold zero.</p>"""


def _key(number: int) -> str:
    return f"<span class='key' style='background:{COLOURS[number % len(COLOURS)]}'></span>"


def _plots(comparison: CaptionComparison) -> str:
    source = png_uri(draw_plots(comparison))
    return (
        "<h2>Length and repetition</h2>\n"
        f"<img class='plot' alt='Length and repetition' src='{source}'>"
    )


def draw_plots(comparison: CaptionComparison) -> bytes:
    """How long the captions of each run are, and how often words come again; a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    figure: Any = Figure(figsize=(11, 3.6), layout="constrained")
    lengths, repeats, scores = figure.subplots(1, 3)
    told = [len(ptb_tokens(text)) for texts in comparison.references for text in texts]
    counts = [[len(ptb_tokens(text)) for text in row.captions] for row in comparison.rows]
    longest = max(max(told), *(max(own) for own in counts))
    places = np.arange(longest + 1)
    lengths.fill_between(places, _shares(told, longest), color="#ddd", label="references")
    for number, (row, own) in enumerate(zip(comparison.rows, counts, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        lengths.plot(places, _shares(own, longest), color=colour, label=row.name)
        cider = 100 * row.scores.per_image["CIDEr"]
        scores.plot(np.sort(cider), np.linspace(0, 100, len(cider)), color=colour, label=row.name)
    rates = [100 * row.diversity.repetition_rate for row in comparison.rows]
    colours = [COLOURS[n % len(COLOURS)] for n in range(len(rates))]
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
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _shares(lengths: Sequence[int], longest: int) -> Any:
    return 100 * np.bincount(lengths, minlength=longest + 1) / len(lengths)


def _card(comparison: CaptionComparison, number: int, images: Path | None) -> str:
    image = comparison.images[number]
    said = "".join(_said(row, place, number) for place, row in enumerate(comparison.rows))
    told = "".join(f"<li>{escape(text)}</li>" for text in comparison.references[number])
    thumbnail = _thumbnail(image, comparison.uris.get(image), images)
    return f"""<div class="card">{thumbnail}<div class="text">{said}<ul>{told}</ul></div></div>"""


def _said(row: CaptionRow, place: int, number: int) -> str:
    score = 100 * float(row.scores.per_image["CIDEr"][number])
    caption = escape(row.captions[number])
    title = escape(row.name)
    return f"<p title='{title}'><span class='score'>{score:.0f}</span>{_key(place)}{caption}</p>"


def _thumbnail(image: str, uri: str | None, images: Path | None) -> str:
    """A thumbnail inside the page, or the image's name where it cannot be read."""
    place = uri if uri is not None else str((images or Path()) / image)
    try:
        decoded = decode(read_bytes(place))
    except SourceError:
        return f"<div class='missing'>{escape(image)}</div>"
    return f"<img alt='{escape(image)}' src='{thumbnail_uri(decoded, _THUMBNAIL_PIXELS)}'>"
