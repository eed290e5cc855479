"""The backbone in int8 through ONNX Runtime: three times as fast on a CPU with VNNI.

Convolutions have a scale for each channel of their weights and one for each of their inputs. The
scale of an input follows from its range over photographs, which is known beforehand for the
published weights (static quantisation; Jacob et al., CVPR 2018): nothing is calibrated, and a
picture's numbers do not depend on its neighbours. The first blocks stay in float32: their rounding is
felt by all that follow.

Trap: without VNNI sums of 8-bit products overflow, and weights of 7 bits cost too much (cosine .986
at worst, .995 with 8): such CPUs are refused.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from retrieval_engine.durable import replace_file
from retrieval_engine.errors import StoreError
from retrieval_engine.machine import cache_folder, version_of
from retrieval_engine.models.blip.backbone import EfficientNetLite

Ranges = Mapping[str, tuple[float, float]]
_FILE = Path(__file__).with_name("backbone_ranges.json")
_EXACT_BLOCKS = 2
_QUANTISED = ["Conv", "Clip"]
_CLIPPED = (0.0, 6.0)  # what every activation is
_DIGEST = 32  # bytes of sha256 before what is kept


def known_ranges(backbone: EfficientNetLite) -> Ranges | None:
    """Ranges of the tensors in `onnx_backbone.graph` that no activation clips, by name.

    None for weights not known. The file is what `python -m benchmarks.int8_ranges` prints.
    """
    found: Ranges | None = _known().get(weights_digest(backbone))
    return found


@cache
def _known() -> dict[str, Ranges]:
    told: dict[str, Ranges] = json.loads(_FILE.read_text())
    return told


def weights_digest(backbone: EfficientNetLite) -> str:
    """Of the weights in half precision, which is what checkpoints keep."""
    value = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        value.update(name.encode())
        value.update(tensor.half().cpu().numpy().tobytes())
    return value.hexdigest()[:16]


def quantised(graph: bytes, ranges: Ranges) -> bytes:
    """The graph with its convolutions in int8, as ONNX Runtime's own tool writes it.

    Writing takes the tool more than a second, so that what it wrote is kept in the user's cache.
    """
    how = repr(
        (sorted(ranges.items()), _EXACT_BLOCKS, _QUANTISED, _CLIPPED, version_of("onnxruntime"))
    )
    name = hashlib.sha256(graph + how.encode()).hexdigest()[:32]
    place = cache_folder() / "graphs" / f"{name}.onnx"
    with suppress(OSError):
        kept = place.read_bytes()
        if hashlib.sha256(kept[_DIGEST:]).digest() == kept[:_DIGEST]:
            return kept[_DIGEST:]
    made = _quantised(graph, ranges)
    with suppress(OSError, StoreError):
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, hashlib.sha256(made).digest() + made)
    return made


def _quantised(graph: bytes, ranges: Ranges) -> bytes:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        node.name = node.output[0]
    exact = ("stem", *(f"blocks.{number}." for number in range(_EXACT_BLOCKS)))
    ends = [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type == "Clip"]
    clipped = {name: _CLIPPED for both in ends for name in both}
    found = {n: (np.float32(a), np.float32(b)) for n, (a, b) in {**ranges, **clipped}.items()}
    quantiser = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, found),
        nodes_to_quantize=[],
        nodes_to_exclude=[n.name for n in model.graph.node if n.name.startswith(exact)],
        op_types_to_quantize=_QUANTISED,
        extra_options={},
    )
    quantiser.quantize_model()
    serialised: bytes = quantiser.model.model.SerializeToString()
    return serialised
