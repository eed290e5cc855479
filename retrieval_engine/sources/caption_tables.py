"""Caption files that are tables: one line for each caption, cut by commas, semicolons, tabs or bars.

Commas and semicolons come with CSV's quoting. So do tabs under a header, when all of the file obeys
it; else, and with bars, a quotation mark is part of the caption.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.annotation import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    Fields,
    Record,
    image_files,
    image_name,
    key_of,
)
from retrieval_engine.sources.decode import picture_suffixes
from retrieval_engine.sources.reading import lines, one_line, open_text
from retrieval_engine.sources.source_name import split_name
from retrieval_engine.urls import Place

_NUMBER_KEYS = ("comment_number", "caption_number", "number")
_NUMBERED = re.compile(r"^(.+)#(\d+)$")
_DELIMITERS = "\t|;,"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How the lines of a table are cut, and which column is what; -1 where there is none.

    Attributes:
        delimiter: between the cells.
        names: of the columns.
        has_header: the first line is their names.
    """

    delimiter: str
    names: tuple[str, ...]
    has_header: bool
    image: int
    captions: tuple[int, ...]
    number: int = -1
    split: int = -1


def table_records(path: Place, fields: Fields) -> Iterator[Record]:
    """Every record of a table.

    Raises:
        SourceError: its columns cannot be told, or a line makes no sense.
    """
    with open_text(path) as stream:
        head = list(islice((line for line in lines(stream, path) if line.strip()), 2))
    form = _form([line.rstrip("\r\n") for line in head] + [""] * (2 - len(head)), fields, path)
    rows = _quoted_rows(path, form) if _is_quoted(path, form) else _plain_rows(path, form)
    for number, cells in islice(rows, int(form.has_header), None):
        yield _record(_fitted(cells, form, f"{path}:{number}"), form, f"{path}:{number}")


def _form(head: Sequence[str], fields: Fields, path: Place) -> _Form:
    """The form of a table, from its first two lines that are not blank."""
    for delimiter in _DELIMITERS:
        form = _headed(head[0], delimiter, fields)
        if form and (form.captions or form.split >= 0):
            return form
    if fields.image or fields.captions:
        asked = ", ".join(filter(None, (fields.image, *fields.captions)))
        raise SourceError(f"{path} has no columns {asked}; its first line is {head[0][:120]!r}")
    named = _name_then().match(head[0])
    if named is None and (form := _headed_by_data(head, path)):
        return form
    delimiter = named[1] if named else next((d for d in "\t|" if d in head[0]), ",")
    cells = head[0].split(delimiter, 2)
    numbered = len(cells) == 3 and cells[1].strip().isdecimal()
    names = ("image", "number", "caption") if numbered else ("image", "caption")
    return _Form(
        delimiter=delimiter,
        names=names,
        has_header=False,
        image=0,
        captions=(len(names) - 1,),
        number=1 if numbered else -1,
    )


def _headed(line: str, delimiter: str, fields: Fields) -> _Form | None:
    """The form under a header with an image column, or None where the line is no such header."""
    names = [cell.strip().strip('"').strip().lower() for cell in line.split(delimiter)]
    keys = [key_of(name) for name in names]

    def place(wanted: Sequence[str]) -> int:
        return next((keys.index(key) for key in wanted if key in keys), -1)

    image = place([key_of(fields.image)] if fields.image else IMAGE_KEYS)
    if fields.captions:
        captions = tuple(place([key_of(name)]) for name in fields.captions)
    else:
        captions = (place(CAPTION_KEYS),)
    if image < 0 or (fields.captions and -1 in captions):
        return None
    return _Form(
        delimiter=delimiter,
        names=tuple(names),
        has_header=True,
        image=image,
        captions=tuple(at for at in captions if at >= 0),
        number=place(_NUMBER_KEYS),
        split=place(("split",)),
    )


