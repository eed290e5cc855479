"""Push and pull against a real server: what comes back is what went, and failures are one line."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from retrieval_engine import build_index, open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.errors import (
    CheckpointInvalid,
    FingerprintMismatch,
    HubFailure,
    IndexFailure,
    UsageError,
)
from retrieval_engine.heads import load_head
from retrieval_engine.hub import prepared, pull, push
from retrieval_engine.hub.card import write_card
from retrieval_engine.hub.data_set import vector_column
from retrieval_engine.hub.kinds import Kind, files_of
from retrieval_engine.index import open_index
from retrieval_engine.models.checksums import write_checksums
from retrieval_engine.network import hub_id
from retrieval_engine.records import Json, Modality
from retrieval_engine.train.finetune import Task, configure, finetune
from retrieval_engine.train.head import HeadRecipe, train_head
from tests import tiny
from tests.finetune_stores import scenes_store
from tests.hub_server import READ_TOKEN, TOKEN, Hub, served_hub
from tests.small_store import vectors, write_store


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def send(folder: Path, repo: str, **how: object) -> str:
    with prepared(folder, repo) as what:
        return push(what, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `store`, `head`, `index`, `adapter`, all of one tiny BLIP, and a certificate."""
    root = tmp_path_factory.mktemp("made")
    model = tiny.save_blip(root / "model")
    write_checksums(model, [file.name for file in model.iterdir()])
    (model / "training.json").write_text(json.dumps({"config": {"source": "scenes:5"}}))
    scenes_store(root / "store", model, scenes="scenes:24?seed=7")
    (root / "store" / "failures.jsonl").write_text("")
    (root / "store" / "thumbnails").mkdir()
    (root / "store" / "thumbnails" / "a.jpg").write_bytes(b"a picture")
    store = open_store(root / "store")
    train_head(store, root / "head", HeadRecipe(epochs=1, refit_below=0))
    build_index(store, root / "index", recipe="flat-fp16")
    lora: dict[str, Json] = {
        "lora": "r=2,alpha=4",
        "max_steps": 1,
        "batch_size": 4,
        "device": "cpu",
    }
    config = configure(Task.RETRIEVAL, store=str(root / "store"), **lora)
    finetune(config, root / "adapter")
    assert run("eval", "--recall", "--store", root / "store")[0] == 0
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, a token that may write, and a cache of our own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "vlre-cache"))
    with served_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def front_of(card: bytes) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(card.decode().split("---\n")[1])
    return found


# There and back


def test_a_store_comes_back_to_the_bit(place: Path, hub: Hub, tmp_path: Path) -> None:
    code, out, told = run("push", place / "store", "me/scenes", "--message", "two dozen")
    assert code == 0, told
    assert out.startswith("9 files, ")
    assert out.endswith(f"pushed to {hub.url}/datasets/me/scenes\n")
    assert "24 items: ids" in told
    assert "captions, word for word" in told
    assert "no picture and no thumbnail" in told
    repo = hub.repos["datasets", "me/scenes"]
    assert repo.private
    assert repo.messages == ["initial commit", "two dozen"]
    assert not [name for name in hub.files("me/scenes", "datasets") if "thumb" in name]
    code, out, told = run("pull", "me/scenes", "--to", tmp_path / "back", "--json")
    assert code == 0, told
    assert json.loads(out)["kind"] == "store"
    before, after = open_store(place / "store"), open_store(tmp_path / "back")
    assert after.verify() == []
    assert after.manifest == before.manifest
    assert after.header == before.header
    assert after.items().equals(before.items())
    for name in before.features(Modality.IMAGES):
        assert (after.gallery().images(name) == before.gallery().images(name)).all()
    assert not (tmp_path / "back" / "data").exists(), "the tables are of others"


