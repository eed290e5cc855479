"""The certificate of an evaluation: all that a reviewer needs to check or repeat the figures."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from retrieval_engine.durable import replacing_file
from retrieval_engine.errors import EvaluationError
from retrieval_engine.evaluate.leaks import LeakReport
from retrieval_engine.machine import version_of
from retrieval_engine.metrics.bootstrap import Bootstrap
from retrieval_engine.metrics.intervals import recall_intervals
from retrieval_engine.metrics.recall import RecallReport
from retrieval_engine.records import Json, Modality
from retrieval_engine.store import Gallery
from retrieval_engine.store.gallery import shared_strings

FORMAT = 1
_LIBRARIES = ("torch", "transformers", "numpy", "h5py", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How one set of figures came about.

    Attributes:
        name: `itc`, or `itm+itc` for a re-ranked one.
        score: what a pair's score is.
        k: candidates a query that were re-ranked; None where every pair was scored alike.
        seconds: wall time.
    """

    name: str
    score: str
    k: int | None = None
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """The protocol in a few words, for tables."""
        return f"{self.k} candidates a query re-ranked by ITM" if self.k else "exact search"


ITC = Protocol(
    name="itc",
    score="inner product of L2-normalised ITC vectors, the largest over the image's vectors; "
    "float64 on the stored values; every image against every caption, no index",
)


def certificate(
    gallery: Gallery,
    results: Sequence[tuple[Protocol, RecallReport]],
    leaks: LeakReport,
    *,
    bootstrap: Bootstrap | None = None,
) -> dict[str, Json]:
    """All about an evaluation as JSON values.

    Args:
        gallery: what was evaluated.
        results: each protocol's figures, ITC first.
        leaks: what gallery and training share.
        bootstrap: how intervals are drawn.
    """
    bootstrap = bootstrap or Bootstrap()
    store, report = gallery.store, results[0][1]
    return {
        "format": FORMAT,
        "data": _data(gallery, report),
        "encoder": {
            "fingerprint": store.fingerprint,
            "feature": {side.value: store.features(side)["itc"].fingerprint for side in Modality},
            "stored_as": store.features(Modality.IMAGES)["itc"].dtype,
            **store.spec.to_json(),
        },
        "rules": {
            "image_to_text": "an image counts at k when any of its captions is among its k nearest",
            "text_to_image": "each caption asks for its own image",
            "identical": "a candidate of the same bytes or the same words as the right one is "
            "no wrong answer (but under pessimistic ties)",
            "ties": report.ties.value,
            "tied_queries": report.ranks.n_tied,
            "nan": "an error; these figures exist because there was none",
            "nan_count": 0,
        },
        "results": {
            protocol.name: _figures(protocol, figures, bootstrap) for protocol, figures in results
        },
        "bootstrap": bootstrap.to_json(),
        "leaks": leaks.to_json(),
        "made": _made(),
    }


def write_certificate(path: Path, value: Mapping[str, Json]) -> None:
    """Write a certificate, whole or not at all.

    Raises:
        EvaluationError: the file cannot be written.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error


def _data(gallery: Gallery, report: RecallReport) -> dict[str, Json]:
    ids = [f"{s}\t{i}" for s, i in zip(gallery.sources, gallery.ids, strict=True)]
    image = gallery.caption_image
    texts = zip(image, gallery.caption_ids, gallery.caption_texts, strict=True)
    per_image = np.bincount(image, minlength=len(ids))
    counts, images = np.unique(per_image, return_counts=True)
    return {
        "sources": list(dict.fromkeys(shared_strings(gallery.sources).tolist())),
        "split": gallery.split,
        "splits": {k: v for k, v in Counter(shared_strings(gallery.splits).tolist()).items() if k},
        "n_images": report.n_images,
        "n_captions": report.n_captions,
        "n_images_without_captions": report.n_without_captions,
        "n_images_not_encoded": gallery.left_out,
        "images_by_captions": {str(c): int(n) for c, n in zip(counts, images, strict=True)},
        "ids_sha256": _digest(ids),
        "images_sha256": _digest(gallery.keys),
        "captions_sha256": _digest(f"{ids[i]}\t{c}\t{text}" for i, c, text in texts),
        "digest_rule": "sha256 of the sorted lines, each ended by \\n: source<TAB>id; sha256 of "
        "the image's bytes; source<TAB>id<TAB>caption id<TAB>caption",
    }


def _figures(protocol: Protocol, report: RecallReport, bootstrap: Bootstrap) -> dict[str, Json]:
    spread = recall_intervals(report, bootstrap)
    return {
        "score": protocol.score,
        "candidates_per_query": protocol.k,
        "image_to_text": report.image_to_text.to_json(),
        "text_to_image": report.text_to_image.to_json(),
        "mean_recall": report.mean_recall,
        "interval": spread.to_json() if spread else None,
        "seconds": round(protocol.seconds or report.seconds, 3),
    }


def _made() -> dict[str, Json]:
    versions = {name: v for name in _LIBRARIES if (v := version_of(name))}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": f"vlre {version_of('vlre')}",
        "python": platform.python_version(),
        "versions": dict(versions),
        "platform": platform.platform(),
    }


def _digest(lines: Iterable[str]) -> str:
    """sha256 of the sorted lines, 64 hex digits."""
    return hashlib.sha256("\n".join([*sorted(lines), ""]).encode()).hexdigest()
