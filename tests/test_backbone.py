"""The convolutional backbone: against the package that published it, and folded by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.blip.backbone import (
    BATCH_NORM_EPSILON,
    SCALES,
    EfficientNetLite,
    folded,
    same_padding,
)
from retrieval_engine.models.blip.hybrid_tower import new_backbone
from retrieval_engine.models.blip.onnx_backbone import OnnxBackbone, is_installed
from retrieval_engine.models.checkpoint import shipped
from retrieval_engine.models.preprocess import SquashToSquare
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode

GOLDEN = Path(__file__).parent / "golden" / "backbone" / "states.npz"
PREFIX = "vision_model.backbone."


@pytest.fixture(scope="module")
def backbone() -> EfficientNetLite:
    """The one that ships in `vlre-photo`, in float32."""
    tensors = load_file(shipped()["vlre-photo"] / "model.safetensors")
    own = {
        name.removeprefix(PREFIX): t.float()
        for name, t in tensors.items()
        if name.startswith(PREFIX)
    }
    model = EfficientNetLite("efficientnet-lite2").eval()
    model.load_state_dict(own)
    return model


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    """(3, 3, 260, 260) pixels as `golden/backbone/make.py` draws them."""
    look = SquashToSquare(image_size=260)
    items = open_source("scenes:3?seed=77").items()
    pixels = np.stack([look.pixels(decode(read_bytes(item.uri))) for item in items])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128


def test_states_are_those_of_the_published_package(
    backbone: EfficientNetLite, scenes: torch.Tensor
) -> None:
    with torch.inference_mode():
        states = backbone(scenes)
    assert states.shape == (3, 81, 1280)
    expected = np.load(GOLDEN)["states"]
    assert float(np.abs(expected).max()) > 1
    np.testing.assert_allclose(states[..., ::8].numpy(), expected, atol=1e-4)


@pytest.mark.skipif(not is_installed(), reason="onnx or onnxruntime is not installed")
def test_onnx_runtime_gives_the_same_states(
    backbone: EfficientNetLite, scenes: torch.Tensor
) -> None:
    with torch.inference_mode():
        expected, states = backbone(scenes), OnnxBackbone(backbone)(scenes)
    np.testing.assert_allclose(states.numpy(), expected.numpy(), atol=1e-4)


def test_earlier_stages_join_the_last_states_on_its_grid(
    backbone: EfficientNetLite, scenes: torch.Tensor
) -> None:
    model = EfficientNetLite("efficientnet-lite2", (2, 4, 6)).eval()
    model.load_state_dict(backbone.state_dict())
    assert (model.channels, model.joined) == (1280 + 48 + 120 + 352, {6: 4, 14: 2, 20: 1})
    seen = {}
    for number in model.joined:
        model.blocks[number].register_forward_hook(
            lambda _, __, out, number=number: seen.update({number: out})
        )
    with torch.inference_mode():
        states, last = model(scenes), backbone(scenes)
    torch.testing.assert_close(states[..., :1280], last)
    grid = states.transpose(1, 2).unflatten(2, (9, 9))
    # A place is the mean of the finer ones that lie in it, fewer at the right and lower edge.
    assert [out.shape[-1] for out in seen.values()] == [33, 17, 9]
    fine, middle = seen.values(), slice(1280, 1280 + 48)
    first, second, third = fine
    torch.testing.assert_close(grid[:, middle, 2, 3], first[..., 8:12, 12:16].mean((2, 3)))
    torch.testing.assert_close(grid[:, middle, 8, 8], first[..., 32, 32])
    torch.testing.assert_close(grid[:, 1328:1448, 8, 1], second[..., 16, 2:4].mean(2))
    torch.testing.assert_close(grid[:, 1448:], third)
    if is_installed():
        with torch.inference_mode():
            through_onnx = OnnxBackbone(model)(scenes)
        np.testing.assert_allclose(through_onnx.numpy(), states.numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("name", "blocks", "places"),
    [("efficientnet-lite0", 16, 49), ("efficientnet-lite1", 21, 64)],
)
def test_smaller_members_of_the_family(name: str, blocks: int, places: int) -> None:
    model = EfficientNetLite(name).eval()
    size = SCALES[name].image_size
    with torch.inference_mode():
        states = model(torch.zeros(1, 3, size, size))
    assert len(model.blocks) == blocks
    assert states.shape == (1, places, 1280)


def test_batch_norm_is_folded_into_the_convolution() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32, BATCH_NORM_EPSILON)
    norm.running_mean, norm.running_var = torch.randn(32), torch.rand(32) + 0.5
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    published = {"_conv_stem.weight": convolution.weight.detach()}
    published |= {f"_bn0.{k}": v for k, v in norm.state_dict().items()}
    published |= {"_conv_head.weight": torch.ones(1, 1, 1, 1)}
    published |= {f"_bn1.{k}": torch.ones(1) for k in ("weight", "bias")}
    published |= {f"_bn1.{k}": torch.ones(1) for k in ("running_mean", "running_var")}
    weights = folded(published)
    pixels = torch.randn(2, 3, 9, 9)
    expected = norm.eval()(convolution(pixels))
    found = nn.functional.conv2d(pixels, weights["stem.weight"], weights["stem.bias"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(260, 3, 2, (0, 1)), (65, 5, 2, (2, 2)), (9, 3, 1, (1, 1)), (224, 3, 2, (0, 1))],
)
def test_padding_is_tensorflows(
    size: int, kernel: int, stride: int, padding: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride) == padding


@pytest.mark.parametrize("stages", [5, "456", [6, 4], [4, 4], [7], [[4]], {"4": 1}])
def test_stages_that_a_config_cannot_mean_are_refused(stages: object) -> None:
    asked = {"backbone": {"name": "efficientnet-lite0", "stages": stages}}
    with pytest.raises(CheckpointInvalid, match=r"backbone\.stages in vision_config is"):
        new_backbone(asked)
    assert new_backbone({"backbone": {"name": "efficientnet-lite0"}}).channels == 1280
