"""The collapse report as one HTML file that loads nothing from anywhere."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from retrieval_engine.caption.collapse import CollapseReport
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.durable import replace_file
from retrieval_engine.errors import EvaluationError, SourceError
from retrieval_engine.page import page_start, thumbnail_uri
from retrieval_engine.sources import read_item
from retrieval_engine.sources.decode import decode

_SHOWN, _PIXELS = 12, 240
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 70rem; background: #fafaf8;
  color: #1c1d21; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.verdict { background: #fff; border-left: .3rem solid #c8553d; padding: .7rem 1rem; }
.soft { color: #5d606a; max-width: 60rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #e3e3df; text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, td.text { text-align: left; }
.bar { display: inline-block; height: .7rem; background: #3d7ac8; border-radius: .2rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
.card { background: #fff; border: 1px solid #e3e3df; border-radius: .6rem; padding: .7rem .9rem; }
.card img { max-width: 100%; border-radius: .4rem; } .card p { margin: .25rem 0; }
"""
_WAYS = ("way", "CIDEr", "different %", "commonest %", "repeated pairs %", "words", "commonest")


def write_collapse_page(report: CollapseReport, out: Path) -> Path:
    """Write `collapse.html` into a directory.

    Args:
        report: what `study_collapse` gave.
        out: the directory, made when absent.

    Returns:
        The page.

    Raises:
        EvaluationError: the directory cannot be written.
    """
    page = out / "collapse.html"
    title = f"Does {report.model} say one thing over and over?"
    parts = [
        page_start(title, _STYLE),
        f"<h1>{escape(title)}</h1>",
        f"<p class='verdict'>{escape(report.verdict)}</p>",
        f"<h2>{len(report.images):,} pictures, each way of choosing words</h2>",
        _table(_WAYS, (_way_cells(report, i) for i in range(len(report.ways)))),
        "<h2>What it knows of the next word</h2>",
        f"<p>A token of a true caption is {report.loss:.2f} nats of surprise; another picture in "
        f"place of its own adds {report.gain:.2f}. The entropy of the next token is "
        f"{report.entropy:.2f} nats.</p>",
        _table(
            ("tokens of the true captions", "share %", "loss", "another picture adds"),
            (
                (b.name, f"{100 * b.share:.0f}", f"{b.loss:.2f}", f"{b.gain:+.2f}")
                for b in report.bands
            ),
        ),
        "<p class='soft'>A decoder that does not look is right on common words and pays on rare "
        "ones; nothing in the last column is what blindness looks like.</p>",
        "<h2>Entropy of the next token, by its place in the caption</h2>",
        _bars(report.entropy_by_place),
        "<h2>The first pictures</h2>",
        f"<div class='cards'>{''.join(_card(report, i) for i in range(len(report.images))[:_SHOWN])}"
        "</div>",
        "</body></html>\n",
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(page, "\n".join(parts).encode())
    except OSError as error:
        raise EvaluationError(f"cannot write {page}: {error.strerror}") from error
    return page


def _way_cells(report: CollapseReport, number: int) -> tuple[str, ...]:
    way = report.ways[number]
    varied = way.varied
    shares = (varied.distinct_captions, varied.commonest_share, varied.repetition_rate)
    figures = [f"{100 * value:.0f}" for value in (way.cider, *shares)]
    return (way.name, *figures, f"{varied.mean_length:.1f}", way.commonest)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _bars(values: Sequence[float]) -> str:
    most = max(values) or 1.0
    rows = "".join(
        f"<tr><td>{place}</td><td>{value:.2f}</td>"
        f"<td class='text'><span class='bar' style='width:{12 * value / most:.2f}rem'></span></td>"
        "</tr>"
        for place, value in enumerate(values, 1)
    )
    return f"<table>{rows}</table>"


def _card(report: CollapseReport, number: int) -> str:
    image = report.images[number]
    said = "".join(
        f"<p><b>{escape(way.name)}</b>: {escape(way.captions[number])}</p>" for way in report.ways
    )
    true = escape(report.references[number][0])
    return f"<div class='card'>{_picture(image)}{said}<p class='soft'>true: {true}</p></div>"


def _picture(image: SourceImage) -> str:
    try:
        shown = thumbnail_uri(decode(read_item(image.item)), _PIXELS)
    except SourceError:
        return f"<p class='soft'>{escape(image.item.id)}</p>"
    return f"<img alt='{escape(image.item.id)}' src='{shown}'>"
