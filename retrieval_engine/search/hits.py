"""What a search answers with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrieval_engine.index.catalog import Entry
from retrieval_engine.records import Caption, Json, data_frame


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
        match: probability that it matches the words, where that was asked for.
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
    match: float | None = None

    @property
    def name(self) -> str:
        """Id of what was found: the caption's, else the image's."""
        return self.item_id if self.caption_id is None else self.caption_id

    @property
    def title(self) -> str:
        """What was found, for people: its name, or of a video's frame `clip.mp4 at 02:13`."""
        video, time_s = self.meta.get("video"), self.meta.get("time_s")
        if self.caption_id is not None or not isinstance(time_s, int | float) or not video:
            return self.name
        hours, minutes = divmod(int(time_s) // 60, 60)
        clock = f"{hours}:{minutes:02}" if hours else f"{minutes:02}"
        return f"{video} at {clock}:{int(time_s) % 60:02}"

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
        if self.match is not None:
            value["match"] = round(self.match, 4)
        return value


class Hits(list[Hit]):
    """The hits of one query, best first; a notebook shows them with their pictures.

    Args:
        hits: as found.
        query: what was asked, for people.
        image: bytes of the picture asked with, where it was one.

    Attributes:
        best_match: the highest probability of a match that any hit had, those included that were
            left out for having too little; None where it was not asked for.
        note: a line that says why there are none, where a filter leaves none.
    """

    def __init__(self, hits: Iterable[Hit], query: str = "", image: bytes | None = None) -> None:
        super().__init__(hits)
        self.query = query
        self.image = image
        self.best_match: float | None = None
        self.note = ""

    def keep_matches(self, chances: Sequence[float], least: float) -> None:
        """Give each hit its probability of a match, and leave out what has less than `least`."""
        self.best_match = max(chances, default=0.0)
        judged = [replace(hit, match=p) for hit, p in zip(self, chances, strict=True) if p >= least]
        self[:] = [replace(hit, rank=rank) for rank, hit in enumerate(judged, start=1)]

    def __repr__(self) -> str:
        lines = [f"{len(self)} hits of {self.query!r}" if self.query else f"{len(self)} hits"]
        lines += [f"{h.rank:>4} {h.score:7.4f}  {h.title}  {h.sentence}".rstrip() for h in self]
        return "\n".join([*lines, self.note] if self.note else lines)

    def _repr_html_(self) -> str:
        from retrieval_engine.search.contact_sheet import fragment

        return fragment(self)

    def to_pandas(self) -> Any:
        """The hits as a DataFrame, metadata as columns of their own.

        Raises:
            MissingExtra: pandas is not installed.
        """
        rows = [{**hit.to_json(), **hit.meta} for hit in self]
        columns = ["rank", "score", "item_id", "uri", "captions"]
        table = data_frame(rows) if rows else data_frame([dict.fromkeys(columns)]).iloc[:0]
        return table.drop(columns="meta", errors="ignore")


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
