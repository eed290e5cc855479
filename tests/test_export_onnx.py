"""`vlre export`: graphs that ONNX Runtime runs give the engine's own features, logits and words."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from retrieval_engine.cli import main
from retrieval_engine.errors import EncoderError, MissingExtra, UsageError
from retrieval_engine.models import export_onnx as exporting
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.export_onnx import export_onnx
from retrieval_engine.records import Modality
from tests import tiny, tiny_blip2

ROOT = Path(__file__).parents[1]

TEXT = "a dog on the grass"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip") / "model")


def run(folder: Path, part: str, **given: Any) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(folder / f"{part}.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def pixels(count: int, side: int) -> Any:
    return np.random.default_rng(5).integers(256, size=(count, side, side, 3), dtype=np.uint8)


@pytest.mark.whole
def test_towers_and_matcher_give_what_the_encoder_gives(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "photo-onnx"
    result = CliRunner().invoke(
        main, ["export", "--model", str(blip), "--onnx", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert [part["name"] for part in json.loads(result.stdout)["parts"]] == [
        "image",
        "text",
        "matcher",
    ]
    encoder: Any = open_encoder(str(blip), device="cpu", dtype="float32")
    facts = json.loads((out / "vlre_onnx.json").read_text())
    images = pixels(4, encoder.preprocessor.image_size)
    found = run(out, "image", pixels=images)
    wanted = encoder.encode_images(images, list(found))
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-4)
    assert facts["example"]["text"] == TEXT
    ids = np.array([facts["example"]["input_ids"]["text"]])
    told = run(out, "text", input_ids=ids, attention_mask=np.ones_like(ids))
    wanted = encoder.encode_texts([TEXT], ["itc", "pooled"])
    for name, array in wanted.items():
        np.testing.assert_allclose(told[name], array, atol=1e-4)
    ids = np.array([facts["example"]["input_ids"]["matcher"]] * 4)
    match = run(
        out, "matcher", tokens=found["tokens"], input_ids=ids, attention_mask=np.ones_like(ids)
    )
    pairs = np.array([(image, 0) for image in range(4)])
    right = encoder.matcher().score_pairs(lambda rows: found["tokens"][rows], [TEXT], pairs)
    np.testing.assert_allclose(match["logits"][:, 1], right, atol=1e-4)
    forms = encoder.features(Modality.IMAGES).values()
    assert facts["fingerprints"]["images"] == {form.name: form.fingerprint for form in forms}
    with pytest.raises(UsageError, match="is there already"):
        export_onnx(str(blip), out)

    monkeypatch.chdir(out.parent)
    Image.fromarray(images[0]).resize((90, 70)).save("beach.jpg")
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), re.S)
    known: dict[str, Any] = {}
    exec(code, known)
    picture = encoder.preprocessor.pixels(Image.open("beach.jpg"))
    wanted = encoder.encode_images(picture[None], ["itc"])
    np.testing.assert_allclose(known["itc"], wanted["itc"], atol=1e-4)


@pytest.mark.whole
def test_words_of_the_decoder_are_the_captioner_s(tmp_path: Path) -> None:
    model = tiny.save_blip_captioner(tmp_path / "model")
    parts = export_onnx(str(model), tmp_path / "onnx", parts=["decoder"])
    assert [part.name for part in parts] == ["decoder"]
    captioner: Any = open_captioner(str(model), device="cpu", dtype="float32")
    tokens = captioner.encode_images(pixels(2, captioner.preprocessor.image_size), ["tokens"])[
        "tokens"
    ]
    ids = captioner.prompt_ids("a dog")
    found = run(tmp_path / "onnx", "decoder", tokens=tokens, input_ids=np.array([ids, ids]))
    with torch.inference_mode():
        wanted, _ = captioner.begin(torch.from_numpy(tokens), "a dog")
    np.testing.assert_allclose(found["logits"], wanted.numpy(), atol=1e-4)


@pytest.mark.whole
def test_a_q_former_is_written_too(tmp_path: Path) -> None:
    model = tiny_blip2.save_blip2(tmp_path / "model")
    parts = export_onnx(str(model), tmp_path / "onnx")
    assert {"image", "text", "matcher"} <= {part.name for part in parts}
    for part in parts:
        assert part.largest_difference <= 1e-4 * max(1, part.largest_value)


@pytest.mark.whole
def test_a_graph_that_computes_something_else_is_not_kept(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_TOLERANCE", -1.0)
    with pytest.raises(EncoderError, match=r"text\.onnx computes something else"):
        export_onnx(str(blip), tmp_path / "onnx", parts=["text"])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_told_before_any_work(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", "--model", str(blip), "--onnx", str(tmp_path / "onnx")]
    result = CliRunner().invoke(main, [*command, "--part", "decoder"])
    assert result.exit_code == 2
    assert f"{blip} has no decoder to export; it has image, text, matcher" in result.stderr
    with pytest.raises(UsageError, match="`parts` names wheel; known: image, text"):
        export_onnx(str(blip), tmp_path / "onnx", parts=["wheel"])
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match="onnxscript is not installed"):
        export_onnx(str(blip), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
