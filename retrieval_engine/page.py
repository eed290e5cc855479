"""HTML files to look at that load nothing from anywhere: templates, beginnings, pictures inside."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

# Nothing in the file may load anything from anywhere, whatever a caption or a uri holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_QUALITY = 85


def page_start(title: str, style: str) -> str:
    """A page as far as `<body>`.

    Args:
        title: as it is to be read; it is escaped here.
        style: CSS, as it is.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>"""


def render(template: Path, **values: object) -> str:
    """A page out of a Jinja template; whatever is put in is escaped.

    Args:
        template: the file; it may include others of its folder, and call `page_start`.
        **values: what it names; a name without a value is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["page_start"] = lambda *given: Markup(page_start(*given))
    return environment.get_template(template.name).render(values)


def png_uri(png: bytes) -> str:
    """A PNG as the `src` of an image, inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def thumbnail_uri(picture: Image.Image, pixels: int) -> str:
    """A picture, shrunk in place, as the `src` of an image, inside the page.

    Args:
        picture: RGB.
        pixels: its longer side at most.
    """
    picture.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
