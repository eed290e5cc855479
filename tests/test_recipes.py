"""Every command of docs/recipes.md works as printed, on tiny models and tiny data of its names.

Only models and sizes are put in their place; data lie where the text says, in the same layouts.
"""

import csv
import json
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import BlipForConditionalGeneration

from retrieval_engine.cli import main
from retrieval_engine.sources import open_source, read_item
from tests import tiny
from tests.golden import CHECKPOINTS, GOLDEN, VOCAB
from tests.tiny_blip2 import save_blip2_opt, save_blip2_t5

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
HUB = {
    "Salesforce/blip2-flan-t5-xl": save_blip2_t5,
    "Salesforce/blip2-opt-2.7b": save_blip2_opt,
    "Salesforce/blip-image-captioning-base": tiny.save_blip_captioner,
}
SIZES = {
    "study heads": ["--train-size", "16", "--test-size", "10"],
    "pretrain": [
        *("--preset", "micro", "--limit", "16", "--image-size", "32", "--width", "32"),
        *("--layers", "1", "--batch-size", "8", "--epochs", "2", "--eval-every", "4"),
    ],
    "study collapse": ["--limit", "8"],
    "finetune": ["--epochs", "10", "--max-steps", "6", "--batch-size", "8", "--queue", "16"],
    "eval --recall": ["--rerank", "4"],
}


