"""Checkpoints of any size: a random model in the authors' names comes back bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForImageTextRetrieval,
)

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.blip import translation as blip
from retrieval_engine.models.blip2 import translation as blip2
from retrieval_engine.models.import_checkpoint import import_checkpoint
from retrieval_engine.models.import_names import rename_back
from retrieval_engine.models.import_shapes import interpolate
from tests.authors_files import Tensors, saved

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklm"]


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    heads, text_heads = draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 2, 4]))
    patch = draw(st.sampled_from([2, 4, 7]))
    return {
        "vision": {
            "hidden_size": heads * draw(st.sampled_from([4, 8, 11])),
            "num_attention_heads": heads,
            "num_hidden_layers": draw(st.integers(1, 12)),
            "intermediate_size": draw(st.integers(5, 40)),
            "patch_size": patch,
            "image_size": patch * draw(st.integers(1, 5)),
            "qkv_bias": draw(st.booleans()),
        },
        "text": {
            "hidden_size": text_heads * draw(st.sampled_from([4, 8, 12])),
            "num_attention_heads": text_heads,
            "num_hidden_layers": draw(st.integers(1, 11)),
            "intermediate_size": draw(st.integers(5, 40)),
            "max_position_embeddings": draw(st.integers(8, 64)),
            "cross_attention_frequency": draw(st.integers(1, 4)),
        },
        "embed_dim": draw(st.integers(2, 20)),
        "queries": draw(st.integers(1, 33)),
        "eps": draw(st.sampled_from([1e-6, 1e-5])),
    }


def as_config(size: dict[str, Any], file: Path) -> Path:
    text = {"num_attention_heads": size["text"]["num_attention_heads"], "hidden_act": "gelu"}
    vit = {"num_heads": size["vision"]["num_attention_heads"], "layer_norm_eps": size["eps"]}
    file.write_text(json.dumps({"vit": vit, "qformer": text, "embed_dim": size["embed_dim"]}))
    return file


def come_back(tmp_path: Path, size: dict[str, Any], theirs: Tensors, ours: Tensors) -> Any:
    (vocab := tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    config = as_config(size, tmp_path / "config.json")
    import_checkpoint(saved(theirs, tmp_path / "x.pth"), out, config=config, vocab=vocab)
    found = load_file(out / "model.safetensors")
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name]) for name in ours)
    return json.loads((out / "config.json").read_text())


def randomised(model: torch.nn.Module) -> Tensors:
    return {name: torch.randn(t.shape) for name, t in model.state_dict().items()}


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(size=sizes())
def test_blip_of_any_size(tmp_path: Path, size: dict[str, Any]) -> None:
    text = {k: v for k, v in size["text"].items() if k != "cross_attention_frequency"}
    vision = {k: v for k, v in size["vision"].items() if k != "qkv_bias"}
    text |= {"vocab_size": len(WORDS) + 2, "bos_token_id": None}
    config = BlipConfig(
        vision_config=vision, text_config=text, image_text_hidden_size=size["embed_dim"]
    )
    ours = randomised(BlipForImageTextRetrieval(config))
    theirs = {rename_back(name, blip._NAMES): tensor for name, tensor in ours.items()}
    written = come_back(tmp_path, size, theirs, ours)
    for section, values in (("vision_config", vision), ("text_config", text)):
        same = {k: v for k, v in values.items() if k != "bos_token_id"}
        assert same.items() <= written[section].items()
    assert written["vision_config"]["layer_norm_eps"] == size["eps"]
    assert written["image_text_hidden_size"] == size["embed_dim"]


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(size=sizes())
def test_blip2_of_any_size(tmp_path: Path, size: dict[str, Any]) -> None:
    text = {**size["text"], "vocab_size": len(WORDS) + 1, "use_qformer_text_input": True}
    config = Blip2Config(
        vision_config=size["vision"],
        qformer_config=text,
        num_query_tokens=size["queries"],
        image_text_hidden_size=size["embed_dim"],
    )
    ours = randomised(Blip2ForImageTextRetrieval(config))
    theirs: Tensors = {}
    for name, tensor in ours.items():
        if name.endswith("self_attn.qkv.bias"):
            query, key, value = tensor.chunk(3)
            key.zero_()
            block = rename_back(name, blip2._NAMES).removesuffix("qkv.bias")
            theirs |= {f"{block}q_bias": query.clone(), f"{block}v_bias": value.clone()}
        else:
            theirs[rename_back(name, blip2._NAMES)] = tensor
    theirs["Qformer.cls.predictions.bias"] = torch.ones(len(WORDS) + 1)
    written = come_back(tmp_path, size, theirs, ours)
    assert size["vision"].items() <= written["vision_config"].items()
    frequency, depth = text.pop("cross_attention_frequency"), text["num_hidden_layers"]
    assert text.items() <= written["qformer_config"].items()
    found = written["qformer_config"]["cross_attention_frequency"]
    assert list(range(0, depth, found)) == list(range(0, depth, frequency))
    assert written["num_query_tokens"] == size["queries"]


@given(st.integers(1, 6), st.integers(1, 6))
def test_interpolation_keeps_the_class_token_and_constants(old: int, new: int) -> None:
    positions = torch.randn(1, 1 + old * old, 3)
    found = interpolate(positions, new)
    assert found.shape == (1, 1 + new * new, 3)
    assert torch.equal(found[:, 0], positions[:, 0])
    same = interpolate(torch.full_like(positions, 2.5), new)
    torch.testing.assert_close(same, torch.full_like(same, 2.5))
    assert interpolate(positions, old) is positions


def test_half_precision_weights_stay_as_they_are(tmp_path: Path) -> None:
    """LAVIS saves its vision tower in float16: the file's numbers, not new ones."""
    size = {"vision": {"num_attention_heads": 2}, "text": {"num_attention_heads": 2}}
    size |= {"eps": 1e-6, "embed_dim": 4}  # type: ignore[dict-item]
    vision = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "patch_size": 4,
        "image_size": 8,
    }
    text = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "vocab_size": len(WORDS) + 2,
        "bos_token_id": None,
    }
    config = BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=4)
    ours = {
        name: tensor.half()
        for name, tensor in randomised(BlipForImageTextRetrieval(config)).items()
    }
    theirs = {rename_back(name, blip._NAMES): tensor for name, tensor in ours.items()}
    come_back(tmp_path, size, theirs, ours)
    model = BlipForImageTextRetrieval.from_pretrained(next(tmp_path.glob("out-*")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.itm_head.weight, ours["itm_head.weight"].float())


@pytest.mark.parametrize("patches", [2, 3, 10])
def test_positions_that_make_no_square_are_refused(patches: int) -> None:
    with pytest.raises(CheckpointInvalid, match=f"for {patches} patches: not a square"):
        interpolate(torch.ones(1, 1 + patches, 2), 4)
