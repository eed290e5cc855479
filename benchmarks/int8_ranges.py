"""Ranges of a backbone's tensors over photographs, for `models/blip/backbone_ranges.json`.

    python -m benchmarks.int8_ranges --source "flickr8k:DIR?split=train" > ranges.json
    python -m benchmarks.int8_ranges --tiny    drawn scenes, for a test

Each weights' digest with what its convolutions give where no activation clips it: `vlre encode
--dtype int8` takes its scales from there.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.models import open_encoder
from retrieval_engine.models.blip.int8_backbone import weights_digest
from retrieval_engine.models.blip.onnx_backbone import graph
from retrieval_engine.models.device import normalized_pixels
from retrieval_engine.sources import open_source, read_item
from retrieval_engine.sources.decode import decode

_AT_ONCE = 16
_PICTURES = 256


def measured_ranges(
    graph: bytes, batches: Iterable[NDArray[np.float32]]
) -> dict[str, tuple[float, float]]:
    """Least and largest value, over some pictures, of every tensor that is quantised.

    Args:
        graph: of the backbone.
        batches: (n, 3, s, s) normalised pixels.
    """
    import onnx
    import onnxruntime

    model = onnx.load_from_string(graph)
    clipped = {node.input[0] for node in model.graph.node if node.op_type == "Clip"}
    kinds = ("Conv", "Add")
    given = [node.output[0] for node in model.graph.node if node.op_type in kinds]
    names = [name for name in given if name not in clipped]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ends = dict.fromkeys(names, (np.inf, -np.inf))
    for pixels in batches:
        for name, array in zip(names, session.run(names, {"pixels": pixels}), strict=True):
            low, high = ends[name]
            ends[name] = min(low, float(array.min())), max(high, float(array.max()))
    found = {
        name: (float(f"{low:.4g}"), float(f"{high:.4g}")) for name, (low, high) in ends.items()
    }
    return found | {"pixels": (-1.0, 1.0)}


def main() -> None:
    """Print the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", default="vlre-photo")
    parser.add_argument("--source", default="scenes:256?seed=1")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    given = parser.parse_args()
    encoder: Any = open_encoder(given.model, device="cpu", dtype="float32")
    look = encoder.preprocessor
    backbone = encoder.model.vision_model.backbone._exported[0]
    items = sorted(open_source(given.source).items(), key=lambda item: item.id)
    wanted = 4 if given.tiny else _PICTURES
    spread = items[:: max(1, len(items) // wanted)][:wanted]
    pixels = (look.pixels(decode(read_item(item))) for item in spread)
    batches = (
        normalized_pixels(np.stack(some), look, encoder.device).numpy()
        for some in iter(lambda: list(islice(pixels, _AT_ONCE)), [])
    )
    ranges = measured_ranges(graph(backbone), batches)
    print(json.dumps({weights_digest(backbone): ranges}, indent=1))


if __name__ == "__main__":
    main()
