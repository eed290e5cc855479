"""Images per second of `vlre encode` against the loop people write with transformers.

    python -m benchmarks.encode                 BLIP ViT-B/16-384, random weights, 500x375 JPEG
    python -m benchmarks.encode --tiny          for a test

One run holds both, alternating. The plain loop opens, preprocesses and encodes one picture at a
time with `BlipForImageTextRetrieval` as the documentation shows it (float32, eager attention).
Quality beside speed: the smallest cosine between our vectors and the plain loop's.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BlipForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks import checkpoints
from benchmarks.report import emit
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.models import open_encoder
from retrieval_engine.models.lanes import lanes_of
from retrieval_engine.store import open_store


def write_pictures(folder: Path, n: int) -> None:
    """JPEGs of 500x375 at quality 90, as Flickr's are, of smooth noise."""
    rng = np.random.default_rng(0)
    for i in range(n):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        (folder / f"{i:05}.jpg").write_bytes(data.getvalue())


def plain_loop(checkpoint: Path, folder: Path) -> tuple[float, np.ndarray]:
    """Images per second and vectors of one picture at a time."""
    model = BlipForImageTextRetrieval.from_pretrained(checkpoint).eval()
    processor = BlipImageProcessorPil.from_pretrained(checkpoint)
    files = sorted(folder.glob("*.jpg"))
    vectors = []
    start = time.perf_counter()
    for file in files:
        x = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            state = model.vision_model(x).last_hidden_state[:, 0]
            vectors.append(torch.nn.functional.normalize(model.vision_proj(state), dim=-1).numpy())
    return len(files) / (time.perf_counter() - start), np.concatenate(vectors)


def main() -> None:
    """Run the comparison and print one JSON line for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    n, rounds = (6, 1) if arguments.tiny else (arguments.images, arguments.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = checkpoints.blip(root / "model", tiny=arguments.tiny)
        side = 32 if arguments.tiny else 384
        BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(model)
        (root / "pictures").mkdir()
        write_pictures(root / "pictures", n)
        for dtype in ("float32", "auto", "int8")[: 2 if arguments.device.startswith("cuda") else 3]:
            encoder = open_encoder(str(model), device=arguments.device, dtype=dtype)
            ours, plain, share, cosine = [], [], [], []
            for number in range(rounds):
                speed, expected = plain_loop(model, root / "pictures")
                plain.append(speed)
                store = root / f"store-{dtype}-{number}"
                report = encode(
                    f"folder:{root / 'pictures'}",
                    store,
                    encoder=encoder,
                    options=EncodeOptions(features=("itc",), store_dtype="float32"),
                )
                ours.append(n / report.seconds)
                lane_seconds = report.model_seconds / lanes_of(encoder)
                share.append(lane_seconds / report.seconds)
                found = open_store(store).gallery().images("itc")[:, 0]
                cosine.append(float((found * expected).sum(-1).min()))
            emit(
                "encode",
                model="tiny" if arguments.tiny else "blip-vit-b16-384-random",
                images=n,
                rounds=rounds,
                dtype=encoder.spec.dtype,
                images_per_s=round(statistics.median(ours), 3),
                plain_images_per_s=round(statistics.median(plain), 3),
                ratio=round(statistics.median(a / b for a, b in zip(ours, plain, strict=True)), 2),
                model_share_of_time=round(statistics.median(share), 3),
                smallest_cosine=round(min(cosine), 6),
            )


if __name__ == "__main__":
    main()