def _headed_by_data(head: Sequence[str], path: Place) -> _Form | None:
    """The form where the second line names a picture and the first, in that place, does not."""
    for delimiter in _DELIMITERS:
        names, cells = (line.split(delimiter) for line in head)
        image = next((at for at, cell in enumerate(cells) if _is_picture(cell)), -1)
        if len(names) < 2 or not 0 <= image < len(names) or _is_picture(names[image]):
            continue
        keys = [key_of(name) for name in names]
        caption = next((keys.index(key) for key in CAPTION_KEYS if key in keys), -1)
        if caption < 0 and len(names) == 2:
            caption = 1 - image
        if caption < 0:
            raise SourceError(
                f"{path} has no column of captions; its columns: {one_line(', '.join(names))}",
                hint="name it with `?caption=COLUMN`",
            )
        return _Form(
            delimiter=delimiter,
            names=tuple(name.strip().strip('"').lower() for name in names),
            has_header=True,
            image=image,
            captions=(caption,),
            split=keys.index("split") if "split" in keys else -1,
        )
    return None


@cache
def _name_then() -> re.Pattern[str]:
    """A picture's name at the start of a line, and what divides it from the rest."""
    endings = "|".join(re.escape(suffix) for suffix in sorted(picture_suffixes()))
    return re.compile(rf"^\"?[^\t]*?(?:{endings})(?:#\d+)?\"?\s*([\t|,;])", re.IGNORECASE)


def _is_picture(cell: str) -> bool:
    name = cell.strip().strip('"').strip()
    return name[name.rfind(".") :].partition("#")[0].lower() in picture_suffixes()


def _is_quoted(path: Place, form: _Form) -> bool:
    if form.delimiter in ",;":
        return True
    if form.delimiter == "|" or not form.has_header:
        return False
    try:
        return all(len(cells) <= len(form.names) for _, cells in _quoted_rows(path, form))
    except SourceError:
        return False


def _quoted_rows(path: Place, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each row that is not blank; a cell may hold line breaks."""
    with open_text(path, newline="") as stream:
        reader = csv.reader(lines(stream, path), strict=True, delimiter=form.delimiter)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise SourceError(f"{path}:{reader.line_num}: {one_line(error)}") from error


def _plain_rows(path: Place, form: _Form) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as stream:
        for number, line in enumerate(lines(stream, path), 1):
            if line.strip():
                yield number, line.rstrip("\r\n").split(form.delimiter)


def _fitted(cells: list[str], form: _Form, where: str) -> list[str]:
    """The cells of a row, one for each column at most.

    A caption at the end keeps its delimiters where the table has no quoting to hide them: with bars
    and without a header.
    """
    most = len(form.names)
    is_free = form.captions[-1:] == (most - 1,) and (form.delimiter == "|" or not form.has_header)
    if len(cells) > most and is_free:
        cells = [*cells[: most - 1], form.delimiter.join(cells[most - 1 :])]
    if any(cell.strip() for cell in cells[most:]):
        raise SourceError(
            f"{where} has {len(cells)} cells, the header {most}: {form.delimiter.join(cells)[:120]!r}",
            hint=f'put a caption that holds {form.delimiter!r} in quotation marks: "a dog, a cat"',
        )
    return cells[:most]


def _record(cells: list[str], form: _Form, where: str) -> Record:
    if len(cells) == 2 and len(form.names) == 3 and form.number == 1:
        # `2199200615.jpg| 4   A dog runs …` of Flickr30k's results.csv lacks its second bar
        number, _, text = cells[1].strip().partition(" ")
        cells = [cells[0], number, text] if number.isdecimal() else cells
    if len(cells) <= max(form.image, *form.captions, 0) or not cells[form.image].strip():
        wanted, found = (form.delimiter.join(each) for each in (form.names, cells))
        raise SourceError(f"{where}: expected {wanted[:120]!r}, found {found[:120]!r}")
    raw, number = cells[form.image].strip(), ""
    if match := _NUMBERED.match(raw):
        raw, number = match[1], match[2]
    elif form.number >= 0:
        number = cells[form.number].strip()
    texts = [text for at in form.captions if (text := cells[at].strip())]
    known = {form.image, *form.captions, form.number, form.split}
    return Record(
        image=image_name(raw),
        captions=tuple(texts),
        numbers=(number,) if len(texts) == 1 and number else (),
        split=split_name(cells[form.split]) if 0 <= form.split < len(cells) else "",
        meta={form.names[at]: cell for at, cell in enumerate(cells) if at not in known},
        files=image_files(raw),
    )
