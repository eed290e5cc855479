"""Captions per second from the cache, in batches, against one picture at a time from its pixels.

    python -m benchmarks.caption                 BLIP ViT-B/16-384 with its decoder, random weights
    python -m benchmarks.caption --tiny          for a test

One run holds both, alternating. The plain loop is what people write with transformers: open,
preprocess, `BlipForConditionalGeneration.generate` (float32, eager attention), one picture after
the other. Ours reads stored `tokens`. Every caption has the same number of tokens, so that neither
side gains by stopping early. CPU time is told beside the clock: neighbours on the machine do not count in
it. Quality beside speed: the share of captions that are word for word
those of the plain loop (float32 tokens in the store).
"""

import argparse
import io
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks import checkpoints
from benchmarks.report import emit
from retrieval_engine.caption import BeamRule, CaptionRun, DecodingOptions
from retrieval_engine.caption.source_images import of_store
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.records import Item, Modality
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import Store, StoreWriter, open_store

PROMPT = "a picture of "
LENGTH = 15  # [DEC], three tokens of prompt, eleven written: COCO's captions have ten words


def write_pictures(folder: Path, n: int) -> list[Path]:
    """JPEGs of 500x375 at quality 90, as Flickr's are, of smooth noise."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(n):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        files.append(folder / f"{i:05}.jpg")
        files[-1].write_bytes(data.getvalue())
    return files


class Watch:
    """Seconds by the clock and of CPU, from its making to `stop`."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float]:
        """Both, in seconds."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def plain_loop(
    checkpoint: Path, files: list[Path], beams: int
) -> tuple[tuple[float, float], list[str]]:
    """Seconds and captions of one picture at a time."""
    model = BlipForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = BlipImageProcessorPil.from_pretrained(checkpoint)
    tokenizer = BertTokenizer.from_pretrained(checkpoint)
    captions = []
    watch = Watch()
    for file in files:
        x = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
        prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            ids = model.generate(
                x, input_ids=prompt, num_beams=beams, max_length=LENGTH, min_length=LENGTH
            )
        captions.append(tokenizer.decode(ids[0], skip_special_tokens=True)[len(PROMPT) :].strip())
    return watch.stop(), captions


def make_store(checkpoint: Path, files: list[Path], out: Path, dtype: str, device: str) -> Store:
    """A store of the pictures' tokens, as `vlre encode --features tokens` writes it."""
    captioner = open_captioner(str(checkpoint), device=device, dtype=dtype)
    feature = captioner.features(Modality.IMAGES)["tokens"]
    spec: EncoderSpec = captioner.spec
    keys = [f"{i:064x}" for i in range(len(files))]
    features = {Modality.IMAGES: [feature], Modality.CAPTIONS: []}
    with StoreWriter.open(out, spec=spec, features=features) as writer:
        part = writer.part()
        for key, file in zip(keys, files, strict=True):
            pixels = captioner.preprocessor.pixels(decode(file.read_bytes()))
            part.add(Modality.IMAGES, [key], captioner.encode_images(pixels[None], ["tokens"]))
        items = [Item(id=file.name, uri=str(file)) for file in files]
        part.add_items("folder:bench", list(zip(items, keys, strict=True)))
        part.commit()
    return open_store(out)


def _ratio(plain: list[tuple[float, float]], ours: list[tuple[float, float]], which: int) -> float:
    """Median over the rounds of how many times the plain loop takes."""
    pairs = zip(plain, ours, strict=True)
    return round(statistics.median(a[which] / b[which] for a, b in pairs), 2)


def main() -> None:
    """Run the comparison and print one JSON line for each method and dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", default="float32,auto")
    arguments = parser.parse_args()
    n, rounds = (6, 1) if arguments.tiny else (arguments.images, arguments.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = checkpoints.blip_captioner(root / "model", tiny=arguments.tiny)
        side = 32 if arguments.tiny else 384
        BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(model)
        (root / "pictures").mkdir()
        files = write_pictures(root / "pictures", n)
        for dtype in arguments.dtypes.split(","):
            store = make_store(model, files, root / f"store-{dtype}", dtype, arguments.device)
            captioner = open_captioner(str(model), device=arguments.device, dtype=store.spec.dtype)
            for beams in (1, 3):
                options = DecodingOptions(
                    beams=beams, max_length=LENGTH, min_length=LENGTH, prompt=PROMPT
                )
                if beams > 1:
                    options = replace(options, beam_rule=BeamRule.TRANSFORMERS)
                run = CaptionRun(captioner, options, store=store)
                ours, plain, same = [], [], 0.0
                for _ in range(rounds):
                    seconds, expected = plain_loop(model, files, beams)
                    plain.append(seconds)
                    watch = Watch()
                    done = list(run(of_store(store.gallery())))
                    ours.append(watch.stop())
                    found = [c.captions[0] for part in done for c in part.captioned]
                    same = float(np.mean([a == b for a, b in zip(found, expected, strict=True)]))
                assert run.encoded == 0, "captions must come from the cache"
                emit(
                    "caption",
                    model="tiny" if arguments.tiny else "blip-vit-b16-384-random",
                    images=n,
                    rounds=rounds,
                    beams=beams,
                    new_tokens=LENGTH - 4,
                    dtype=captioner.spec.dtype,
                    device=str(captioner.device),
                    images_per_s=round(n / statistics.median(t for t, _ in ours), 3),
                    plain_images_per_s=round(n / statistics.median(t for t, _ in plain), 3),
                    cpu_ms_per_image=round(1e3 * statistics.median(c for _, c in ours) / n, 1),
                    plain_cpu_ms_per_image=round(
                        1e3 * statistics.median(c for _, c in plain) / n, 1
                    ),
                    ratio=_ratio(plain, ours, 0),
                    cpu_ratio=_ratio(plain, ours, 1),
                    same_captions=round(same, 3),
                )


if __name__ == "__main__":
    main()
