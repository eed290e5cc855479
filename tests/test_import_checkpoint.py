"""Importing the authors' own files: what is recognised, refused, dropped and written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
)

from retrieval_engine.cli import main
from retrieval_engine.errors import UsageError
from retrieval_engine.models.blip import translation as blip
from retrieval_engine.models.blip2 import translation as blip2
from retrieval_engine.models.import_checkpoint import import_checkpoint
from retrieval_engine.models.import_names import rename, rename_back
from retrieval_engine.models.import_settings import Settings
from tests.authors_files import (
    BLIP2_CONFIG,
    BLIP_CONFIG,
    Tensors,
    bring_in,
    refused,
    saved,
    tensors_of,
)
from tests.golden import CHECKPOINTS, GOLDEN, VOCAB, import_golden

# --- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        ("blip/retrieval", "blip-retrieval", BlipForImageTextRetrieval),
        ("blip/caption", "blip-captioning", BlipForConditionalGeneration),
        ("blip2", "blip2-qformer", Blip2ForImageTextRetrieval),
    ],
)
def test_each_kind_loads_in_transformers_with_nothing_missing(
    tmp_path: Path, name: str, kind: str, model: Any
) -> None:
    out = import_golden(name, tmp_path / "out")
    loaded, report = model.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert loaded.config.architectures == [model.__name__]
    record = json.loads((out / "vlre-import.json").read_text())
    assert record["kind"] == kind
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vlre-import.json",
        "vlre_checksums.json",
    ]


def test_the_record_says_what_was_dropped_and_why(tmp_path: Path) -> None:
    report = import_checkpoint(
        CHECKPOINTS["blip/retrieval"], tmp_path / "out", config=BLIP_CONFIG, vocab=VOCAB
    )
    assert {rule: len(names) for rule, names in report.dropped.items()} == {
        "temperature": 1,
        "queues": 4,
        "position_ids": 1,
        "momentum copies": 4,
    }
    assert report.temperature == pytest.approx(0.053)
    assert (report.image_size, report.stored_image_size, report.vocabulary_size) == (64, 64, 2002)
    assert report.heads == {"vision": 3, "text": 4}


def test_pretraining_gives_one_directory_for_both_classes(tmp_path: Path) -> None:
    retrieval, caption = tensors_of("blip/retrieval"), tensors_of("blip/caption")
    decoder = {k: v for k, v in caption.items() if k.startswith("text_decoder.")}
    bring_in(saved({**retrieval, **decoder}, tmp_path / "p.pth"), out := tmp_path / "out")
    matching = BlipForImageTextRetrieval.from_pretrained(out)
    writing = BlipForConditionalGeneration.from_pretrained(out)
    assert json.loads((out / "config.json").read_text())["architectures"] == [
        "BlipForImageTextRetrieval",
        "BlipForConditionalGeneration",
    ]
    assert torch.equal(matching.itm_head.weight, retrieval["itm_head.weight"])
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    assert torch.equal(writing.text_decoder.bert.embeddings.word_embeddings.weight, decoder[words])
    assert torch.equal(
        matching.vision_model.post_layernorm.weight, writing.vision_model.post_layernorm.weight
    )


def test_an_output_layer_that_is_not_tied_stays_so(tmp_path: Path) -> None:
    tensors = tensors_of("blip/caption")
    head = "text_decoder.cls.predictions.decoder.weight"
    tensors[head] = tensors[head].flip(0).contiguous()
    report = import_checkpoint(
        saved(tensors, tmp_path / "c.pth"), tmp_path / "out", config=BLIP_CONFIG, vocab=VOCAB
    )
    assert "not tied" in report.notes[0]
    model = BlipForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(model.text_decoder.cls.predictions.decoder.weight, tensors[head])
    words = model.text_decoder.bert.embeddings.word_embeddings.weight
    assert torch.equal(words, tensors[head].flip(0))


def test_every_way_of_saving_gives_the_same_tensors(tmp_path: Path) -> None:
    tensors = tensors_of("blip/caption")
    expected = load_file(import_golden("blip/caption", tmp_path / "0") / "model.safetensors")
    torch.save(tensors, plain := tmp_path / "plain.pth")
    torch.save({"state_dict": tensors, "epoch": 3}, state := tmp_path / "state.pth")
    parallel = saved({f"module.{k}": v for k, v in tensors.items()}, tmp_path / "ddp.pth")
    old = saved(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for number, file in enumerate((plain, state, parallel, old), start=1):
        found = bring_in(file, tmp_path / str(number))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tokenizer_ends_with_the_authors_tokens(tmp_path: Path) -> None:
    first = AutoTokenizer.from_pretrained(import_golden("blip/retrieval", tmp_path / "1"))
    second = AutoTokenizer.from_pretrained(import_golden("blip2", tmp_path / "2"))
    assert first.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [2000, 2001]
    assert (len(second), second.bos_token, second.bos_token_id) == (2001, "[DEC]", 2000)
    for tokenizer, name in ((first, "blip"), (second, "blip2")):
        ids = tokenizer(
            GOLDEN[name].expected["text"], padding="max_length", max_length=35, truncation=True
        )["input_ids"]
        assert ids == GOLDEN[name]["input_ids"].tolist()
    config = json.loads((tmp_path / "1" / "config.json").read_text())["text_config"]
    assert [config[f"{n}_token_id"] for n in ("pad", "bos", "sep", "eos")] == [0, 2000, 102, 102]


# --- BLIP-2 -----------------------------------------------------------------------------------


def test_blip2_has_no_key_bias_and_reads_text(tmp_path: Path) -> None:
    tensors = tensors_of("blip2")
    found = bring_in(CHECKPOINTS["blip2"], out := tmp_path / "out", BLIP2_CONFIG)
    bias = found["vision_model.encoder.layers.1.self_attn.qkv.bias"]
    query, key, value = bias.chunk(3)
    assert torch.equal(query, tensors["visual_encoder.blocks.1.attn.q_bias"])
    assert torch.equal(value, tensors["visual_encoder.blocks.1.attn.v_bias"])
    assert not key.any()
    config = json.loads((out / "config.json").read_text())
    assert config["qformer_config"]["use_qformer_text_input"] is True
    assert config["qformer_config"]["cross_attention_frequency"] == 2
    assert config["vision_config"]["layer_norm_eps"] == 1e-6
    assert config["vision_config"]["post_layernorm_eps"] == 1e-5
    assert config["num_query_tokens"] == 32


def test_a_frozen_vision_tower_comes_from_its_own_file(tmp_path: Path) -> None:
    tensors = tensors_of("blip2")
    tower = {k: v for k, v in tensors.items() if k.startswith("visual_encoder.")}
    frozen = saved({k: v for k, v in tensors.items() if k not in tower}, tmp_path / "frozen.pth")
    refused(frozen, tmp_path, "holds no vision tower", BLIP2_CONFIG)
    bare = {k.removeprefix("visual_encoder."): v for k, v in tower.items()}
    # EVA's own file has a norm, a classifier and one block more than LAVIS takes.
    bare |= {"norm.weight": torch.ones(48), "head.weight": torch.ones(2, 48)}
    bare |= {k.replace(".1.", ".2."): v for k, v in bare.items() if k.startswith("blocks.1.")}
    torch.save(bare, eva := tmp_path / "eva.pth")
    out = tmp_path / "joined"
    import_checkpoint(frozen, out, config=BLIP2_CONFIG, vocab=VOCAB, vision=eva)
    whole = bring_in(CHECKPOINTS["blip2"], tmp_path / "whole", BLIP2_CONFIG)
    joined = load_file(out / "model.safetensors")
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    with pytest.raises(UsageError, match="its own vision tower"):
        import_checkpoint(
            CHECKPOINTS["blip2"], tmp_path / "no", config=BLIP2_CONFIG, vocab=VOCAB, vision=eva
        )


# --- architecture -----------------------------------------------------------------------------


def published(kind: str, width: int, depth: int, patch: int, image_size: int) -> Tensors:
    """Tensors without storage, in the authors' names, of a checkpoint of published size."""
    vision = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": 16,
        "intermediate_size": 6144 if width == 1408 else 4 * width,
        "patch_size": patch,
        "image_size": image_size,
    }
    with torch.device("meta"):
        if kind == blip2.QFORMER:
            text = {"vocab_size": 30523, "use_qformer_text_input": True}
            config = Blip2Config(vision_config=vision, qformer_config=text)
            state = Blip2ForImageTextRetrieval(config).state_dict()
            return {rename_back(k, blip2._NAMES): v for k, v in state.items()}
        text = {"num_attention_heads": 12}
        state = BlipForImageTextRetrieval(
            BlipConfig(vision_config={**vision, "num_attention_heads": 8}, text_config=text)
        ).state_dict()
        return {rename_back(k, blip._NAMES): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("width", "depth", "image_size", "heads"), [(768, 12, 384, 12), (1024, 24, 224, 16)]
)
def test_published_blip_sizes_are_read_from_shapes(
    width: int, depth: int, image_size: int, heads: int
) -> None:
    tensors = published(blip.RETRIEVAL, width, depth, 16, image_size)
    config = blip.translate(tensors, blip.RETRIEVAL, Settings()).config
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers) == (width, depth)
    assert (vision.image_size, vision.patch_size) == (image_size, 16)
    assert (vision.num_attention_heads, vision.layer_norm_eps) == (heads, 1e-6)
    assert (text.num_attention_heads, text.vocab_size, text.label_smoothing) == (12, 30524, 0.1)
    assert (text.encoder_hidden_size, text.intermediate_size) == (width, 3072)


