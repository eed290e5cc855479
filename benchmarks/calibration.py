"""How honestly "nothing matches" is said: what is refused at a probability of .5, and what is kept.

    python -m benchmarks.calibration                             drawn scenes, vlre-tiny
    python -m benchmarks.calibration --store DIR --split val     photographs with captions, encoded
    python -m benchmarks.calibration --tiny                      few scenes, for a test

The top hit is judged. Kept should be: those that are right. Refused should be: those of nonsense,
and those of a subject that is absent, which is asked for among the images that do not have it. On
scenes what is in a picture is known from its drawing; on photographs from the words of its
captions, which say less than there is to see, so some "absent" subjects are there all the same.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photo import NONSENSE, QUERIES
from benchmarks.report import emit
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.metrics.calibration import share_of
from retrieval_engine.models import Encoder, open_encoder
from retrieval_engine.search.calibrate import CalibrationSettings, calibrate
from retrieval_engine.search.matching import Evidence, MatchBy
from retrieval_engine.store import Gallery, Store, open_store

MORE_NONSENSE = (
    "blue philosophy sleeps furiously",
    "a committee of square roots",
    "tax return of the seventh adverb",
    "xqzv prrt lmn",
    "the inflation of a sonnet",
    "an argument about ontology",
    "compile the kernel with warnings",
    "third quarter revenue guidance",
    "asdf jkl qwerty",
    "a grammar of silence",
    "the square of the hypotenuse",
    "interest rates and verbs",
)
GROUNDS = {
    "grass": "on grass",
    "sand": "on the beach",
    "snow": "in the snow",
    "street": "on the street",
}
Has = Callable[[int], bool]


def scene_queries(gallery: Gallery) -> Iterator[tuple[str, Has]]:
    """A query for each subject, alone and on a ground, and whether an image has what it asks for."""
    meta: list[Any] = [gallery.meta(i) for i in range(len(gallery))]
    subjects = sorted({s for m in meta for s in m["subjects"]})
    for subject in subjects:
        article = "an" if subject[0] in "aeiou" else "a"
        words = str(subject).replace("_", " ")
        yield f"{article} {words}", partial(_shows, meta, subject, None)
        for ground, where in GROUNDS.items():
            yield f"{article} {words} {where}", partial(_shows, meta, subject, ground)


def _shows(meta: list[Any], subject: str, ground: str | None, image: int) -> bool:
    found = meta[image]
    return subject in found["subjects"] and ground in (None, found["ground"])


def photo_queries(gallery: Gallery) -> Iterator[tuple[str, Has]]:
    """Short queries, and whether the captions of a photograph have a word of each group."""
    words = [
        {
            w.strip(".,")
            for j in gallery.captions_of(i)
            for w in gallery.caption_texts[j].lower().split()
        }
        for i in range(len(gallery))
    ]
    for query, groups in QUERIES.items():
        wanted = [set(group.split()) for group in groups]
        yield query, partial(_has_all, words, wanted)


def _has_all(words: list[set[str]], wanted: list[set[str]], image: int) -> bool:
    return all(words[image] & group for group in wanted)


def measure(
    store: Store, encoder: Encoder, settings: CalibrationSettings, *, photographs: bool
) -> None:
    """Print the calibration's own figures, and those of top hits."""
    by, split = settings.by, settings.split
    assert by is not None
    started = time.perf_counter()
    made = calibrate(store, encoder, settings)
    seconds = time.perf_counter() - started
    gallery = store.gallery(split)
    evidence = Evidence(store, by, encoder, split)
    images, known = gallery.images("itc"), (gallery.image_rows, gallery.uris)
    queries = list((photo_queries if photographs else scene_queries)(gallery))

    def top(text: str, allowed: "np.typing.NDArray[np.bool_]", depth: int = 1) -> tuple[float, int]:
        vector = encoder.encode_texts([text], ["itc"])["itc"][:, 0].astype(np.float32)
        scores = np.einsum("nqd,d->nq", images, vector[0]).max(-1)
        best = np.argsort(-np.where(allowed, scores, -np.inf), kind="stable")[:depth]
        pairs = np.stack([np.zeros(len(best), np.int64), best], axis=1)
        chance = made.fit(evidence.of([text], vector, pairs, known))
        return float(chance.max()), int(best[np.argmax(chance)])

    everything = np.ones(len(gallery), bool)
    nonsense = [top(text, everything)[0] for text in (*NONSENSE, *MORE_NONSENSE)]
    kept: list[float] = []
    absent: list[float] = []
    wrong: list[float] = []
    for text, has in queries:
        there = np.array([has(i) for i in range(len(gallery))])
        if there.any():
            chance, image = top(text, everything)
            (kept if there[image] else wrong).append(chance)
        if not there.all():
            absent.append(top(text, ~there)[0])
    reported = made.to_json()["held_out"]
    emit(
        "calibration",
        store="photographs" if photographs else "scenes",
        model=store.spec.checkpoint,
        by=by.value,
        images=len(gallery),
        pairs=made.n_pairs,
        held_out=reported,
        true_top_hits=len(kept),
        true_top_hits_kept=round(share_of(np.array(kept) >= 0.5), 4),
        wrong_top_hits=len(wrong),
        wrong_top_hits_refused=round(share_of(np.array(wrong) < 0.5), 4),
        nonsense=len(nonsense),
        nonsense_refused=round(share_of(np.array(nonsense) < 0.5), 4),
        absent=len(absent),
        absent_refused=round(share_of(np.array(absent) < 0.5), 4),
        seconds=round(seconds, 2),
    )


def main() -> None:
    """Parse and measure by ITM and by ITC."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--split", default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--by", choices=list(MatchBy), help="one of the two alone")
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.store or Path(folder) / "store"
        if not args.store:
            count = 120 if args.tiny else args.scenes
            encode(
                f"scenes:{count}?seed=77",
                path,
                encoder=open_encoder("vlre-tiny", device=args.device),
                options=EncodeOptions(features=("itc", "pooled", "tokens")),
            )
        store = open_store(path)
        encoder = open_encoder(store.spec.checkpoint, device=args.device)
        for by in [MatchBy(args.by)] if args.by else list(MatchBy):
            settings = CalibrationSettings(split=args.split, by=by, captions=args.captions)
            measure(store, encoder, settings, photographs=bool(args.store))


if __name__ == "__main__":
    main()
