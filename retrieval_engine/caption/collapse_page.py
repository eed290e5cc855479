"""The collapse report as one HTML file that loads nothing from anywhere; see `collapse.html`."""

from pathlib import Path

from retrieval_engine.caption.collapse import CollapseReport
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.durable import replace_file
from retrieval_engine.errors import EvaluationError, SourceError
from retrieval_engine.page import render, thumbnail_uri
from retrieval_engine.sources import read_item
from retrieval_engine.sources.decode import decode

_SHOWN, _PIXELS = 12, 240


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
    text = render(
        Path(__file__).with_name("collapse.html"),
        title=f"Does {report.model} say one thing over and over?",
        report=report,
        thumbnails=[_thumbnail(image) for image in report.images[:_SHOWN]],
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(page, text.encode())
    except OSError as error:
        raise EvaluationError(f"cannot write {page}: {error.strerror}") from error
    return page


def _thumbnail(image: SourceImage) -> str:
    """The image as the `src` of an image; empty where it cannot be read."""
    try:
        return thumbnail_uri(decode(read_item(image.item)), _PIXELS)
    except SourceError:
        return ""
