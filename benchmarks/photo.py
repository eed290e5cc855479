"""What `vlre-photo` is worth on photographs, each figure with its 95 % interval.

    python -m benchmarks.photo --flickr8k DIR [--coco DIR] [recall itm captions queries speed]
    python -m benchmarks.photo --tiny            drawn scenes and few of them, for a test

DIR holds Flickr8k as its archives unpack; its dev split (1,000 photographs, five captions each) is
measured, which no weight was trained on but which chose the step of the run. COCO photographs (a
directory with captions in Flickr8k's form) are a second, foreign gallery. `--itm-queries N` asks
the matching head about the first N captions only: 32 pairs for each take a core a tenth of a second.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import BlipConfig, BlipForImageTextRetrieval

from benchmarks.report import emit
from retrieval_engine.caption import CaptionJob, CaptionRequest, DecodingOptions
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.evaluate.caption_scores import caption_scores
from retrieval_engine.evaluate.store_recall import gallery_recall
from retrieval_engine.metrics.bootstrap import Bootstrap
from retrieval_engine.metrics.diversity import diversity
from retrieval_engine.metrics.intervals import recall_intervals
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.models import open_encoder
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Gallery, open_store

PARTS = ("recall", "itm", "captions", "queries", "speed")
TOP = 32
# A query, and words of which each line must be in some caption of a photograph that is an answer.
QUERIES = {
    "a dog in the snow": ("dog dogs puppy", "snow snowy"),
    "a man climbing a rock": ("climbing climber climbs climb", "rock cliff mountain wall boulder"),
    "children playing soccer": ("soccer football", "children child kids boys girls players boy"),
    "a dog running on grass": ("dog dogs", "grass field lawn grassy yard"),
    "a man riding a bicycle": ("bike bicycle bikes biker cyclist biking bicyclist bicycles",),
    "people at the beach": ("beach ocean sea shore sand",),
    "a surfer on a wave": ("surfer surfing surfs surf surfboard", "wave waves ocean water"),
    "a skateboarder doing a trick": ("skateboard skateboarder skateboarding skater",),
    "two dogs playing": ("dogs",),
    "a girl on a swing": ("swing swings swinging",),
    "a snowboarder in the air": ("snowboarder snowboard snowboarding snowboards",),
    "a basketball game": ("basketball",),
    "a motorcycle racing on dirt": ("motorcycle dirt motorbike motocross bike",),
    "a child in a swimming pool": ("pool",),
    "people walking on a city street": ("street sidewalk city crosswalk road",),
    "a dog swimming in water": ("dog dogs", "water swimming swims pool lake river ocean"),
}
NONSENSE = (
    "the quarterly invoice of algebra",
    "zorble the fenwick quants",
    "an annual philosophy meeting argues inflation",
    "qwlm xhtr oouep",
    "the theory of insurance law",
    "seventeen abstract verbs translate grammar",
    "password database virtue",
    "gravity votes for the symphony",
)


def measure_recall(gallery: Gallery, name: str) -> None:
    """Recall by ITC, both directions."""
    report = gallery_recall(gallery, device="cpu")
    spread = recall_intervals(report)
    emit("photo-recall", gallery=name, **report.to_json(), interval=spread and spread.to_json())


def vectors(gallery: Gallery) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """ITC vectors of images (n, d) and captions (m, d)."""
    images = np.concatenate([block[:, 0] for _, block in gallery.image_blocks("itc", 512)])
    captions = np.asarray(gallery.captions("itc"), dtype=np.float32)[:, 0]
    return images.astype(np.float32), captions


def measure_itm(gallery: Gallery, model: str, name: str, queries: int) -> None:
    """Text to image after the matching head has looked at the best 32 by ITC."""
    images, captions = vectors(gallery)
    rng = np.random.default_rng(0)
    asked = rng.permutation(len(captions))[: queries or len(captions)]
    scores = captions[asked] @ images.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    texts = [gallery.caption_texts[int(i)] for i in asked]
    pairs = np.stack([best.ravel(), np.repeat(np.arange(len(asked)), best.shape[1])], axis=1)
    tokens = gallery.images("tokens")
    encoder = open_encoder(model, device="cpu")
    matcher = encoder.matcher()
    logits = matcher.score_pairs(lambda rows: tokens[rows], texts, pairs, of_images=True)
    itc = np.take_along_axis(scores, best, 1)
    both = logits.reshape(best.shape) + itc
    order = np.argsort(-both, axis=1, kind="stable")
    found = np.take_along_axis(best, order, 1) == gallery.caption_image[asked][:, None]
    before = best == gallery.caption_image[asked][:, None]
    for label, hits in (("itc", before), ("itm", found)):
        figures = {f"R@{k}": _share(hits[:, :k].any(1)) for k in (1, 5, 10)}
        emit("photo-itm", gallery=name, scores=label, queries=len(asked), k=TOP, **figures)


def _share(hits: NDArray[np.bool_]) -> list[float]:
    """Per cent, and the ends of its interval over queries."""
    sums = Bootstrap().sums(np.stack([hits, np.ones(len(hits))], axis=1).astype(np.float64))
    low, high = np.percentile(100 * sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return [round(float(v), 2) for v in (100 * hits.mean(), low, high)]


def measure_captions(store: Path, model: str, gallery: Gallery) -> None:
    """Greedy captions, beams, and beams ranked by the matching head."""
    references = [
        [
            ptb_tokens(gallery.caption_texts[int(j)])
            for j in np.flatnonzero(gallery.caption_image == i)
        ]
        for i in range(len(gallery.image_rows))
    ]
    ways = {
        "greedy": DecodingOptions(beams=1),
        "beams 3": DecodingOptions(beams=3),
        "beams 3, no pair of words twice": DecodingOptions(beams=3, no_repeat_ngram=2),
        "beams 5, ranked": DecodingOptions(beams=5, num_captions=5),
        "beams 24, rarer words, ranked": DecodingOptions(
            beams=24, num_captions=24, logit_adjustment=0.25
        ),
    }
    for name, options in ways.items():
        ranked = options.num_captions > 1
        job = CaptionJob(CaptionRequest(store=store, model=model, options=options, rank=ranked))
        rows = {row["image"]: row["caption"] for row in job.run()}
        tokens = [ptb_tokens(rows[image]) for image in gallery.ids]
        scores, varied = caption_scores(tokens, references), diversity(tokens)
        emit(
            "photo-captions",
            setting=name,
            images=len(tokens),
            images_per_s=round(len(tokens) / job.seconds, 1),
            **{k: round(v, 4) for k, v in scores.metrics.items()},
            repetition_rate=round(varied.repetition_rate, 4),
            vocabulary=varied.vocabulary,
            examples=[rows[image] for image in list(gallery.ids)[:8]],
        )


def measure_queries(gallery: Gallery, model: str) -> None:
    """Precision at 5 of short queries, and whether ITM tells sense from nonsense."""
    encoder = open_encoder(model, device="cpu")
    images, _ = vectors(gallery)
    tokens = gallery.images("tokens")
    words = [set[str]() for _ in range(len(images))]
    for image, text in zip(gallery.caption_image.tolist(), gallery.caption_texts, strict=True):
        words[image] |= set(ptb_tokens(text))
    texts = [*QUERIES, *NONSENSE]
    scores = encoder.encode_texts(texts, ["itc"])["itc"][:, 0] @ images.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    pairs = np.stack([best.ravel(), np.repeat(np.arange(len(texts)), best.shape[1])], axis=1)
    matcher = encoder.matcher()
    logits = matcher.score_pairs(lambda rows: tokens[rows], texts, pairs).reshape(best.shape)
    matched = matcher.score_pairs(lambda rows: tokens[rows], texts, pairs, as_probability=True)
    order = np.argsort(-(logits + np.take_along_axis(scores, best, 1)), axis=1, kind="stable")
    for label, ranked in (("itc", best), ("itm", np.take_along_axis(best, order, 1))):
        each = {}
        for row, (query, needs) in enumerate(QUERIES.items()):
            hits = [all(words[i] & set(need.split()) for need in needs) for i in ranked[row, :5]]
            each[query] = sum(hits) / 5
        mean = round(float(np.mean(list(each.values()))), 3)
        emit("photo-queries", scores=label, precision_at_5=mean, each=each)
    top = matched.reshape(best.shape).max(1)
    sense, nonsense = top[: len(QUERIES)], top[len(QUERIES) :]
    auc = (sense[:, None] > nonsense[None]).mean() + (sense[:, None] == nonsense[None]).mean() / 2
    emit("photo-nonsense", best_match_of_32=True, auc=round(float(auc), 4))


def measure_speed(model: str, count: int) -> None:
    """Images a second, decoding included, against a ViT-B/384; and large JPEGs."""
    small, large = _jpeg(500, 375), _jpeg(4000, 3000)
    encoder = open_encoder(model, device="cpu")
    look = encoder.preprocessor

    def run(n: int) -> float:
        started = time.perf_counter()
        pixels = [look.pixels(decode(small, least_side=look.least_side)) for _ in range(n)]
        encoder.encode_images(np.stack(pixels), ["itc", "tokens"])
        return n / (time.perf_counter() - started)

    run(8)
    ours = max(run(count) for _ in range(3))
    vit = _vit_images_per_s(2 if count < 32 else 8)
    started = time.process_time()
    for _ in range(5):
        look.pixels(decode(large, least_side=look.least_side))
    decode_ms = 1000 * (time.process_time() - started) / 5
    emit(
        "photo-speed",
        images_per_s=round(ours, 1),
        vit_b_384_images_per_s=round(vit, 2),
        times=round(ours / vit, 1),
        decode_12_megapixels_ms=round(decode_ms, 1),
    )


def _vit_images_per_s(count: int) -> float:
    """A random BLIP with ViT-B/16 at 384 pixels, as the published ones are; no decoding."""
    import torch

    config = BlipConfig(vision_config={"image_size": 384, "hidden_size": 768})
    tower = BlipForImageTextRetrieval(config).eval().vision_model
    pixels = torch.zeros(count, 3, 384, 384)
    with torch.inference_mode():
        tower(pixel_values=pixels[:1])
        started = time.perf_counter()
        tower(pixel_values=pixels)
    return count / (time.perf_counter() - started)


def _jpeg(width: int, height: int) -> bytes:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 40, width // 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def measure_gallery(source: str, split: str, name: str, arguments: argparse.Namespace) -> None:
    """All that needs a store of a gallery."""
    parts: Sequence[str] = arguments.parts or PARTS
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(arguments.store or scratch) / name
        if not (store / "store.json").exists():
            options = EncodeOptions(features=("itc", "tokens"), split=split)
            encode(source, store, encoder=arguments.model, options=options)
        gallery = open_store(store).gallery(split or None)
        if "recall" in parts:
            measure_recall(gallery, name)
        if name == "coco":
            return
        if "queries" in parts:
            measure_queries(gallery, arguments.model)
        if "captions" in parts:
            measure_captions(store, arguments.model, gallery)
        if "itm" in parts:
            measure_itm(gallery, arguments.model, name, arguments.itm_queries)


def main() -> None:
    """Measure and print one JSON line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--flickr8k", default="", help="Directory of Flickr8k.")
    parser.add_argument("--coco", default="", help="Directory of foreign photographs.")
    parser.add_argument("--model", default="vlre-photo")
    parser.add_argument("--store", default="", help="Keep the features here.")
    parser.add_argument("--itm-queries", type=int, default=0, help="0 asks all captions.")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.tiny:
        measure_gallery("scenes:12?seed=5", "", "scenes", arguments)
    if arguments.flickr8k:
        source = f"flickr8k:{arguments.flickr8k}?split=val&allow_missing=true"
        measure_gallery(source, "val", "flickr8k-dev", arguments)
    if arguments.coco:
        measure_gallery(f"flickr8k:{arguments.coco}", "", "coco", arguments)
    if "speed" in (arguments.parts or PARTS):
        measure_speed(arguments.model, 8 if arguments.tiny else 64)


if __name__ == "__main__":
    main()