def test_blip2_vit_g_is_read_from_shapes() -> None:
    tensors = published(blip2.QFORMER, 1408, 39, 14, 364)
    config = blip2.translate(tensors, blip2.QFORMER, Settings()).config
    vision, qformer = config.vision_config, config.qformer_config
    assert (vision.num_attention_heads, vision.num_hidden_layers) == (16, 39)  # 88 per head
    assert (vision.intermediate_size, vision.image_size) == (6144, 364)
    assert (qformer.num_attention_heads, qformer.cross_attention_frequency) == (12, 2)
    assert (qformer.vocab_size, qformer.encoder_hidden_size) == (30523, 1408)


@pytest.mark.parametrize("names", [blip._NAMES, blip2._NAMES])
def test_names_translate_back(names: Any) -> None:
    kind = blip2.QFORMER if names is blip2._NAMES else blip.RETRIEVAL
    for name in published(kind, 768, 2, 16, 224):
        assert rename_back(rename(name, names), names) == name


def test_image_size_of_config_and_option_interpolate_alike(tmp_path: Path) -> None:
    config = json.loads(BLIP_CONFIG.read_text()) | {"image_size": 96}
    (file := tmp_path / "config.json").write_text(json.dumps(config))
    by_config = bring_in(CHECKPOINTS["blip/retrieval"], tmp_path / "1", file)
    out = import_golden("blip/retrieval", tmp_path / "2", image_size=96)
    by_option = load_file(out / "model.safetensors")
    name = "vision_model.embeddings.position_embedding"
    assert torch.equal(by_config[name], by_option[name])
    with pytest.raises(UsageError, match="not a multiple of the patch size 16"):
        import_golden("blip/retrieval", tmp_path / "3", image_size=100)


# --- the command ------------------------------------------------------------------------------


def test_command_prints_the_result_and_talks_on_stderr(tmp_path: Path) -> None:
    arguments = ["import-checkpoint", str(CHECKPOINTS["blip/retrieval"])]
    options = ["--config", str(BLIP_CONFIG), "--vocab", str(VOCAB)]
    out = tmp_path / "out"
    result = CliRunner().invoke(main, [*arguments, "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: blip-retrieval, 326,930 parameters, 64 pixels, 2,002 tokens\n"
    assert "left out: queues (4)" in result.stderr
    at_96 = ["--out", str(tmp_path / "96"), "--image-size", "96", "--json"]
    result = CliRunner().invoke(main, [*arguments, *at_96, *options])
    found = json.loads(result.stdout)
    assert (found["image_size"], found["stored_image_size"]) == (96, 64)
    again = CliRunner().invoke(main, [*arguments, "--out", str(out), *options])
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr.startswith(f"Error: --out {out} exists\nhint: ")
