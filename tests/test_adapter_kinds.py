"""Each adapter kind of the installed peft gives peft's vectors and words, or is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2ForConditionalGeneration

from retrieval_engine import open_encoder
from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.train.merging import merge_adapters
from tests import tiny_blip2
from tests.adapter_kinds import SPEECH, TARGETS, TEXTS, outputs, reference, save_adapter

SAME = 1e-5
PROMPT = "a picture of"
# Layers of two parts of the model at once: the Q-Former's and the language model's.
EQUAL = (
    *("LORA", "ADALORA", "BOFT", "IA3", "BEFT", "LOHA", "LOKR", "OFT", "LN_TUNING", "FOURIERFT"),
    *("GLORA", "HRA", "MISS", "ROAD", "TRAINABLE_TOKENS", "HIRA", "SHIRA", "C3A", "WAVEFT", "OSF"),
    *("DELORA", "GRALORA", "PEANUT", "SUPERTUNING", "DEFT", "PSOFT"),
)
# Something serves all layers: equal where one part of the model has them all, refused elsewhere.
IN_ONE_PART = ("VERA", "FROD", "PVERA", "VBLORA", "RANDLORA", "TINYLORA")
REFUSED = ("LILY", "POLY", "UNILORA")
# They change no layer, or peft has no such thing for BLIP-2; AdaMSS needs another package to be made.
NO_LAYERS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"),
    *("XLORA", "CPT", "CARTRIDGE", "SHADOW", "ADAMSS"),
)


def test_every_kind_that_peft_has_is_tested_here() -> None:
    tested = {*EQUAL, *IN_ONE_PART, *REFUSED, *NO_LAYERS}
    assert {kind.value for kind in PeftType} == tested


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip2.save_blip2_opt(tmp_path_factory.mktemp("kinds") / "base")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(base: Path, tokens: Tensor) -> dict[str, Tensor]:
    model = Blip2ForConditionalGeneration.from_pretrained(base)
    return outputs(model, base, tokens, PROMPT)


@torch.inference_mode()
def ours(model: Path, tokens: Tensor, **how: Any) -> dict[str, Tensor]:
    how = {"device": "cpu", "dtype": "float32"} | how
    encoder: Any = open_encoder(str(model), **how)
    captioner = open_captioner(str(model), **how)
    return {
        "image": encoder.of_vision_states(tokens, ["pooled"])["pooled"],
        "text": torch.from_numpy(encoder.encode_texts(TEXTS, ["pooled"])["pooled"]),
        "words": captioner.begin(tokens, PROMPT)[0],
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=SAME, rtol=0)


@pytest.mark.filterwarnings("ignore")  # peft's own, while the reference is made
@pytest.mark.parametrize(
    "kind", [*EQUAL[:10], *(pytest.param(kind, marks=pytest.mark.whole) for kind in EQUAL[10:])]
)
def test_a_kind_gives_what_peft_gives(
    tmp_path: Path, base: Path, tokens: Tensor, plain: dict[str, Tensor], kind: str
) -> None:
    save_adapter(kind, base, tmp_path, TARGETS)
    expected = reference(base, tmp_path, tokens, PROMPT)
    assert_equal(ours(tmp_path, tokens), expected)
    assert all((expected[k] - plain[k]).abs().max() > 0.05 for k in ("text", "words")), "changes"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", IN_ONE_PART)
def test_what_layers_share_is_equal_in_one_part_and_refused_in_several(
    tmp_path: Path, base: Path, tokens: Tensor, plain: dict[str, Tensor], kind: str
) -> None:
    save_adapter(kind, base, tmp_path / "one", SPEECH)
    expected = reference(base, tmp_path / "one", tokens, PROMPT)
    assert_equal(ours(tmp_path / "one", tokens), expected)
    assert (expected["words"] - plain["words"]).abs().max() > 0.05
    if kind == "FROD":
        return  # takes layers of one width only
    save_adapter(kind, base, tmp_path / "two", TARGETS)
    with pytest.raises(CheckpointInvalid, match=rf"{kind}\): its tensor base_model\.\S+ serves"):
        ours(tmp_path / "two", tokens)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_cannot_be_merged_is_refused_by_name(
    tmp_path: Path, base: Path, tokens: Tensor, kind: str
) -> None:
    save_adapter(kind, base, tmp_path, SPEECH)
    with pytest.raises(CheckpointInvalid, match=rf"\({kind}\)") as caught:
        ours(tmp_path, tokens)
    assert "merge" in caught.value.hint


@pytest.mark.parametrize("kind", NO_LAYERS)
def test_a_kind_without_layers_is_refused_by_name(
    tmp_path: Path, base: Path, tokens: Tensor, kind: str
) -> None:
    config = {"peft_type": kind, "base_model_name_or_path": str(base)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    name = "prompt_embeddings"
    if kind in ("XLORA", "SHADOW", "ADAMSS", "ADAPTION_PROMPT"):
        name = "base_model.model.language_model.model.decoder.layers.0.self_attn.q_proj.x"
    save_file({name: torch.ones(2, 20)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointInvalid, match=rf"\({kind}\)"):
        ours(tmp_path, tokens)


@pytest.mark.filterwarnings("ignore")
def test_prompts_as_peft_writes_them_are_refused_with_the_tensor_s_name(
    tmp_path: Path, base: Path
) -> None:
    language: Any = Blip2ForConditionalGeneration.from_pretrained(base).language_model
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(language, config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointInvalid, match=r"PROMPT_TUNING.*prompt_embeddings belongs to no"):
        open_captioner(str(base), adapter=tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LOHA", "IA3", "OFT", "VERA"])
def test_a_merged_checkpoint_is_equal_too(
    tmp_path: Path, base: Path, tokens: Tensor, kind: str
) -> None:
    save_adapter(kind, base, tmp_path / "adapter", SPEECH)
    merged = merge_adapters([tmp_path / "adapter"], tmp_path / "merged")
    assert_equal(ours(merged, tokens), reference(base, tmp_path / "adapter", tokens, PROMPT))
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}


LAYOUTS: dict[str, dict[str, Any]] = {
    "parts trained whole": {"modules_to_save": ["language_projection", "qformer"]},
    "all biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "tied embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "new words": {"trainable_token_indices": {"embed_tokens": [5, 6]}},
    "ranks of its own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"value": 32}},
    "a regular expression": {"target_modules": r".*(layers\.1.*v_proj|layer\.0.*attention\.query)"},
    "the first layer": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "pissa": {"init_lora_weights": "pissa"},
    "dora": {"use_dora": True},
    "with a bias": {"lora_bias": True},
}


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_lora_gives_what_peft_gives(
    tmp_path: Path, base: Path, tokens: Tensor, plain: dict[str, Tensor], layout: str
) -> None:
    save_adapter("LORA", base, tmp_path, TARGETS, r=4, **LAYOUTS[layout])
    expected = reference(base, tmp_path, tokens, PROMPT)
    assert_equal(ours(tmp_path, tokens), expected)
    assert (expected["words"] - plain["words"]).abs().max() > 0.01
    fingerprint = open_captioner(str(tmp_path)).spec.fingerprint
    assert fingerprint != open_captioner(str(base)).spec.fingerprint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_come_off_and_a_pickled_file_is_the_same(
    tmp_path: Path, base: Path, tokens: Tensor, wrapper: str
) -> None:
    save_adapter("LORA", base, tmp_path / "a", TARGETS)
    expected = reference(base, tmp_path / "a", tokens, PROMPT)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / "adapter_model.safetensors"
    mark = "base_model.model."
    tensors = {k.replace(mark, mark + wrapper, 1): v for k, v in load_file(file).items()}
    torch.save(tensors, file.with_suffix(".bin"))
    file.unlink()
    assert_equal(ours(tmp_path / "b", tokens), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_a_home_or_a_layer_without_a_tensor_is_named(
    tmp_path: Path, base: Path, tokens: Tensor
) -> None:
    save_adapter("LORA", base, tmp_path, SPEECH)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    save_file({k.replace("language_model", "speech"): v for k, v in tensors.items()}, file)
    with pytest.raises(
        CheckpointInvalid, match=r"tensor base_model\.model\.speech\S+ belongs to no"
    ):
        open_encoder(str(tmp_path))
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    with pytest.raises(CheckpointInvalid, match=rf"lacks 1 of its own tensors, e.g. {name}"):
        ours(tmp_path, tokens)
    save_file({**tensors, name: tensors[name][:, :2].contiguous()}, file)
    with pytest.raises(CheckpointInvalid, match="size mismatch for"):
        ours(tmp_path, tokens)


@pytest.mark.filterwarnings("ignore")
def test_one_of_two_tied_tensors_is_not_merged_into_a_checkpoint(
    tmp_path: Path, base: Path
) -> None:
    save_adapter("LORA", base, tmp_path / "a", ["embed_tokens"])
    with pytest.raises(
        CheckpointInvalid, match=r"embed_tokens.weight, which the base keeps in one"
    ):
        merge_adapters([tmp_path / "a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_half_precision_model_is_merged_in_float32(
    tmp_path: Path, base: Path, tokens: Tensor
) -> None:
    save_adapter("LORA", base, tmp_path / "a", SPEECH, r=2, lora_alpha=1)
    half: Any = open_captioner(str(tmp_path / "a"), device="cpu", dtype="bfloat16")
    whole: Any = open_captioner(str(tmp_path / "a"), device="cpu", dtype="float32")
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    rounded = whole.speaking.language_model.get_parameter(name).bfloat16()
    assert torch.equal(half.speaking.language_model.get_parameter(name), rounded)
