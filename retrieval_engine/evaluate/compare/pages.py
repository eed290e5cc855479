"""The HTML reports of comparisons: each is one file that loads nothing from anywhere.

What they look like is in the templates beside this file, `report.html` and `captions.html`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import EvaluationError, SourceError
from retrieval_engine.evaluate.compare import plots
from retrieval_engine.evaluate.compare.caption_comparison import CaptionComparison
from retrieval_engine.evaluate.compare.comparison import KS, SIDES, Comparison
from retrieval_engine.evaluate.compare.samples import Sample, sample_queries
from retrieval_engine.page import png_uri, render, thumbnail_uri
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_PLOTTED_PIXELS, _SHOWN_PIXELS = 160, 260
_SHOWN = 8  # images of each section about captions


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
    cosines: Sequence[str] = ()
    samples: Sequence[Sample] = ()
    if comparison.galleries:
        drawn["features"], cosines = plots.feature_maps(comparison)
        samples = sample_queries(comparison.galleries)
    if curves := plots.training_curves(comparison):
        drawn["curves"] = curves
    for number, sample in enumerate(samples, 1):
        drawn[f"retrieved-{number}"] = plots.retrieved(sample, _images_of(sample))
    page = render(
        Path(__file__).with_name("report.html"),
        title=title,
        comparison=comparison,
        drawn={name: png_uri(png) for name, png in drawn.items()},
        cosines=cosines,
        samples=samples,
        colour=plots.colour,
        ks=KS,
        sides=SIDES,
        best={s: {k: max(row.recall[s][k] for row in comparison.rows) for k in KS} for s in SIDES},
    )
    files = {f"{name}.png": png for name, png in drawn.items()}
    figures = json.dumps([row.to_json() for row in comparison.rows], indent=2)
    tables = {"comparison.csv": comparison.csv(), "comparison.json": f"{figures}\n"}
    texts = {name: text.encode() for name, text in {"report.html": page, **tables}.items()}
    _write(out, texts | files)
    return ReportFiles(page=out / "report.html", plots=tuple(out / name for name in files))


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
    better, worse = comparison.changes(_SHOWN) if len(comparison.rows) > 1 else ([], [])
    rng = np.random.default_rng(0)
    drawn = rng.permutation(len(comparison.images))[:_SHOWN].tolist()
    runs = f"from {comparison.rows[0].name} to {comparison.rows[-1].name}"
    sections = ((f"Most improved {runs}", better), (f"Most damaged {runs}", worse))
    thumbnails = {}
    for number in {*better, *worse, *drawn}:
        name = comparison.images[number]
        image = _decoded(comparison.uris.get(name, str((images or Path()) / name)))
        thumbnails[number] = thumbnail_uri(image, _SHOWN_PIXELS) if image else ""
    page = render(
        Path(__file__).with_name("captions.html"),
        title=title,
        comparison=comparison,
        plot=png_uri(plots.caption_panels(comparison)),
        sections=[s for s in (*sections, ("Drawn at random", drawn)) if s[1]],
        thumbnails=thumbnails,
        colour=plots.colour,
    )
    _write(
        out,
        {"captions.html": page.encode(), "captions.csv": comparison.captions_csv().encode()},
    )
    return out / "captions.html"


def _images_of(sample: Sample) -> dict[str, NDArray[np.uint8] | None]:
    """Small images of all hits by their uris; None for one that cannot be read."""
    found: dict[str, NDArray[np.uint8] | None] = {}
    for uri in {hit.uri for hits in sample.hits.values() for hit in hits}:
        if image := _decoded(uri):
            image.thumbnail((_PLOTTED_PIXELS, _PLOTTED_PIXELS))
        found[uri] = np.asarray(image) if image else None
    return found


def _decoded(uri: str) -> Image.Image | None:
    """The image, or None where it cannot be read: then its name is shown."""
    try:
        return decode(read_bytes(uri))
    except SourceError:
        return None


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_file(out / name, content)
    except OSError as error:
        raise EvaluationError(f"cannot write the report to {out}: {error.strerror}") from error
