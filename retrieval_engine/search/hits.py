"""What a search answers with."""

from collections.abc import Mapping
from dataclasses import dataclass

from retrieval_engine.index.catalog import Entry
from retrieval_engine.records import Caption, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One answer to a query.

    Attributes:
        rank: place in the list, 1 for the best.
        score: inner product, maximum over the item's vectors; larger is closer.
        item_id: id of the image within its source.
        uri: where the image is.
        captions: all captions the source has for it.
        meta: whatever else the source knows.
        source: what the id is unique within.
        caption_id: of the caption found, where captions were searched.
        caption: its text, likewise.
    """

    rank: int
    score: float
    item_id: str
    uri: str
    captions: tuple[str, ...]
    meta: Mapping[str, Json]
    source: str
    caption_id: str | None = None
    caption: str | None = None

    @property
    def name(self) -> str:
        """Id of what was found: the caption's, else the image's."""
        return self.item_id if self.caption_id is None else self.caption_id

    @property
    def sentence(self) -> str:
        """The caption found, else the image's first, else nothing."""
        return next(iter(self.captions), "") if self.caption is None else self.caption

    def to_json(self) -> dict[str, Json]:
        """The hit as one JSON object."""
        value: dict[str, Json] = {
            "rank": self.rank,
            "score": round(self.score, 6),
            "item_id": self.item_id,
            "uri": self.uri,
            "captions": list(self.captions),
            "meta": dict(self.meta),
        }
        if self.caption_id is not None:
            value |= {"caption_id": self.caption_id, "caption": self.caption}
        return value


def hit_of(rank: int, score: float, entry: Entry, caption: Caption | None = None) -> Hit:
    """A hit from what a catalogue knows of its item."""
    return Hit(
        rank=rank,
        score=float(score),
        item_id=entry.id,
        uri=entry.uri,
        captions=tuple(c.text for c in entry.captions),
        meta=entry.meta,
        source=entry.source,
        caption_id=caption.id if caption else None,
        caption=caption.text if caption else None,
    )
