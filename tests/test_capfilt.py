"""CapFilt: wrong captions go, right ones stay, and the cleaned set is a source again."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from benchmarks import caption_quality
from retrieval_engine.caption.capfilt import CapFiltJob, CapFiltRequest
from retrieval_engine.caption.cleaned import write_cleaned
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.models import open_encoder
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.sources.scenes import truth
from retrieval_engine.testing.images import jpeg
from tests import tiny
from tests.golden import GOLDEN, import_golden
from tests.test_caption_decoding import save_both


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    retrieval = tiny.save_blip(root / "retrieval")
    return save_both(root / "both", retrieval, tiny.save_blip_captioner(root / "writer", seed=2))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["capfilt", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_match_probabilities_are_the_authors(tmp_path: Path) -> None:
    golden = GOLDEN["blip"]
    path = import_golden("blip/retrieval", tmp_path)
    matcher = open_encoder(str(path), device="cpu", dtype="float32").matcher()
    states = golden["vision_last_hidden_state"]
    pairs = np.array([(i, j) for i in range(12) for j in range(20)])
    found = matcher.score_pairs(lambda i: states[i], golden.captions, pairs, as_probability=True)
    np.testing.assert_allclose(found.reshape(12, 20), golden["itm_prob_enc"], atol=1e-5)


def test_shuffled_captions_of_scenes_go_and_right_ones_stay(tmp_path: Path) -> None:
    """The whole way: pictures on disk, 30 % of the captions exchanged, beams beside them."""
    folder, out = tmp_path / "pictures", tmp_path / "cleaned"
    folder.mkdir()
    items = list(open_source("scenes:60?seed=4242").items())
    texts = [[caption.text for caption in item.captions] for item in items]
    for i in np.random.default_rng(0).permutation(60)[:18]:
        texts[i] = texts[(i + 7) % 60][:]
    rows = []
    for item, own in zip(items, texts, strict=True):
        decode(read_bytes(item.uri)).save(folder / f"{item.id}.png")
        rows.append(json.dumps({"image": f"{item.id}.png", "captions": own}))
    (folder / "captions.jsonl").write_text("\n".join(rows) + "\n")
    result = run(folder, "--out", out, "--beams", 1, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["pictures"] == 60
    metas = {f"{item.id}.png": item.meta for item in items}
    is_wrong = {
        (name, text): not truth.is_true(text, metas[name])
        for name, own in zip(metas, texts, strict=True)
        for text in own
    }
    dropped = {
        (row["image"], row["caption"])
        for row in lines(out / "dropped.jsonl")
        if row["kind"] == "original"
    }
    wrong = {pair for pair, bad in is_wrong.items() if bad}
    right = is_wrong.keys() - wrong
    assert len(wrong) > 40
    assert len(dropped & wrong) >= 0.9 * len(wrong)
    assert len(dropped & right) <= 0.1 * len(right)
    table = pq.read_table(out / "captions.parquet").to_pylist()
    written = [
        (row["id"], text)
        for row in table
        for text, kind in zip(row["captions"], row["kinds"], strict=True)
        if kind == "synthetic"
    ]
    assert len(written) >= 40
    nouns = [(name, noun) for name, text in written for noun in truth.nouns(text)]
    correct = sum(noun in truth.facts(metas[name]) for name, noun in nouns)
    assert correct >= 0.95 * len(nouns)


def test_the_cleaned_set_is_a_source_again(tmp_path: Path, model: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "cleaned"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
        (folder / f"{i}.txt").write_text(f"a dog {i}\na cat\n")
    (folder / "broken.jpg").write_bytes(b"")
    arguments = ["--out", out, "--model", model, "--threshold", 0, "--with-images"]
    result = run(folder, *arguments, "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert report["failed"] == 1
    assert report["original"] == {"kept": 10, "dropped": 0}
    first = list(open_source(f"captions:{out}/captions.jsonl").items())
    second = list(open_source(f"parquet:{out}/captions.parquet").items())
    assert [item.id for item in second] == [f"{i}.jpg" for i in range(5)]
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a.uri == str(folder / f"{i}.jpg")
        assert read_bytes(b.uri) == (folder / f"{i}.jpg").read_bytes()
        assert [c.text for c in a.captions] == [c.text for c in b.captions]
        assert [c.text for c in a.captions][:2] == [f"a dog {i}", "a cat"]


def test_another_threshold_costs_no_model(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "cleaned"
    arguments = ["scenes:6", "--model", model, "--out", out, "--json"]
    first = json.loads(run(*arguments, "--threshold", 0).stdout)
    assert first["encoded"] == 6
    decisions = (out / "decisions.jsonl").read_bytes()
    matches = [c["match"] for row in lines(out / "decisions.jsonl") for c in row["original"]]
    threshold = sorted(matches)[len(matches) // 2]
    second = json.loads(run(*arguments, "--threshold", threshold).stdout)
    assert second["encoded"] == 0
    assert (out / "decisions.jsonl").read_bytes() == decisions
    kept = sum(match >= threshold for match in matches)
    assert second["original"] == {"kept": kept, "dropped": len(matches) - kept}
    assert 0 < kept < len(matches)
    reasons = [r["reason"] for r in lines(out / "dropped.jsonl") if r["kind"] == "original"]
    assert all("is below" in reason for reason in reasons)
    refused = run(*arguments, "--beams", 2)
    assert refused.exit_code == 2
    assert "other settings" in refused.stderr


def test_captions_that_say_nothing_new_go(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "source": "folder:x", "uri": "/x/a.jpg", "split": "train"}
    row_captions = {
        "original": [
            {"id": "1", "text": "A dog.", "match": 0.9},
            {"id": "2", "text": "a dog", "match": 0.8},
            {"id": "3", "text": "...", "match": 0.9},
        ],
        "synthetic": [
            {"id": "4", "text": "a dog", "match": 0.95},
            {"id": "5", "text": "a red dog", "match": 0.2},
            {"id": "6", "text": "a brown dog", "match": 0.7},
        ],
    }
    written = write_cleaned(
        lambda: [{**row, **row_captions}], tmp_path, threshold=0.5, with_images=False
    )
    assert (written.original.kept, written.original.dropped) == (2, 1)
    assert (written.synthetic.kept, written.synthetic.dropped) == (1, 2)
    (kept,) = lines(tmp_path / "captions.jsonl")
    assert kept["captions"] == ["A dog.", "a dog", "a brown dog"]
    assert kept["kinds"] == ["original", "original", "synthetic"]
    assert kept["split"] == "train"
    reasons = {r["caption"]: r["reason"] for r in lines(tmp_path / "dropped.jsonl")}
    assert reasons == {
        "...": "no words",
        "a dog": "the image has it already",
        "a red dog": "match 0.200 is below 0.5",
    }


def test_the_store_is_cleaned_from_its_cache(tmp_path: Path, model: Path) -> None:
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    options = EncodeOptions(features=("tokens",), store_dtype="float32")
    encode("scenes:5", tmp_path / "store", encoder=encoder, options=options)
    request = CapFiltRequest(
        out=tmp_path / "cleaned",
        store=tmp_path / "store",
        model=str(model),
        options=DecodingOptions(beams=1),
    )
    report = CapFiltJob(request).run()
    assert (report.images, report.encoded) == (5, 0)
    assert report.original.kept + report.original.dropped == 25
    fresh = CapFiltRequest(
        out=tmp_path / "fresh",
        targets=("scenes:5",),
        model=str(model),
        options=DecodingOptions(beams=1),
        dtype="float32",
    )
    CapFiltJob(fresh).run()
    cached = lines(tmp_path / "cleaned" / "decisions.jsonl")
    for a, b in zip(cached, lines(tmp_path / "fresh" / "decisions.jsonl"), strict=True):
        assert [c["text"] for c in a["synthetic"]] == [c["text"] for c in b["synthetic"]]
        found, expected = ([c["match"] for c in row["original"]] for row in (a, b))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["scenes:2", "--threshold", "1.5"], "--threshold is 1.5"),
        (["scenes:2", "--beams", "3", "--top-p", "0.9"], "has no effect on beam search"),
        (["scenes:2", "--ranker", "WRITER"], "lacks"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, model: Path, arguments: list[str], line: str
) -> None:
    writer = str(tiny.save_blip_captioner(tmp_path / "writer"))
    named = [writer if a == "WRITER" else a for a in arguments]
    result = run(*named, "--model", model, "--out", tmp_path / "out")
    assert result.exit_code in (1, 2)
    assert line in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.whole
def test_the_benchmark_of_quality_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["caption_quality", "--tiny"])
    caption_quality.main()
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ways = {f["setting"]: f for f in figures if f["benchmark"] == "caption-quality"}
    assert ways["greedy"]["nouns_right"] >= 0.95
    assert ways["greedy"]["CIDEr"] > 3 * ways["commonest training caption"]["CIDEr"]
    filtered = [f for f in figures if f["benchmark"] == "capfilt"]
    assert [f["threshold"] for f in filtered] == [0.3, 0.5, 0.7]
    assert filtered[1]["captions"] == 60
    assert filtered[1]["wrong_removed"] >= 0.9
    assert filtered[1]["right_kept"] >= 0.9
