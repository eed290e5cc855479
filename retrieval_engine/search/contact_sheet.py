"""Hits as one HTML file to look at: thumbnails inside, no network, no script."""

from collections.abc import Sequence
from html import escape

from retrieval_engine.errors import SourceError
from retrieval_engine.page import page_start, thumbnail_uri
from retrieval_engine.search.hits import Hit, Hits
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_THUMBNAIL_PIXELS, _NOTEBOOK_PIXELS = 320, 160
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1d21; --soft: #6a6d76; --paper: #fafaf8;
  --card: #ffffff; --line: #e3e3df; --tile: #d9d9d5; --accent: #2f5fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececea; --soft: #a0a3ab; --paper: #16171a;
  --card: #1f2024; --line: #33353b; --tile: #3a3c42; --accent: #8fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
section { margin: 0 auto 3rem; max-width: 86rem; }
header { display: flex; align-items: center; gap: 1rem; margin-bottom: 1rem; }
header img { width: 5rem; height: 5rem; object-fit: cover; border-radius: .5rem; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  overflow: hidden; display: flex; flex-direction: column; }
li img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--tile); }
.missing { display: grid; place-items: center; padding: 1rem; text-align: center;
  font-size: .85rem; overflow-wrap: anywhere; }
.text { padding: .6rem .75rem .75rem; display: grid; gap: .25rem; }
.score { font-variant-numeric: tabular-nums; display: flex; justify-content: space-between; }
.score b { color: var(--accent); }
p { margin: 0; overflow-wrap: anywhere; }
small { color: var(--soft); overflow-wrap: anywhere; }
"""


def render(sections: Sequence[Hits]) -> str:
    """A self-contained HTML page: each query with the images found, best first.

    An image that cannot be read is a grey tile with the reason. All text is escaped.
    """
    title = sections[0].query if len(sections) == 1 else f"{len(sections)} searches"
    body = "\n".join(_section(hits) for hits in sections)
    return f"""{page_start(title, _STYLE)}
{body}
</body>
</html>
"""


def fragment(hits: Hits) -> str:
    """Hits as a piece of HTML that a notebook shows: small pictures in a row, with their scores."""
    tiles = "\n".join(
        f'<figure style="margin:0;width:9rem">{_picture(hit, _NOTEBOOK_PIXELS)}<figcaption style='
        f'"font-size:.8em;overflow-wrap:anywhere"><b>{hit.rank}</b> {hit.score:.3f}<br>'
        f"{escape(hit.sentence or hit.title)}</figcaption></figure>"
        for hit in hits
    )
    return (
        f"<p><b>{escape(hits.query)}</b> {_count(hits)}</p>"
        f'<div style="display:flex;flex-wrap:wrap;gap:.6rem">{tiles}</div>'
    )


def _section(hits: Hits) -> str:
    asked = ""
    if hits.image is not None:
        asked = _image_tag(hits.image, "the image asked with", _THUMBNAIL_PIXELS)
    tiles = "\n".join(_tile(hit) for hit in hits)
    return f"""<section>
<header>{asked}<div><h1>{escape(hits.query)}</h1><span class="soft">{_count(hits)}</span></div></header>
<ol>
{tiles}
</ol>
</section>"""


def _count(hits: Hits) -> str:
    return f"{len(hits)} hits" if hits else "nothing found"


def _tile(hit: Hit) -> str:
    return f"""<li>{_picture(hit, _THUMBNAIL_PIXELS)}<div class="text">
<div class="score"><b>{hit.rank}</b><span class="soft">{hit.score:.3f}</span></div>
<p>{escape(hit.sentence)}</p>
<small title="{escape(hit.uri)}">{escape(hit.title)}</small></div></li>"""


def _picture(hit: Hit, pixels: int) -> str:
    try:
        return _image_tag(read_bytes(hit.uri), hit.sentence or hit.title, pixels)
    except SourceError as error:
        return _missing(error)


def _image_tag(data: bytes, alt: str, pixels: int) -> str:
    try:
        image = decode(data)
    except SourceError as error:
        return _missing(error)
    source = thumbnail_uri(image, pixels)
    return f'<img src="{source}" alt="{escape(alt)}">'


def _missing(error: SourceError) -> str:
    return f'<div class="missing">{escape(error.message)}</div>'
