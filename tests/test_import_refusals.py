"""What an import refuses, in one line and with nothing left behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_engine.errors import CheckpointInvalid, CheckpointNotFound, UsageError
from retrieval_engine.models.import_checkpoint import import_checkpoint
from tests.authors_files import (
    BLIP2_CONFIG,
    BLIP_CONFIG,
    refused,
    saved,
    tensors_of,
)
from tests.golden import CHECKPOINTS, VOCAB, import_golden


def test_heads_that_no_published_checkpoint_tells_must_be_given(tmp_path: Path) -> None:
    refused(CHECKPOINTS["blip/retrieval"], tmp_path, "attention heads is not in the", config=None)


def test_med_config_alone_gives_the_text_heads(tmp_path: Path) -> None:
    med = json.loads(BLIP_CONFIG.read_text())["med_config"]
    (file := tmp_path / "med_config.json").write_text(json.dumps(med))
    refused(CHECKPOINTS["blip/retrieval"], tmp_path, "the vision tower is 48 wide", config=file)


@pytest.mark.parametrize(
    ("section", "values", "match"),
    [
        ("vit", {"depth": 12}, r"vit\.depth is 2 in the tensors and 12 in `config`"),
        ("med_config", {"hidden_size": 768}, r"hidden_size is 64 in the tensors and 768"),
        ("med_config", {"num_attention_heads": 12}, "12, which does not divide 64"),
    ],
)
def test_a_config_of_another_checkpoint_is_refused(
    tmp_path: Path, section: str, values: dict[str, int], match: str
) -> None:
    config = json.loads(BLIP_CONFIG.read_text())
    config[section] |= values
    (file := tmp_path / "config.json").write_text(json.dumps(config))
    refused(CHECKPOINTS["blip/retrieval"], tmp_path, match, config=file)


@pytest.mark.parametrize(
    ("text", "match"), [("{", "cannot be read"), ("[1]", "not a JSON object"), ("{}", "none of")]
)
def test_a_bad_config_is_wrong_usage(tmp_path: Path, text: str, match: str) -> None:
    (file := tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=match):
        import_checkpoint(CHECKPOINTS["blip2"], tmp_path / "out", config=file, vocab=VOCAB)


# --- what is refused --------------------------------------------------------------------------


def test_missing_unexpected_and_misshaped_tensors_are_listed(tmp_path: Path) -> None:
    tensors = tensors_of("blip/retrieval")
    tensors["visual_encoder.blocks.1.attn.key_bias"] = torch.ones(48)
    del tensors["visual_encoder.blocks.0.attn.qkv.bias"]
    del tensors["text_encoder.encoder.layer.1.crossattention.self.key.weight"]
    tensors["itm_head.weight"] = torch.ones(3, 64)
    tensors["text_proj.bias"][3] = float("nan")
    refused(
        saved(tensors, tmp_path / "r.pth"),
        tmp_path,
        r"2 missing: text_encoder\.encoder\.layer\.1\.crossattention\.self\.key\.weight, "
        r"visual_encoder\.blocks\.0\.attn\.qkv\.bias; "
        r"1 unexpected: visual_encoder\.blocks\.1\.attn\.key_bias; "
        r"1 of another shape: itm_head\.weight \(3, 64\), expected \(2, 64\); "
        r"1 not finite: text_proj\.bias",
    )


@pytest.mark.parametrize(
    ("prefixes", "match"),
    [
        (["text_encoder.a", "text_decoder.b", "visual_encoder.c"], "question answering"),
        (["text_encoder.a", "cls_head.0", "visual_encoder.c"], "NLVR2"),
        (["Qformer.a", "opt_proj.b", "query_tokens"], "BLIP-2 with a language model"),
        (["vision_model.a", "text_encoder.b"], "Hugging Face's names.*`base=ID`"),
        (["conv1.weight", "fc.weight"], "unknown checkpoint: keys conv1, fc"),
    ],
)
def test_other_checkpoints_are_named(tmp_path: Path, prefixes: list[str], match: str) -> None:
    file = saved({name: torch.ones(1) for name in prefixes}, tmp_path / "x.pth")
    refused(file, tmp_path, match)


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_runs(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "ran"
    tensors = {**tensors_of("blip/caption"), "text_decoder.x": Code(str(witness))}
    file = saved(tensors, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    refused(file, tmp_path, r"holds more than tensors \(\S*mkdir\)")
    assert not witness.exists()


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", [cut(0), cut(0.001), cut(0.5), cut(0.999)])
def test_a_cut_file_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], zipped: bool
) -> None:
    file = saved(
        tensors_of("blip/caption"), tmp_path / "c.pth", _use_new_zipfile_serialization=zipped
    )
    file.write_bytes(damage(file.read_bytes()))
    refused(file, tmp_path, r"c\.pth")


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    (file := tmp_path / "c.pth").write_bytes(flip(CHECKPOINTS["blip/caption"].read_bytes()))
    refused(file, tmp_path, "does not agree with its checksum")


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    (text := tmp_path / "t.pth").write_text("not a checkpoint at all\n" * 9)
    refused(text, tmp_path, r"t\.pth")
    refused(tmp_path / "absent.pth", tmp_path, "is not a file")
    torch.save([1, 2], numbers := tmp_path / "n.pth")
    refused(numbers, tmp_path, "holds a list")
    torch.save({"model": {"a": 3}}, strange := tmp_path / "s.pth")
    refused(strange, tmp_path, "no tensors: a")


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    out = import_golden("blip2", tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    with pytest.raises(UsageError, match="exists"):
        import_golden("blip2", out)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    (empty := tmp_path / "empty").mkdir()
    assert (import_golden("blip2", empty) / "config.json").is_file()


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    lines = VOCAB.read_text().splitlines()
    (short := tmp_path / "short.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(CheckpointInvalid, match=r"2002 rows; short\.txt has 1999 words"):
        import_checkpoint(
            CHECKPOINTS["blip/retrieval"], tmp_path / "o", config=BLIP_CONFIG, vocab=short
        )
    (whole := tmp_path / "whole.txt").write_text("\n".join([*lines, "[DEC]", "[ENC]"]))
    import_checkpoint(
        CHECKPOINTS["blip/retrieval"], tmp_path / "o", config=BLIP_CONFIG, vocab=whole
    )


def test_without_a_vocabulary_and_offline_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointNotFound, match="no vocabulary") as caught:
        import_checkpoint(CHECKPOINTS["blip2"], tmp_path / "out", config=BLIP2_CONFIG)
    assert "`vocab=" in caught.value.hint
    assert not (tmp_path / "out").exists()
