"""Trims golden outputs of the authors' own code into the folders `blip` and `blip2` here.

    python tests/golden/trim.py BLIP_FOLDER BLIP2_FOLDER

The folders hold what salesforce/BLIP @ 056a169 (transformers 4.15.0) and LAVIS @ 506965b
(transformers 4.33.2) make of tiny random checkpoints on 12 pictures with 20 captions, in float32:
the checkpoints as their code saves them, the pictures, `expected.npz` and `expected.json`. What is
left out: momentum copies but those of the projections.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
TEXTS = ("raw_captions", "text", "prompt", "lm_captions", "generation", "recall")


def main(blip: Path, blip2: Path) -> None:
    shutil.rmtree(HERE / "images", ignore_errors=True)
    (HERE / "images").mkdir()
    for image in (blip / "images").iterdir():  # the same in both folders
        shutil.copyfile(image, HERE / "images" / image.name)
    shutil.copyfile(blip / "vocab.txt", HERE / "vocab.txt")
    for source, name in ((blip, "blip"), (blip2, "blip2")):
        out = HERE / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        shutil.copyfile(source / "config.json", out / "config.json")
        expected = json.loads((source / "expected.json").read_text())
        kept = {key: expected[key] for key in TEXTS if key in expected}
        (out / "expected.json").write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n")
        with np.load(source / "expected.npz") as arrays:
            np.savez_compressed(out / "arrays.npz", **arrays)
        for file in source.glob("*.pth"):
            tensors = torch.load(file)["model"]
            online = {k: v for k, v in tensors.items() if "_m." not in k or "_proj_m." in k}
            torch.save({"model": online}, out / file.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