def recipe(title: str) -> list[list[str]]:
    """The commands below a heading, split as a shell does."""
    part = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_all_recipes_are_here() -> None:
    titles = re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    tested = re.findall(r'recipe\("(.*?)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(titles) == sorted(set(tested))
    assert len(titles) == 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes in the layouts of the data sets, under the names of the text."""
    root = tmp_path_factory.mktemp("recipes")
    items = list(open_source("scenes:40?seed=5").items())
    names = [f"{number:012d}.jpg" for number in range(len(items))]
    splits = ["train"] * 22 + ["val"] * 8 + ["test"] * 10
    for folder in ("flickr30k-images", "coco", "flickr8k/images"):
        (root / folder).mkdir(parents=True)
        for name, item in zip(names, items, strict=True):
            (root / folder / name).write_bytes(read_item(item))
    shutil.copyfile(root / "coco" / names[0], root / "photo.jpg")
    told = [[caption.text for caption in item.captions] for item in items]
    rows = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for name, split, texts in zip(names, splits, told, strict=True)
    ]
    for name in ("flickr30k", "coco"):
        (root / f"dataset_{name}.json").write_text(json.dumps({"images": rows}))
    lines = [
        f"{n}#{i}\t{t}\n" for n, texts in zip(names, told, strict=True) for i, t in enumerate(texts)
    ]
    (root / "flickr8k" / "Flickr8k.token.txt").write_text("".join(lines))
    for split, called in (("train", "train"), ("val", "dev"), ("test", "test")):
        own = [name for name, its in zip(names, splits, strict=True) if its == split]
        (root / "flickr8k" / f"Flickr_8k.{called}Images.txt").write_text("\n".join(own) + "\n")
    return root


@pytest.fixture(autouse=True)
def _here(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)


def in_place(words: list[str]) -> list[str]:
    """A command with tiny models and sizes in the place of those printed."""
    found = [word if word not in HUB else str(model(word)) for word in words]
    line = shlex.join(found)
    for start, sizes in SIZES.items():
        if line.startswith(start) and not (start == "finetune" and found[1] != "retrieval"):
            found += sizes  # of an option given twice the last counts
        elif line.startswith(start):
            found += sizes[:-2]
    return found


def model(name: str) -> Path:
    folder = Path(name.rpartition("/")[2])
    if not folder.exists():
        HUB[name](folder)
    return folder


def run(words: list[str]) -> Result:
    assert words[0] == "vlre"
    asked = in_place(words[1:])
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, f"vlre {shlex.join(asked)}\n{result.output}\n{result.exception!r}"
    assert result.output.strip()
    return result


def test_blip2_heads() -> None:
    pytest.importorskip("matplotlib")
    (words,) = recipe("BLIP-2 heads on Flickr30k")
    result = run(words)
    assert "has no ITC as shipped" in result.stderr
    report = Path("flickr30k-heads/report")
    rows = json.loads((report / "comparison.json").read_text())
    names = [row["run"] for row in csv.DictReader((report / "comparison.csv").open(newline=""))]
    assert names == [row["run"] for row in rows]
    assert names[0] == "untrained projection"
    assert {row["n_images"] for row in rows} == {10}  # the test split, which no head has seen
    plots = {"recall.png", "features.png", "curves.png", "retrieved-1.png", "report.html"}
    assert plots <= {file.name for file in report.iterdir()}


def test_blip_from_scratch() -> None:
    *_, result = [run(words) for words in recipe("BLIP from scratch")]
    plain, ours = (json.loads(Path(n, "training.json").read_text()) for n in ("plain", "ours"))
    assert (plain["captions"], plain["items"], plain["report"]["steps"]) == (16, 16, 4)
    assert (ours["captions"], ours["config"]["optimizer"]) == (80, "muon")
    shape = json.loads(Path("plain/config.json").read_text())["vision_config"]
    assert (shape["image_size"], shape["hidden_size"], shape["num_hidden_layers"]) == (32, 32, 1)
    losses = [set(json.loads(line)) for line in Path("plain/log.jsonl").read_text().splitlines()]
    assert {"itc", "lm"} <= losses[-2]
    assert not {"itm", "concept"} & losses[-2]
    assert "3 beams" in result.stdout
    assert "another picture adds" in result.stdout
    assert Path("plain-report/collapse.html").stat().st_size > 5000


def test_blip_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("coco", "flickr"):  # the authors' own tiny file, its options pickled beside it
        shutil.copyfile(CHECKPOINTS["blip/retrieval"], f"model_base_retrieval_{name}.pth")
    shutil.copyfile(VOCAB, "vocab.txt")
    config = GOLDEN["blip"].config
    shutil.copyfile(config, "model_base_retrieval_flickr.json")
    first, encode, tune, ours, theirs = recipe("BLIP retrieval on one GPU")
    run([*first, "--config", str(config)])
    run(encode)
    assert tune[:4] == ["torchrun", "--nproc-per-node", "1", "cli.py"]
    # As torchrun starts its one process; several are compared in test_finetune_losses.
    started = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        started["MASTER_PORT"] = str(free.getsockname()[1])
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert "of 6, training" in run(["vlre", *tune[4:]]).stdout
    for name in started:
        monkeypatch.delenv(name)
    for result in map(run, (ours, theirs)):
        assert "10 images, 50 captions" in result.stdout
        assert "4 candidates a query re-ranked" in result.stdout
        assert "BLIP ViT-B" in result.stdout
        assert "encoding: 10" in result.stderr


def test_lora_on_blip2() -> None:
    *first, scores, compared = recipe("LoRA on BLIP-2, Flickr8k")
    said = [run(words) for words in first]
    share = re.search(r"training ([\d,]+) of [\d,]+ weights \((\S+) %\)", said[1].stdout)
    assert share
    assert float(share[2]) < 30  # of a model of 30 thousand weights; 0.1 of the real one
    assert Path("f8k-lora/curves.png").exists()
    assert "CIDEr" in run(scores).stdout
    rows = list(csv.DictReader(run(compared).stdout.splitlines()))
    assert [row["run"] for row in rows] == ["before", "after"]
    assert {row["n_images"] for row in rows} == {"10"}
    assert len(Path("f8k-lora-report/captions.csv").read_text().splitlines()) == 11


def test_seventy_epochs_of_captions() -> None:
    original = model("Salesforce/blip-image-captioning-base")
    theirs = BlipForConditionalGeneration.from_pretrained(original)
    with torch.no_grad():
        for weights in theirs.parameters():
            weights.mul_(1.01)
    state = theirs.state_dict()
    torch.save(state, "weights_best.pt")
    torch.save({"epoch": 30, "model_state_dict": state, "val_loss": 2.5}, "checkpoint_epoch_30.pt")
    *commands, pixels = recipe("70 epochs of captions, Flickr8k")
    *_, result = [run(words) for words in commands]
    best = json.loads(Path("f8k-captions/training.json").read_text())["report"]["final"]
    assert 0 <= best["bleu4"] <= 1
    assert Path("f8k-report/captions.html").exists()
    assert (
        Path("theirs-30/model.safetensors").read_bytes()
        == Path("theirs-best/model.safetensors").read_bytes()
    )
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [who for who, *_ in lines] == [str(original)] * 3 + ["f8k-captions"] * 3
    run(pixels)
    config = json.loads(Path("f8k-pixels/training.json").read_text())["config"]
    assert (config["colour_jitter"], config["from_pixels"]) == (0.2, True)
