"""Which column of a table holds what, told by types and usual names, or as the options say."""

import re
from dataclasses import dataclass

import pyarrow as pa

from retrieval_engine.errors import SourceError
from retrieval_engine.sources.annotation import CAPTION_KEYS, USUAL_CAPTION_KEYS, key_of
from retrieval_engine.sources.source_name import Options

_IDS = ("filename", "file_name", "image_name", "image_id", "img_id", "id", "key", "__key__")
BY_ROW = "row"
"""The value of `id` that asks for file and row, where no column is called so."""
_NUMBERED_CAPTION = re.compile(r"(?:caption|text|sentence|raw)s?_?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what.

    Attributes:
        image: the picture's bytes, binary or a struct of `bytes` and `path`.
        has_path: it is a struct with a path, which can stand for an id.
        by_row: file and row are to stand for the id, whatever path there is.
        id: empty where the table has none.
        captions: text or lists of text.
        split: empty where there is none.
        meta: those of plain values; lists and structs are left out.
    """

    image: str
    has_path: bool
    by_row: bool
    id: str
    captions: tuple[str, ...]
    split: str
    meta: tuple[str, ...]

    @property
    def light(self) -> tuple[str, ...]:
        """All that is read to list the items: not the pictures."""
        named = (*self.captions, *(name for name in (self.id, self.split) if name), *self.meta)
        path = (f"{self.image}.path",) if self.has_path else ()
        return tuple(dict.fromkeys((*named, *path)))


def choose_columns(schema: pa.Schema, given: Options, where: str) -> Columns:
    """The columns of a table by their types and usual names, or as the options say.

    Args:
        schema: the table's.
        given: `image`, `caption` (names with commas, or `none`) and `id` (a column,
            or `row`) override the choice.
        where: the file, for messages.

    Raises:
        SourceError: no column holds pictures, or none captions and `caption=none` was not said.
    """
    image = given.text("image") or next((f.name for f in schema if _holds_bytes(f.type)), "")
    there = f"its columns: {', '.join(f'{f.name} ({f.type})' for f in schema)}"
    if image not in schema.names or not _holds_bytes(schema.field(image).type):
        raise SourceError(
            f"{where} has no column of picture bytes{f' {image!r}' if image else ''}; {there}",
            hint="name it with `?image=COLUMN`: binary, or a struct with a field `bytes`",
        )
    captions = _caption_columns(schema, given.text("caption"))
    if not captions and given.text("caption") != "none":
        raise SourceError(
            f"{where} has no column of captions; {there}",
            hint="name it with `?caption=COLUMN`, or say `?caption=none` to go without",
        )
    identity = given.text("id") or next((name for name in _IDS if name in schema.names), "")
    by_row = identity == BY_ROW and BY_ROW not in schema.names
    identity = "" if by_row else identity
    for name in (*captions, *([identity] if identity else [])):
        if name not in schema.names:
            raise SourceError(f"{where} has no column {name!r}; {there}")
    split = "split" if "split" in schema.names and _is_text(schema.field("split").type) else ""
    used = {image, identity, split, *captions}
    return Columns(
        image=image,
        has_path=_has_path(schema.field(image).type),
        by_row=by_row,
        id=identity,
        captions=captions,
        split=split,
        meta=tuple(f.name for f in schema if f.name not in used and _is_plain(f.type)),
    )


def _caption_columns(schema: pa.Schema, asked: str) -> tuple[str, ...]:
    if asked:
        return () if asked == "none" else tuple(name.strip() for name in asked.split(","))
    texts = {f.name: f for f in schema if _is_text(f.type) or _is_text_list(f.type)}
    by_key = {key_of(name): name for name in reversed(texts)}
    usual = [by_key[key] for key in USUAL_CAPTION_KEYS if key in by_key]
    numbered = [name for name in texts if _NUMBERED_CAPTION.fullmatch(name.lower())]
    rare = [by_key[key] for key in CAPTION_KEYS if key in by_key]
    return tuple(usual[:1] or numbered or rare[:1])


def same_form(first: pa.Schema, other: pa.Schema) -> bool:
    """Whether two files have the same columns, whatever the width and coding of their values."""

    def form(schema: pa.Schema) -> dict[str, str]:
        return {field.name: _form(field.type) for field in schema}

    return form(first) == form(other)


def _form(kind: pa.DataType) -> str:
    kind = plain_type(kind)
    for name, holds in (
        ("text", _is_text),
        ("bytes", _is_bytes),
        ("integer", pa.types.is_integer),
        ("floating", pa.types.is_floating),
    ):
        if holds(kind):
            return name
    if _is_list(kind):
        return f"list of {_form(kind.value_type)}"
    if pa.types.is_struct(kind):
        return str(sorted((field.name, _form(field.type)) for field in kind.fields))
    return str(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, where a dictionary codes them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return _is_bytes(plain_type(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _has_path(kind: pa.DataType) -> bool:
    place = kind.get_field_index("path") if pa.types.is_struct(kind) else -1
    return place >= 0 and _is_text(kind.field(place).type)


def _is_text(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_text_list(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_text(kind.value_type)


def _is_plain(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(number or _is_text(kind))
