"""Groups of near-duplicates as one HTML file to look at: the best first, the others behind it."""

from collections.abc import Sequence
from html import escape

from retrieval_engine.duplicates.find import DuplicateReport
from retrieval_engine.duplicates.groups import Copy, DuplicateGroup
from retrieval_engine.errors import SourceError
from retrieval_engine.page import page_start, thumbnail_uri
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode

_PIXELS, _NOTEBOOK_PIXELS = 320, 112
_NOTEBOOK_GROUPS = 20
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1d21; --soft: #6a6d76; --paper: #fafaf8;
  --card: #ffffff; --line: #e3e3df; --tile: #d9d9d5; --accent: #2f5fd0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececea; --soft: #a0a3ab; --paper: #16171a;
  --card: #1f2024; --line: #33353b; --tile: #3a3c42; --accent: #8fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 86rem; padding: 2rem clamp(1rem, 4vw, 3rem);
  background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
p { margin: 0; overflow-wrap: anywhere; }
.soft, small { color: var(--soft); overflow-wrap: anywhere; }
ol { list-style: none; margin: 1.5rem 0 0; padding: 1rem 0 0; display: grid; gap: 1rem;
  border-top: 1px solid var(--line);
  grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  overflow: hidden; }
li.best { border: 2px solid var(--accent); }
li img, .missing { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--tile); }
.missing { display: grid; place-items: center; padding: 1rem; font-size: .85rem; }
.text { padding: .6rem .75rem .75rem; display: grid; gap: .25rem; }
b { color: var(--accent); }
"""


def render_duplicates(report: DuplicateReport) -> str:
    """A self-contained HTML page: each group with its best picture marked. All text is escaped."""
    title = f"{report.groups_told} of duplicates"
    body = "\n".join(_group(group) for group in report.groups)
    return f"""{page_start(title, _STYLE)}
<h1>{title}</h1><p class="soft">{report.copies_told}</p>
{body}
</body>
</html>
"""


def fragment(report: DuplicateReport) -> str:
    """The first groups as a piece of HTML that a notebook shows: each in a row, the best first."""
    rows = "\n".join(
        f'<div style="display:flex;gap:.4rem">{"".join(map(_small, group.members))}</div>'
        for group in report.groups[:_NOTEBOOK_GROUPS]
    )
    left = len(report.groups) - _NOTEBOOK_GROUPS
    more = f"<p>and {left:,} more</p>" if left > 0 else ""
    return f"<p>{report.groups_told}; {report.copies_told}</p>{rows}{more}"


def _small(copy: Copy) -> str:
    name = escape(copy.item_id, quote=True)
    return f'<span title="{name}" style="width:7rem">{_picture(copy, _NOTEBOOK_PIXELS)}</span>'


def _group(group: DuplicateGroup) -> str:
    return f"<ol>\n{_tiles(group.members)}\n</ol>"


def _tiles(members: Sequence[Copy]) -> str:
    return "\n".join(_tile(copy, best=place == 0) for place, copy in enumerate(members))


def _picture(copy: Copy, pixels: int) -> str:
    try:
        source = thumbnail_uri(decode(read_bytes(copy.uri), least_side=pixels), pixels)
    except SourceError as error:
        return f'<div class="missing">{escape(error.message)}</div>'
    return f'<img src="{source}" alt="{escape(copy.item_id)}">'


def _tile(copy: Copy, *, best: bool) -> str:
    tag = _picture(copy, _PIXELS)
    mark = "<b>best</b> " if best else ""
    facts = f"{copy.width}x{copy.height}, {copy.size_bytes:,} bytes"
    if copy.split:
        facts += f", split {escape(copy.split)}"
    return f"""<li{' class="best"' if best else ""}>{tag}<div class="text">
<p>{mark}<span class="soft">{facts}</span></p>
<small title="{escape(copy.uri)}">{escape(copy.item_id)}</small></div></li>"""
