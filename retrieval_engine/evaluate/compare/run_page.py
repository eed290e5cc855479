"""One HTML file with the figures and the plots of a comparison; nothing is loaded from anywhere."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import EvaluationError, SourceError
from retrieval_engine.evaluate.compare import plots
from retrieval_engine.evaluate.compare.comparison import KS, SIDES, Comparison, Row
from retrieval_engine.evaluate.compare.samples import Sample, sample_queries
from retrieval_engine.page import page_start, png_uri
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_THUMBNAIL_PIXELS = 160
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 70rem; background: #fafaf8;
  color: #1c1d21; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; font-weight: 600; }
p, figcaption { margin: .3rem 0; max-width: 60rem; } .soft, figcaption { color: #5d606a; }
figure { margin: .6rem 0 1.2rem; } img { max-width: 100%; height: auto; background: #fff;
  border: 1px solid #e3e3df; border-radius: .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; background: #fff; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #e3e3df; text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } td small { display: block; color: #5d606a; }
td:first-child small { white-space: normal; max-width: 15rem; }
td.best { font-weight: 700; } .key { display: inline-block; width: .8em; height: .8em;
  border-radius: .2em; margin-right: .4em; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Files that a report consists of: the page, and its plots as files of their own."""

    page: Path
    plots: tuple[Path, ...]


def write_report(comparison: Comparison, out: Path, *, title: str = "Comparison") -> ReportFiles:
    """Write `report.html`, `comparison.csv`, `comparison.json` and the plots into a directory.

    Args:
        comparison: what `compare` gave.
        out: the directory, made when absent.
        title: of the page.

    Raises:
        MissingExtra: matplotlib is not installed.
        EvaluationError: the directory cannot be written.
    """
    drawn: dict[str, bytes] = {"recall": plots.recall_bars(comparison)}
    parts = [_head(comparison, title), _figures(comparison)]
    parts.append(
        _figure_of(
            drawn["recall"],
            "Recall at 1, 5 and 10",
            "Bars are recalls on the same gallery; "
            "lines are 95 % bootstrap intervals over images with all their captions.",
        )
    )
    if comparison.galleries:
        drawn["features"], lines = plots.feature_maps(comparison)
        parts.append("<h2>Where images and captions lie</h2>")
        parts.append(_figure_of(drawn["features"], "Images and captions on two axes", _MAP_CAPTION))
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
    curves = plots.training_curves(comparison)
    if curves:
        drawn["curves"] = curves
        parts.append("<h2>Training</h2>")
        parts.append(_figure_of(curves, "Training curves", _CURVE_CAPTION))
    if comparison.galleries:
        parts.append("<h2>What is found</h2>")
        parts.append(
            "<p class='soft'>Captions drawn at random, not chosen by how well any run does; a row "
            "of images for each run, best first. The right image is framed.</p>"
        )
        for number, sample in enumerate(sample_queries(comparison.galleries)):
            name = f"retrieved-{number + 1}"
            drawn[name] = plots.retrieved(sample, _images_of(sample))
            parts.append(f"<h3>“{escape(sample.text)}”</h3>")
            parts.append(_figure_of(drawn[name], f"Found for: {sample.text}", ""))
    parts.append("</body></html>\n")
    return _write(out, "\n".join(parts), comparison, drawn)


_MAP_CAPTION = (
    "The same pairs under every run: principal axes of images and captions together, vectors of "
    "length one, one scale for all panels. The axes themselves differ from panel to panel, and two "
    "of them show only the share of the variance that is written above: clouds that overlap here "
    "need not be near each other, so read the cosines below. Grey lines join true pairs."
)
_CURVE_CAPTION = (
    "Recall on each run's own validation images, which are not in the gallery above; galleries of "
    "several sizes are not comparable with each other. Losses of several kinds are not either."
)


def _head(comparison: Comparison, title: str) -> str:
    row = comparison.rows[0]
    remarks = "".join(f"<p class='soft'>{escape(line)}</p>" for line in comparison.remarks)
    return f"""{page_start(title, _STYLE)}
<h1>{escape(title)}</h1>
<p>{row.images:,} images and {row.captions:,} captions. Search is exact; any of an image's captions
counts for image to text, each caption asks for its own image.</p>
{remarks}"""


def _figures(comparison: Comparison) -> str:
    best = {
        (side, k): max(row.recall[side][k] for row in comparison.rows) for side in SIDES for k in KS
    }
    rows = []
    for number, row in enumerate(comparison.rows):
        cells = [_recall_cell(row, side, k, best[side, k]) for side in SIDES for k in KS]
        bounds = _bounds(row.mean_interval)
        gain = ""
        if row.gain:
            gain = f"{row.gain[0]:+.1f}{_bounds(row.gain[1], sign=True)}"
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        name = f"<span class='key' style='background:{colour}'></span>{escape(row.name)}"
        rows.append(
            f"<tr><td>{name}<small>{escape(row.kind)}: {escape(row.note)}</small></td>"
            f"{''.join(cells)}<td>{row.mean:.1f}{bounds}</td><td>{gain}</td></tr>"
        )
    heads = "".join(f"<th>{k}</th>" for k in (*KS, *KS))
    return f"""<h2>Recall, percent</h2>
<div class="wide"><table>
<tr><th></th><th colspan="3">image to text</th><th colspan="3">text to image</th><th></th>
<th></th></tr>
<tr><th>run</th>{heads}<th>mean</th><th>against {escape(comparison.rows[0].name)}</th></tr>
{"".join(rows)}
</table></div>
<p class="soft">In small print: 95 % bootstrap intervals. Those of the last column are of the paired
difference of the means: it is more than chance where they do not hold zero.</p>"""


def _recall_cell(row: Row, side: str, k: str, best: float) -> str:
    value = row.recall[side][k]
    bounds = _bounds(row.interval[side][k] if row.interval else None)
    return f"<td{' class=best' if value == best else ''}>{value:.1f}{bounds}</td>"


def _bounds(interval: tuple[float, float] | None, *, sign: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (f"{end:+.1f}" if sign else f"{end:.1f}" for end in interval)
    return f"<small>{low} to {high}</small>" if sign else f"<small>{low}–{high}</small>"


def _figure_of(png: bytes, alt: str, caption: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" src="{png_uri(png)}">{below}</figure>'


def _images_of(sample: Sample) -> dict[str, NDArray[np.uint8] | None]:
    found: dict[str, NDArray[np.uint8] | None] = {}
    for hits in sample.hits.values():
        for hit in hits:
            if hit.uri not in found:
                found[hit.uri] = _thumbnail(hit.uri)
    return found


def _thumbnail(uri: str) -> NDArray[np.uint8] | None:
    try:
        image = decode(read_bytes(uri))
    except SourceError:
        return None  # shown by its id
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    return np.asarray(image)


def _write(out: Path, page: str, comparison: Comparison, drawn: dict[str, bytes]) -> ReportFiles:
    figures = json.dumps([row.to_json() for row in comparison.rows], indent=2)
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "report.html", page.encode())
        replace_file(out / "comparison.csv", comparison.csv().encode())
        replace_file(out / "comparison.json", f"{figures}\n".encode())
        for name, png in drawn.items():
            replace_file(out / f"{name}.png", png)
    except OSError as error:
        raise EvaluationError(f"cannot write the report to {out}: {error.strerror}") from error
    return ReportFiles(page=out / "report.html", plots=tuple(out / f"{name}.png" for name in drawn))
