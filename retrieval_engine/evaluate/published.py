"""Figures that others have published, to stand beside ours. The rows are in `published.json`.

Recalls and caption metrics are as papers print them, times 100. A row that could not be checked
against its source says so.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from retrieval_engine.errors import EvaluationError

DATASETS = ("flickr30k", "coco", "flickr8k")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRecall:
    """One published pair of recalls.

    Attributes:
        model: its name.
        setting: fine-tuned, zero-shot, …
        rerank: none, or how candidates were re-ranked.
        image_to_text: by `R@k`; None where not published.
        text_to_image: likewise.
        source: where the figures stand.
        unverified: what of it could not be checked; empty when all was.
    """

    model: str
    setting: str
    rerank: str
    image_to_text: Mapping[str, float | None]
    text_to_image: Mapping[str, float | None]
    source: str
    unverified: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCaptions:
    """One published row of caption metrics on COCO's Karpathy test split, times 100."""

    model: str
    metrics: Mapping[str, float]
    source: str
    unverified: str = ""


def published_recall(dataset: str) -> list[PublishedRecall]:
    """The rows of a data set; see `DATASETS`."""
    return [
        PublishedRecall(**{k: v for k, v in row.items() if k != "dataset"})
        for row in _file()["retrieval"]
        if row["dataset"] == dataset
    ]


def published_captions() -> list[PublishedCaptions]:
    """The rows of COCO's Karpathy test split."""
    return [
        PublishedCaptions(**{k: v for k, v in row.items() if k != "dataset"})
        for row in _file()["captioning"]
    ]


def gallery_size(dataset: str) -> tuple[int, int]:
    """Images and captions of the gallery that the published figures are of."""
    size = _file()["datasets"][dataset]
    return size["n_images"], size["n_captions"]


def dataset_of(sources: Iterable[str]) -> str:
    """The data set that the sources' names speak of.

    Raises:
        EvaluationError: none or several.
    """
    names = [name.lower() for name in sources]
    found = [d for d in DATASETS if any(d in name for name in names)]
    if len(found) != 1:
        raise EvaluationError(
            f"cannot tell the data set from the sources {', '.join(names[:3])}",
            hint=f"name it as `dataset`: {', '.join(DATASETS)}",
        )
    return found[0]


def _file() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]
