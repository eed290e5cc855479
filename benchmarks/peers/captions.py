"""Captions a second of one BLIP (ViT-B/16 at 384 with its decoder): from files, and from the cache.

A case is PICTURESxBEAMS. Every caption has eleven new words, so that nobody gains by stopping early;
float32 on all sides. The pipeline of transformers is asked for one picture after the other.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import encode
from benchmarks.peers.turns import Comparison, Figures, Side, watched

PROMPT = "a picture of "
NEW = 11
LENGTH = 4 + NEW  # [DEC] and three words of the prompt
BATCH = 8
TINY = "4x3"


def prepare(work: Path, case: str) -> None:
    """Pictures, a captioner of random weights, and a store with the states of its tower."""
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from benchmarks import checkpoints
    from benchmarks.caption import make_store

    tiny = case == TINY
    checkpoints.blip_captioner(work / "model", tiny=tiny)
    side = 32 if tiny else 384
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    BlipProcessor(images, checkpoints.tokenizer()).save_pretrained(work / "model")
    images.save_pretrained(work / "model")
    encode.draw(work / "pictures", int(case.split("x")[0]))
    make_store(work / "model", _files(work), work / "store", "float32", "cpu")


def _files(work: Path) -> list[Path]:
    return sorted((work / "pictures").glob("*.jpg"))


def _kept(work: Path, name: str, captions: list[str], figures: Figures) -> Figures:
    (work / f"{name}.json").write_text(json.dumps(captions))
    return figures | {"captions_per_s": len(captions) / figures["seconds"]}


def ours(work: Path, case: str, *, name: str, from_cache: bool) -> Figures:
    """As `vlre caption` writes them: of a folder's files, or of a store's states."""
    from retrieval_engine.caption import BeamRule, CaptionRun, DecodingOptions
    from retrieval_engine.caption.source_images import of_source, of_store
    from retrieval_engine.models.captioner import open_captioner
    from retrieval_engine.sources import open_source
    from retrieval_engine.store import open_store

    beams = int(case.split("x")[1])
    captioner = open_captioner(str(work / "model"), device="cpu", dtype="float32")
    rule = BeamRule.TRANSFORMERS if beams > 1 else DecodingOptions().beam_rule
    options = DecodingOptions(
        beams=beams, max_length=LENGTH, min_length=LENGTH, prompt=PROMPT, beam_rule=rule
    )
    store = open_store(work / "store")
    run = CaptionRun(captioner, options, store=store if from_cache else None)
    list(CaptionRun(captioner, options)(of_source(open_source(f"folder:{work / 'warm'}"))))
    with watched() as watch:
        pictures = f"folder:{work / 'pictures'}"
        images = of_store(store.gallery()) if from_cache else of_source(open_source(pictures))
        done = [(c.image.item.id, c.captions[0]) for part in run(images) for c in part.captioned]
    return _kept(work, name, [text for _, text in sorted(done)], watch.figures)


def pipeline(work: Path, case: str) -> Figures:
    """`pipeline("image-text-to-text")`, given file names."""
    from transformers import pipeline as open_pipeline

    pipe = open_pipeline("image-text-to-text", model=str(work / "model"), device="cpu")
    how = {"num_beams": int(case.split("x")[1]), "min_new_tokens": NEW, "max_new_tokens": NEW}

    def run(files: list[Path]) -> list[str]:
        told = [pipe(images=str(f), text=PROMPT, generate_kwargs=how)[0] for f in files]
        return [one["generated_text"].removeprefix(PROMPT).strip() for one in told]

    run(list((work / "warm").glob("*.jpg")))
    with watched() as watch:
        captions = run(_files(work))
    return _kept(work, "transformers pipeline", captions, watch.figures)


def generate(work: Path, case: str) -> Figures:
    """`BlipForConditionalGeneration.generate`, some pictures at a time."""
    import torch
    from PIL import Image
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(work / "model").eval()
    processor = BlipProcessor.from_pretrained(work / "model")
    beams = int(case.split("x")[1])

    def some(files: list[Path]) -> list[str]:
        pictures: list[Any] = [Image.open(file).convert("RGB") for file in files]
        given = processor(pictures, [PROMPT] * len(pictures), return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**given, num_beams=beams, max_new_tokens=NEW, min_new_tokens=NEW)
        texts: list[str] = processor.batch_decode(ids, skip_special_tokens=True)
        return [text[len(PROMPT) :].strip() for text in texts]

    some(list((work / "warm").glob("*.jpg")))
    with watched() as watch:
        files = _files(work)
        captions = [c for i in range(0, len(files), BATCH) for c in some(files[i : i + BATCH])]
    return _kept(work, GENERATE, captions, watch.figures)


def judge(work: Path, case: str, side: str) -> Figures:
    """How many captions are ours, letter by letter."""
    ours_, found = (json.loads((work / f"{s}.json").read_text()) for s in ("vlre", side))
    same = sum(a == b for a, b in zip(ours_, found, strict=True))
    return {"same_captions": f"{same} of {len(ours_)}", "different_texts": len(set(found))}


CACHED, GENERATE = "vlre, from the cache", f"transformers generate, {BATCH} at once"
COMPARISON = Comparison(
    prepare=prepare,
    judge=judge,
    sides={
        "vlre": Side(run=partial(ours, name="vlre", from_cache=False)),
        CACHED: Side(run=partial(ours, name=CACHED, from_cache=True)),
        "transformers pipeline": Side(run=pipeline, package="transformers"),
        GENERATE: Side(run=generate, package="transformers"),
    },
    cases=("8x1", "8x3"),
    tiny=TINY,
)
