"""What captions are worth: on unseen scenes, whose truth is known, and CapFilt on wrong ones.

    python -m benchmarks.caption_quality                    1,000 unseen scenes, vlre-tiny
    python -m benchmarks.caption_quality --tiny             for a test

Captions are written from a store's tokens. A noun is right when the scene has such a thing; a
caption is true when all it claims is (`sources/scenes/truth.py`). The figures beside ours are those
of the commonest caption of the training seed, given to every picture. For CapFilt, 30 % of the
captions are exchanged for those of other pictures; one that is true all the same is not wrong.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.report import emit
from retrieval_engine.caption import BeamRule, CaptionJob, CaptionRequest, DecodingOptions
from retrieval_engine.caption.loaded import open_judge
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.evaluate.caption_scores import caption_scores
from retrieval_engine.metrics.diversity import diversity
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.records import Item, Json
from retrieval_engine.sources import open_source
from retrieval_engine.sources.scenes import truth
from retrieval_engine.store import open_store

SETTINGS = {
    "greedy": DecodingOptions(beams=1),
    "beams 3": DecodingOptions(beams=3),
    "beams 3, rule of transformers": DecodingOptions(beam_rule=BeamRule.TRANSFORMERS),
    "sampled": DecodingOptions(sample=True),
    "sampled, 5 ranked": DecodingOptions(sample=True, num_captions=5),
}


def right_nouns(
    captions: Sequence[str], metas: Sequence[Mapping[str, Json]]
) -> tuple[float, float]:
    """Share of nouns that are in the picture, and of captions that are true of it."""
    right = nouns = true = 0
    for caption, meta in zip(captions, metas, strict=True):
        known = truth.facts(meta)
        named = truth.nouns(caption)
        nouns += len(named)
        right += sum(name in known for name in named)
        true += truth.is_true(caption, meta) is True
    return right / max(nouns, 1), true / len(captions)


def figures(captions: Sequence[str], items: Sequence[Item]) -> dict[str, object]:
    """Metrics against the scenes' own captions, and truth."""
    tokens = [ptb_tokens(caption) for caption in captions]
    references = [[ptb_tokens(c.text) for c in item.captions] for item in items]
    scores = caption_scores(tokens, references).metrics
    varied = diversity(tokens)
    nouns, true = right_nouns(captions, [item.meta for item in items])
    return {
        "nouns_right": round(nouns, 4),
        "captions_true": round(true, 4),
        "BLEU-4": round(scores["BLEU-4"], 4),
        "ROUGE-L": round(scores["ROUGE-L"], 4),
        "CIDEr": round(scores["CIDEr"], 4),
        "repetition_rate": round(varied.repetition_rate, 4),
        "mean_length": round(varied.mean_length, 2),
        "distinct_captions": round(varied.distinct_captions, 3),
    }


def commonest(source: str) -> str:
    """The caption that a source has most often."""
    counts = Counter(c.text for item in open_source(source).items() for c in item.captions)
    return counts.most_common(1)[0][0]


def captioning(store: Path, model: str, items: Sequence[Item], trained_on: str) -> None:
    """Captions of all pictures in a store, in several ways."""
    constant = commonest(trained_on)
    emit(
        "caption-quality",
        setting="commonest training caption",
        caption=constant,
        **figures([constant] * len(items), items),
    )
    longest = [max((c.text for c in item.captions), key=len) for item in items]
    emit(
        "caption-quality",
        setting="the longest reference of each picture (truth and repetition only)",
        repetition_rate=round(diversity([ptb_tokens(text) for text in longest]).repetition_rate, 4),
        nouns_right=round(right_nouns(longest, [item.meta for item in items])[0], 4),
    )
    for name, options in SETTINGS.items():
        ranked = options.num_captions > 1
        job = CaptionJob(CaptionRequest(store=store, model=model, options=options, rank=ranked))
        found = {row["image"]: row["caption"] for row in job.run()}
        assert job.encoded == 0, "captions must come from the cache"
        emit(
            "caption-quality",
            setting=name,
            model=model,
            images=len(items),
            images_per_s=round(len(items) / job.seconds, 1),
            **figures([found[item.id] for item in items], items),
        )


def filtering(store: Path, model: str, items: Sequence[Item], share: float = 0.3) -> None:
    """What the filter of CapFilt does to captions of which a share is exchanged."""
    rng = np.random.default_rng(0)
    texts = [[caption.text for caption in item.captions] for item in items]
    places = [(i, j) for i, own in enumerate(texts) for j in range(len(own))]
    chosen = rng.permutation(len(places))[: round(share * len(places))]
    moved = [texts[places[k][0]][places[k][1]] for k in chosen]
    for k, text in zip(chosen, np.roll(np.array(moved, dtype=object), 1), strict=True):
        texts[places[k][0]][places[k][1]] = text
    judge = open_judge(None, model, open_store(store))
    gallery = open_store(store).gallery()
    matches = judge.probabilities(gallery.images("tokens"), texts)
    scored = [
        (truth.is_true(text, item.meta) is True, match)
        for own, found, item in zip(texts, matches, items, strict=True)
        for text, match in zip(own, found, strict=True)
    ]
    right = np.array([match for is_right, match in scored if is_right])
    wrong = np.array([match for is_right, match in scored if not is_right])
    for threshold in (0.3, 0.5, 0.7):
        emit(
            "capfilt",
            model=model,
            threshold=threshold,
            captions=len(scored),
            wrong=len(wrong),
            wrong_removed=round(float((wrong < threshold).mean()), 4),
            right_kept=round(float((right >= threshold).mean()), 4),
        )


def main() -> None:
    """Measure and print one JSON line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=909)
    parser.add_argument("--model", default="vlre-tiny")
    parser.add_argument("--trained-on", default="scenes:30000?seed=1")
    arguments = parser.parse_args()
    n = 12 if arguments.tiny else arguments.images
    trained_on = "scenes:50?seed=1" if arguments.tiny else arguments.trained_on
    source = f"scenes:{n}?seed={arguments.seed}"
    items = list(open_source(source).items())
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        features = EncodeOptions(features=("itc", "tokens"))
        encode(source, store, encoder=arguments.model, options=features)
        captioning(store, arguments.model, items, trained_on)
        filtering(store, arguments.model, items)


if __name__ == "__main__":
    main()
