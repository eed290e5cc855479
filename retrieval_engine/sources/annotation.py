"""What an annotation says about one image, and the words in which the common forms say it."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from retrieval_engine.errors import SourceError
from retrieval_engine.records import Json
from retrieval_engine.sources.cleaning import clean_text
from retrieval_engine.sources.reading import one_line
from retrieval_engine.sources.source_name import split_name

IMAGE_KEYS = (
    *("image", "file_name", "filename", "image_name", "image_path", "image_file", "image_filename"),
    *("filepath", "file_path", "img", "img_path", "img_name", "img_file", "photo", "picture"),
    *("name", "file", "path"),
)
USUAL_CAPTION_KEYS = (
    *("captions", "caption", "comment", "sentences", "sentence", "texts", "text", "description"),
)
CAPTION_KEYS = (
    *USUAL_CAPTION_KEYS,
    *("caption_text", "comments", "descriptions", "title", "alt_text", "alt", "prompt"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Names of columns or keys that the user gave; empty where the usual names are looked for."""

    image: str = ""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one line or object of an annotation says about one image.

    Attributes:
        image: name of the image in the annotation.
        captions: its captions, none empty.
        numbers: the name the annotation gives to each of them, e.g. `0`, or nothing.
        split: its split under the usual name, or empty.
        meta: every other thing said.
        files: where the image may lie under the image folder, most likely first; empty means
            under its name.
        fault: why the image cannot be used, or empty.
    """

    image: str
    captions: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    split: str = ""
    meta: Mapping[str, Json] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    fault: str = ""

    def followed_by(self, other: "Record") -> "Record | None":
        """One record that says both, or None where these two cannot be one.

        A table of many captions takes half the memory when those of an image are one record.
        """
        if self.meta or other.meta or self.split != other.split or self.files != other.files:
            return None
        if bool(self.numbers) != bool(other.numbers) or self.fault or other.fault:
            return None
        return replace(
            self,
            captions=self.captions + other.captions,
            numbers=tuple(sys.intern(n) for n in (*self.numbers, *other.numbers)),
        )


def key_of(name: str) -> str:
    """A column's or key's name in the form of `IMAGE_KEYS`: `Image Path` is `image_path`."""
    return re.sub(r"[\s.\-]+", "_", name.strip().strip('"').strip().lower())


def image_name(raw: str) -> str:
    """An image's name in one form: without a leading `./`, and with `/` for Windows' backslash."""
    name = clean_text(raw).strip().replace("\\", "/")
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def image_files(raw: str) -> tuple[str, ...]:
    """Where an image may lie whose name in the annotation is another than `image_name` says."""
    name = image_name(raw)
    return () if name == raw.strip() else (name, clean_text(raw).strip())


def composed(name: str) -> str:
    """The name in Unicode's composed form, NFC, in which equal names are equal."""
    return unicodedata.normalize("NFC", name)


def record_of(entry: Json, where: str, fields: Fields | None = None) -> Record:
    """The record a JSON object stands for.

    Args:
        entry: the object; its image under one of `IMAGE_KEYS`, its captions under one of
            `CAPTION_KEYS`, as a string, strings, or objects with `raw`.
        where: file and line or position, for messages.
        fields: other keys to look under.

    Raises:
        SourceError: it is no object or names no image.
    """
    if not isinstance(entry, dict):
        raise SourceError(f"{where}: expected a JSON object, found {str(entry)[:60]!r}")
    fields = fields or Fields()
    named = {key_of(key): key for key in reversed(entry)}
    image_key = next(
        (k for k in _found(named, fields.image, IMAGE_KEYS) if isinstance(entry[k], str)), None
    )
    if image_key is None:
        raise SourceError(
            f"{where}: no image name; found the keys {one_line(', '.join(entry) or 'none')}",
            hint="name the key with `?image=KEY`, or use one of: " + ", ".join(IMAGE_KEYS[:8]),
        )
    return named_record(str(entry[image_key]), entry, fields, used=image_key)


def named_record(raw: str, entry: Mapping[str, Json], fields: Fields, used: str = "") -> Record:
    """The record of an image whose name is known, out of an object about it."""
    named = {key_of(key): key for key in reversed(list(entry))}
    caption_keys = [key for name in fields.captions for key in _found(named, name, ())]
    caption_keys = caption_keys or _found(named, "", CAPTION_KEYS)[:1]
    said = [captions_of(entry[key]) for key in caption_keys]
    left = {used, "split", *caption_keys}
    return Record(
        image=image_name(raw),
        captions=tuple(text for texts, _ in said for text in texts),
        split=split_name(str(entry.get("split") or "")),
        meta={key: value for key, value in entry.items() if key not in left},
        files=image_files(raw),
        fault=next((fault for _, fault in said if fault), ""),
    )


def _found(named: Mapping[str, str], asked: str, usual: Sequence[str]) -> list[str]:
    """The keys there are of those asked for, or else of the usual ones in their order."""
    wanted: Iterable[str] = (key_of(asked),) if asked else usual
    return [named[key] for key in wanted if key in named]


def captions_of(value: Json) -> tuple[tuple[str, ...], str]:
    """The captions in a JSON value, and what is wrong with one of them, or empty.

    Args:
        value: a string, strings, objects with `raw`; null and NaN, as pandas writes it, are none.
    """
    values = value if isinstance(value, list) else [value]
    texts, fault = [], ""
    for each in values:
        text = each.get("raw", each.get("caption")) if isinstance(each, dict) else each
        if text is None or text != text:  # only NaN is not itself
            continue
        if not isinstance(text, str):
            fault = f"a caption is no text: {str(each)[:60]!r}"
        elif text.strip():
            texts.append(text.strip())
    return tuple(texts), fault
