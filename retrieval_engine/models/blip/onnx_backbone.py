"""The backbone through ONNX Runtime, which runs depthwise convolutions several times as fast.

The graph is written down from the torch module, convolution by convolution: no exporter, and no
file. Its states equal torch's to 1e-4 (a test compares), so that the fingerprint is the same; in
int8 (`int8_backbone`) it is another.
"""

import importlib.util
import os
import threading
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrieval_engine.models.blip.backbone import Block, Convolution, EfficientNetLite
from retrieval_engine.models.blip.int8_backbone import Ranges, quantised

_OPSET, _IR = 13, 8
_OPENING = threading.Lock()
_BATCH = 8  # fits the caches: 60 images a second on two cores, where 32 at once gives 40


def is_installed() -> bool:
    """Whether both packages are here: `onnx` writes the graph, `onnxruntime` runs it."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


class OnnxBackbone(nn.Module):
    """An `EfficientNetLite` on the CPU in float32; it has no parameters of its own.

    Args:
        backbone: with the weights; they are copied.
        ranges: of its tensors, to compute in int8; None for float32.

    Attributes:
        channels: of its states.
    """

    def __init__(self, backbone: EfficientNetLite, ranges: Ranges | None = None) -> None:
        super().__init__()
        self.channels = backbone.channels
        self._exported = (backbone,)  # in a tuple: it is no part of the model
        # By threads; stored states need none.
        self._sessions = cache(lambda threads: _open(backbone, ranges, threads))

    def forward(self, pixels: Tensor) -> Tensor:
        """As `EfficientNetLite.forward`."""
        if torch.compiler.is_exporting():
            found: Tensor = self._exported[0](pixels)
            return found
        given = np.ascontiguousarray(pixels.float().numpy())
        parts = [given[start : start + _BATCH] for start in range(0, len(given), _BATCH)]
        with _OPENING:
            session = self._sessions(torch.get_num_threads())
        states = [session.run(None, {"pixels": part})[0] for part in parts]
        return torch.from_numpy(np.concatenate(states)).flatten(2).transpose(1, 2)


def _open(backbone: EfficientNetLite, ranges: Ranges | None, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(threads, os.cpu_count() or 1)
    options.log_severity_level = 3
    # Threads that wait for more work by spinning take the cores from torch's, whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    written = quantised(graph(backbone), ranges) if ranges else graph(backbone)
    return onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])


def graph(backbone: EfficientNetLite) -> bytes:
    """The backbone as a serialised ONNX model: `pixels` (n, 3, h, w) -> (n, channels, h', w')."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"zero": np.float32(0), "six": np.float32(6)}
    inits = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    nodes = []

    def convolve(layer: Convolution, given: str, name: str, *, clip: bool = True) -> str:
        assert layer.bias is not None
        for tensor, end in ((layer.weight, "weight"), (layer.bias, "bias")):
            array = tensor.detach().float().cpu().numpy()
            inits.append(numpy_helper.from_array(array, f"{name}.{end}"))
        nodes.append(
            helper.make_node(
                "Conv",
                [given, f"{name}.weight", f"{name}.bias"],
                [name],
                auto_pad="SAME_UPPER",
                kernel_shape=list(layer.kernel_size),
                strides=list(layer.stride),
                group=layer.groups,
            )
        )
        if not clip:
            return name
        nodes.append(helper.make_node("Clip", [name, "zero", "six"], [f"{name}.clipped"]))
        return f"{name}.clipped"

    joined = []
    states = convolve(backbone.stem, "pixels", "stem")
    for number, block in enumerate(backbone.blocks):
        assert isinstance(block, Block)
        at = f"blocks.{number}"
        wide = convolve(block.expand, states, f"{at}.expand") if block.expand else states
        deep = convolve(block.depthwise, wide, f"{at}.depthwise")
        narrow = convolve(block.project, deep, f"{at}.project", clip=False)
        if block.residual:
            nodes.append(helper.make_node("Add", [narrow, states], [f"{at}.sum"]))
            narrow = f"{at}.sum"
        states = narrow
        if finer := backbone.joined.get(number):
            joined.append(f"{at}.joined")
            pooled = {"kernel_shape": [finer] * 2, "strides": [finer] * 2, "ceil_mode": 1}
            nodes.append(helper.make_node("AveragePool", [states], joined[-1:], **pooled))
    head = convolve(backbone.head, states, "head")
    nodes.append(helper.make_node("Concat", [head, *joined], ["states"], axis=1))
    sides = {"pixels": ["n", 3, "h", "w"], "states": ["n", backbone.channels, "y", "x"]}
    ends = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in sides.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "backbone", ends[:1], ends[1:], inits),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
    )
    serialised: bytes = model.SerializeToString()
    return serialised