def test_head_and_index_answer_by_their_hub_ids(place: Path, hub: Hub, tmp_path: Path) -> None:
    send(place / "head", "me/head")
    send(place / "index", "me/index")
    assert hub.repos["models", "me/index"].private
    assert not hub.repos["models", "me/head"].private
    head = load_head("me/head")
    assert head.weights == load_head(place / "head").weights
    assert head.trained_on().ids == load_head(place / "head").trained_on().ids
    query = open_store(place / "store").gallery().images("itc")[:3, 0]
    here, there = open_index(place / "index"), open_index("me/index@main", verify=True)
    for mine, theirs in zip(here.search(query, 5), there.search(query, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    of_store = ("--store", place / "store", "--model", place / "model")
    certificate = tmp_path / "metrics.json"
    for words in (
        ("eval", "--recall", "--out", certificate, "--head"),
        ("search", "a dog", "--head"),
    ):
        mine, theirs = run(*words, place / "head", *of_store), run(*words, "me/head", *of_store)
        assert mine[:2] == theirs[:2]
        assert mine[0] == 0, mine[2]
    for where in (of_store, ("--store", place / "none")):
        mine = run("search", "a dog", "--index", place / "index", *where)
        assert run("search", "a dog", "--index", "me/index", *where)[:2] == mine[:2]
        assert mine[0] == 0, mine[2]


def test_checkpoint_and_adapter_encode_by_their_hub_ids(place: Path, hub: Hub) -> None:
    send(place / "model", "me/model")
    send(place / "adapter", "me/adapter")
    texts = ["a dog on grass", "two birds"]
    how: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    whole = open_encoder(str(place / "model"), adapter=place / "adapter", **how)
    alone = open_encoder("me/model", **how)
    assert alone.spec.fingerprint == open_encoder(str(place / "model"), **how).spec.fingerprint
    assert alone.spec.checkpoint == "me/model"
    assert alone.spec.revision in hub.repos["models", "me/model"].commits
    both = open_encoder("me/model", adapter="me/adapter", **how)
    named = open_encoder("me/adapter", **how)  # its record names the base
    for encoder in (both, named):
        assert encoder.spec.fingerprint == whole.spec.fingerprint != alone.spec.fingerprint
        assert encoder.spec.checkpoint == "me/adapter"
        told = encoder.encode_texts(texts, ["itc"])["itc"]
        assert (told == whole.encode_texts(texts, ["itc"])["itc"]).all()
    other = tiny.save_blip(place / "other", seed=3)
    with pytest.raises(FingerprintMismatch):
        open_encoder(str(other), adapter="me/adapter", **how)


@pytest.mark.parametrize("kind", ["model", "adapter", "head", "index"])
def test_what_was_pulled_is_what_was_pushed(
    place: Path, hub: Hub, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(place / kind, f"me/{kind}")
    monkeypatch.chdir(tmp_path)
    assert run("pull", f"me/{kind}")[0] == 0
    known = Kind.CHECKPOINT if kind == "model" else Kind(kind)
    for name, file in files_of(known, place / kind).items():
        assert (tmp_path / kind / name).read_bytes() == file.read_bytes()
    before = len(hub.asked)
    assert run("pull", f"me/{kind}")[0] == 0
    assert not [line for line in hub.asked[before:] if "/resolve/" in line], "it is all there"


def test_a_push_that_was_interrupted_goes_on(place: Path, hub: Hub) -> None:
    hub.refuse_blobs_after = 2
    code, _, told = run("push", place / "store", "me/scenes")
    assert code == 1
    assert "the hub answered 400 about me/scenes: the disk of the hub is full" in told
    assert list(hub.files("me/scenes", "datasets")) == [], "a commit is whole or not there"
    hub.refuse_blobs_after = None
    assert run("push", place / "store", "me/scenes")[0] == 0
    assert len(hub.sent) == len(set(hub.sent)) == 5, "no blob went twice"
    commits = len(hub.repos["datasets", "me/scenes"].commits)
    assert run("push", place / "store", "me/scenes")[0] == 0
    assert len(hub.repos["datasets", "me/scenes"].commits) == commits, "nothing had changed"


def test_a_push_of_what_became_smaller_takes_the_old_files_out(
    place: Path, hub: Hub, tmp_path: Path
) -> None:
    store = shutil.copytree(place / "store", tmp_path / "store")
    send(store, "me/scenes")
    hub.repos["datasets", "me/scenes"].at("main")[1]["notes.md"] = b"mine"
    assert run("store", "forget", "scenes:7", "--store", store)[0] == 0
    scenes_store(store, place / "model", scenes="scenes:8?seed=9")
    assert run("store", "compact", "--store", store)[0] == 0
    send(store, "me/scenes")
    files = hub.files("me/scenes", "datasets")
    shards = {f"shards/{entry.name}" for entry in open_store(store).manifest.files()}
    assert {name for name in files if name.startswith("shards/")} == shards
    assert files["notes.md"] == b"mine"
    assert len(open_store(pull("me/scenes", tmp_path / "back")).items()) == 8


def test_a_pull_that_was_damaged_says_so(place: Path, hub: Hub, tmp_path: Path) -> None:
    for kind, error in (("head", CheckpointInvalid), ("index", IndexFailure)):
        send(place / kind, f"me/{kind}")
        files = hub.files(f"me/{kind}")
        name = next(n for n in files if n.endswith((".safetensors", ".faiss")))
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        with pytest.raises(error):
            pull(f"me/{kind}", tmp_path / kind)
    (model := tmp_path / "model").mkdir()
    shutil.copytree(place / "model", model, dirs_exist_ok=True)
    weights = load_file(model / "model.safetensors")
    save_file({**weights, next(iter(weights)): next(iter(weights.values())) + 1}, model / "x")
    (model / "x").replace(model / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match="sha256"):
        send(model, "me/model")
    assert ("models", "me/model") not in hub.repos, "what is damaged is not pushed"


def test_the_commands_of_the_page_run_as_printed(
    place: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"model": "my-blip", "adapter": "tuned", "head": "heads/mlp", "store": "embeddings"}
    for kind, name in {**named, "index": "indices/built/default"}.items():
        shutil.copytree(place / kind, tmp_path / name)
    page = (Path(__file__).parents[1] / "docs" / "hub.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).splitlines()
    assert len(lines) == 10
    for line in lines:
        code, _, told = run(*shlex.split(line, comments=True)[1:])
        assert code == 0, f"{line}\n{told}"
    assert open_store("again").manifest == open_store("embeddings").manifest
    assert (tmp_path / "look-first" / "README.md").is_file()


# The card, and the data set


def test_the_card_tells_what_the_records_tell(place: Path, hub: Hub, tmp_path: Path) -> None:
    model = shutil.copytree(place / "model", tmp_path / "model")
    made = {"config": {"source": "hf:someone/pictures?split=a"}, "report": {"mean_recall": 61.5}}
    (model / "training.json").write_text(json.dumps(made))
    send(model, "me/model")
    for kind in ("adapter", "head", "index", "store"):
        send(place / kind, f"me/{kind}", private=True)
    fronts = {kind: front_of(hub.files(f"me/{kind}")["README.md"]) for kind in ("model", "head")}
    front, head = fronts["model"], fronts["head"]
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "feature-extraction"
    assert front["datasets"] == ["someone/pictures"]
    results = front["model-index"][0]["results"]  # type: ignore[index]
    assert results[0]["metrics"][0]["value"] == 61.5
    recorded = json.loads((place / "head" / "head.json").read_text())["metrics"]
    metrics = [m for r in head["model-index"][0]["results"] for m in r["metrics"]]  # type: ignore[index]
    assert {m["name"]: m["value"] for m in metrics} == {
        f"{side} {at}": value
        for side in ("text_to_image", "image_to_text")
        for at, value in recorded[side].items()
    }
    card = hub.files("me/store", "datasets")["README.md"].decode()
    found = json.loads((place / "store" / "metrics.json").read_text())["results"]["itc"]
    low, high = found["interval"]["text_to_image"]["R@5"]
    figure = f"{found['text_to_image']['R@5']:g} ({low:.1f}-{high:.1f})"
    assert f"| scenes:7 (24 images) | text_to_image R@5 | {figure} |" in card
    for kind in ("model", "adapter", "head", "index"):
        assert str(place) not in hub.files(f"me/{kind}")["README.md"].decode()
    assert str(place) not in card


def test_figures_of_before_the_last_training_are_said_to_be(place: Path, tmp_path: Path) -> None:
    head = shutil.copytree(place / "head", tmp_path / "head")
    record = json.loads((head / "head.json").read_text())
    assert record["refitted"] is False
    for refitted in (False, True):
        (head / "head.json").write_text(json.dumps({**record, "refitted": refitted}))
        card = write_card(Kind.HEAD, head, "me/head", inside=[])
        assert ("before it was trained once more with them" in card) == refitted


def test_a_card_of_one_s_own_stays(place: Path, hub: Hub, tmp_path: Path) -> None:
    head = shutil.copytree(place / "head", tmp_path / "head")
    own = "---\nlicense: mit\ntags: [mine]\n---\n# My head\n\nFor cats.\n"
    (head / "README.md").write_text(own)
    send(head, "me/head")
    first = hub.files("me/head")["README.md"]
    assert front_of(first)["license"] == "mit"
    assert front_of(first)["tags"] == ["mine"]
    assert b"# My head\n\nFor cats.\n" in first
    back = pull("me/head", tmp_path / "back")
    send(back, "me/again")
    again = hub.files("me/again")["README.md"].decode()
    assert again.count("## What is inside") == again.count("For cats.") == 1
    assert "--head me/again" in again
    assert front_of(again.encode())["license"] == "mit"
    (head / "README.md").write_text("---\n: [\n---\n")
    with pytest.raises(CheckpointInvalid, match="no YAML"):
        send(head, "me/head")


def test_a_dry_run_writes_a_data_set_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "vlre-cache"))
    splits = ["test"] * 5 + [""] * 7
    write_store(tmp_path / "store", *vectors(0, 12, 2), np.repeat(np.arange(12), 2), splits=splits)
    store = open_store(tmp_path / "store")
    out = tmp_path / "written"
    words = ("push", tmp_path / "store", "me/vectors", "--dry-run", "--to", out)
    code, said, _ = run(*words, "--json")
    assert code == 0
    assert json.loads(said)["pushed"] is False
    assert not list((tmp_path / "vlre-cache").iterdir())
    cache = str(tmp_path / "cache")
    images = datasets.load_dataset(str(out), cache_dir=cache)
    captions = datasets.load_dataset(str(out), "captions", cache_dir=cache)
    assert {name: len(rows) for name, rows in images.items()} == {"test": 5, "unsplit": 7}
    assert {name: len(rows) for name, rows in captions.items()} == {"test": 10, "unsplit": 14}
    gallery = store.gallery("test")
    rows = images["test"]
    assert rows["id"] == list(gallery.ids)
    assert rows[3]["captions"] == [gallery.caption_texts[j] for j in gallery.captions_of(3)]
    assert rows.features["itc"].feature.feature.dtype == "float16"
    assert (rows.with_format("numpy")["itc"][:] == gallery.images("itc")).all()
    rows = captions["test"].with_format("numpy")
    assert (rows["itc"][:] == gallery.captions("itc")).all()
    assert list(rows["image_id"]) == [gallery.ids[i] for i in gallery.caption_image]
    code, _, told = run(*words)
    assert (code, "is not empty" in told) == (2, True)


def test_vectors_of_any_shape_become_columns(tmp_path: Path) -> None:
    block = np.arange(24, dtype=np.float16).reshape(3, 4, 2)
    assert np.array(vector_column(block).to_pylist()).tolist() == block.tolist()
    assert str(vector_column(block[::2, :1]).type) == (
        "fixed_size_list<item: fixed_size_list<item: halffloat>[2]>[1]"
    )


@pytest.mark.service
def test_load_dataset_opens_what_was_pushed(place: Path, hub: Hub, tmp_path: Path) -> None:
    send(place / "store", "me/scenes")
    code = 'import datasets; print(*datasets.load_dataset("me/scenes", split="unsplit")["id"])'
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(open_store(place / "store").gallery().ids)


# What cannot be


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "there is no token for the hub"),
        ("hf_wrong", "the hub does not take the token (401: Invalid username or password.)"),
        (READ_TOKEN, "the token may not do this with me/head (403: This token reads and does not"),
    ],
)
def test_a_push_without_the_right_is_one_line(
    place: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    code, out, told = run("push", place / "head", "me/head")
    assert (code, out) == (1, "")
    lines = [line for line in told.splitlines() if not line.startswith(("inside", "  "))]
    assert lines[0].startswith(f"Error: {said}")
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2
    assert hub.repos == {}


def test_what_the_hub_has_not_is_one_line(
    place: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(place / "head", "me/secret", private=True)
    for words in (("pull", "me/none"), ("search", "a dog", "--index", "me/none")):
        code, _, told = run(*words)
        assert code == 1
        assert "the hub has no me/none that this token may see (404)" in told.splitlines()[0]
        assert "hf download" not in told, "there is a network"
    hub.repos["models", "me/other"] = hub.repos["models", "me/secret"]
    hub.files("me/other").clear()
    code, _, told = run("pull", "me/other", "--to", place / "nothing")
    assert (code, "holds no checkpoint, adapter" in told) == (1, True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "none")
    code, _, told = run("eval", "--recall", "--store", place / "store", "--head", "me/secret")
    assert code == 1
    assert "no head at me/secret: head me/secret is not on this machine and the hub has no" in told
    assert "and no token is set (401)" in told
    assert (code, len(told.splitlines())) == (1, 2)


def test_without_a_network_what_is_cached_opens_and_the_rest_is_one_line(
    place: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send(place / "head", "me/head")
    weights = load_head("me/head").weights
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_head("me/head").weights == weights
    for words in (
        ("push", place / "head", "me/head"),
        ("pull", "me/head", "--to", tmp_path / "back"),
        ("search", "a dog", "--store", place / "store", "--index", "me/index"),
        ("encode", "scenes:2", "--store", tmp_path / "s", "--model", "me/model"),
    ):
        code, _, told = run(*words)
        assert code == 1, words
        assert "cannot be reached" in told
        assert "Traceback" not in told
        assert ("hf download" in told) == (words[0] in ("search", "encode"))
    assert not (tmp_path / "back").exists()


def test_nobody_s_pictures_become_public_by_accident(place: Path, hub: Hub) -> None:
    send(place / "head", "me/public")
    index, store = place / "index", place / "store"
    with pytest.raises(HubFailure, match="public and tells of your pictures: 24 items: ids"):
        send(index, "me/public")
    assert "manifest.json" not in hub.files("me/public")
    assert run("push", store, "me/open", "--public")[0] == 0
    assert not hub.repos["datasets", "me/open"].private
    assert run("push", store, "me/open", "--private")[0] == 1


def test_what_is_no_such_thing_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLRE_CACHE", str(tmp_path / "vlre-cache"))
    for folder, repo, said in (
        (tmp_path, "me/x", "is no checkpoint, adapter, head, index or store"),
        (place / "head", "me", "must be USER/NAME"),
        (place / "head", "me/a b", "is no name on the hub"),
    ):
        with pytest.raises(UsageError, match=said):
            send(folder, repo)
    assert run("push", place / "head", "me/x", "--to", tmp_path / "y")[0] == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert run("pull", "me/x", "--to", tmp_path / "full")[0] == 2


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("me/my-head", "me/my-head"),
        ("me/my.head@v1.0", "me/my.head@v1.0"),
        ("head", ""),
        ("/me/head", ""),
        ("./me/head", "me/head"),  # as `Path` has it
        ("../me", ""),
        ("a/b/c", ""),
        ("~/head", ""),
    ],
)
def test_names_of_the_hub_are_told_from_paths(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id(name) == found
    if found:
        (tmp_path / name).mkdir(parents=True)
        assert hub_id(name) == "", "what is here is a path"


def test_the_checksum_of_a_cached_checkpoint_counts(place: Path, hub: Hub) -> None:
    send(place / "model", "me/model")
    files = hub.files("me/model")
    digest = hashlib.sha256(files["config.json"]).hexdigest()
    assert digest in files["vlre_checksums.json"].decode()
    files["config.json"] += b" "
    with pytest.raises(CheckpointInvalid, match="sha256"):
        open_encoder("me/model", device="cpu", dtype="float32")
