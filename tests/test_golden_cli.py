"""From the authors' .pth to published figures through the commands alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from retrieval_engine import open_store
from retrieval_engine.cli import main
from tests.golden import CHECKPOINTS, GOLDEN, IMAGES, VOCAB

FILES = {"blip": "blip/retrieval", "blip2": "blip2"}
TOKENS = {"blip": "vision_last_hidden_state", "blip2": "vision_ln_hidden_state"}


def vlre(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module", params=["blip", "blip2"])
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Name of a golden case, and the store that the commands made of it."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    gold, model, store = GOLDEN[name], root / "model", root / "store"
    (pictures := root / "pictures").mkdir()
    for file in IMAGES:
        shutil.copy(file, pictures)
    with (pictures / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for image, caption in zip(gold["txt2img"], gold.captions, strict=True):
            lines.write(json.dumps({"image": IMAGES[image].name, "caption": caption}) + "\n")
    options = ["--config", gold.config, "--vocab", VOCAB]
    vlre("import-checkpoint", CHECKPOINTS[FILES[name]], "--out", model, *options)
    exact = ["--dtype", "float32", "--store-dtype", "float32", "--device", "cpu"]
    features = ["--features", "itc,pooled,tokens"]
    vlre("encode", f"folder:{pictures}", "--model", model, "--store", store, *exact, *features)
    return name, store


def test_stored_features_are_the_authors(stored: tuple[str, Path]) -> None:
    name, path = stored
    gold = GOLDEN[name]
    gallery = open_store(path).gallery()
    assert [Path(item).name for item in gallery.ids] == [file.name for file in IMAGES]
    assert list(gallery.caption_texts) == [caption.strip() for caption in gold.captions]
    np.testing.assert_array_equal(gallery.caption_image, gold["txt2img"])
    image, text = gallery.images("itc"), gallery.captions("itc")
    np.testing.assert_allclose(
        image.reshape(gold["image_embeds"].shape), gold["image_embeds"], atol=1e-5
    )
    np.testing.assert_allclose(text[:, 0], gold["text_embeds"], atol=1e-5)
    np.testing.assert_allclose(gallery.images("tokens"), gold[TOKENS[name]], atol=1e-4)


def test_recall_is_the_authors(stored: tuple[str, Path]) -> None:
    name, path = stored
    report = json.loads(vlre("eval", "--recall", "--store", path, "--json", "--device", "cpu"))
    expected = GOLDEN[name].expected["recall"]["itc_only"]
    for side, key in (("image_to_text", "txt"), ("text_to_image", "img")):
        for k in (1, 5, 10):
            assert report[side][f"R@{k}"] == pytest.approx(expected[f"{key}_r{k}"])
