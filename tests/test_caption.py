"""`vlre caption`: from the cache, over folders with broken pictures, killed and resumed."""

import csv
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from retrieval_engine.caption import CaptionJob, CaptionRequest, DecodingOptions
from retrieval_engine.caption.caption_run import CaptionRun
from retrieval_engine.caption.explain import lit
from retrieval_engine.caption.ranking import Judge, combined
from retrieval_engine.caption.without_files import caption_given
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import UsageError, VlreError
from retrieval_engine.evaluate.predictions import read_captions
from retrieval_engine.models import open_encoder
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.sources import open_source
from retrieval_engine.store import open_store
from retrieval_engine.testing.images import encoded, jpeg, photo
from tests import tiny, tiny_blip2
from tests.broken_images import broken_images
from tests.children import held_at, in_child, vlre
from tests.test_caption_decoding import save_both

GREEDY = DecodingOptions(beams=1, max_length=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP with retrieval and captioning heads, as `vlre-tiny` is."""
    root = tmp_path_factory.mktemp("models")
    retrieval = tiny.save_blip(root / "retrieval")
    return save_both(root / "both", retrieval, tiny.save_blip_captioner(root / "writer", seed=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        (path / f"{i:03}.png").write_bytes(encoded(photo(i, (40 + i, 32)), "PNG"))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, model: Path, folder: Path) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    options = EncodeOptions(features=("itc", "tokens"), store_dtype="float32", limit=8)
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    encode(f"folder:{folder}", path, encoder=encoder, options=options)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["caption", *map(str, arguments)])


def captions(request: CaptionRequest) -> tuple[dict[str, str], CaptionJob]:
    job = CaptionJob(request)
    return {row["image"]: row["caption"] for row in job.run()}, job


def test_the_cache_writes_what_fresh_pictures_do(model: Path, folder: Path, store: Path) -> None:
    common: dict[str, Any] = {"model": str(model), "options": GREEDY, "dtype": "float32"}
    nowhere = folder / "no-store"
    fresh, job = captions(CaptionRequest(targets=(str(folder),), store=nowhere, **common))
    assert (job.captioned, job.encoded) == (12, 12)
    assert len(set(fresh.values())) > 1
    cached, job = captions(CaptionRequest(store=store, **common))
    assert (job.captioned, job.encoded) == (8, 0)
    assert cached == {name: fresh[name] for name in list(fresh)[:8]}
    both, job = captions(CaptionRequest(targets=(str(folder),), store=store, **common))
    assert (job.captioned, job.encoded) == (12, 4), "content tells which states are stored"
    assert both == fresh


def test_auto_follows_the_arithmetic_of_the_store(model: Path, store: Path) -> None:
    _, job = captions(CaptionRequest(store=store, model=str(model), options=GREEDY))
    assert (job.encoded, job.notes) == (0, [])


def test_a_program_s_images_are_captioned_as_files_are(
    model: Path, folder: Path, store: Path
) -> None:
    written, _ = captions(CaptionRequest(store=store, model=str(model), options=GREEDY))
    files = sorted(folder.glob("*.png"))[:8]
    held = [np.asarray(Image.open(file)) for file in files[:4]]
    found = caption_given(
        [*held, *files[4:]], 1, model=str(model), store=open_store(store), how=GREEDY
    )
    assert [row[0] for row in found] == [written[file.name] for file in files]


def test_another_tower_s_states_are_never_used(
    tmp_path: Path, model: Path, store: Path, folder: Path
) -> None:
    other = str(tiny.save_blip_captioner(tmp_path / "other", seed=9))
    found, job = captions(CaptionRequest(store=store, model=other, options=GREEDY))
    assert job.encoded == 8
    assert any("of another vision tower" in note for note in job.notes)
    alone, _ = captions(
        CaptionRequest(targets=(str(folder),), model=other, options=GREEDY, dtype="float32")
    )
    assert found == {name: alone[name] for name in found}


@pytest.mark.parametrize("save", [tiny_blip2.save_blip2_opt, tiny_blip2.save_blip2_t5])
def test_blip2_shares_states_with_its_retriever(tmp_path: Path, folder: Path, save: Any) -> None:
    model = str(save(tmp_path / "model"))
    encoder = open_encoder(model, device="cpu", dtype="float32")
    options = EncodeOptions(features=("tokens",), store_dtype="float32")
    encode(f"folder:{folder}", tmp_path / "store", encoder=encoder, options=options)
    cached, job = captions(
        CaptionRequest(store=tmp_path / "store", model=model, options=GREEDY, batch_size=5)
    )
    assert (job.captioned, job.encoded) == (12, 0)
    fresh, _ = captions(
        CaptionRequest(targets=(str(folder),), model=model, options=GREEDY, dtype="float32")
    )
    assert cached == fresh


def test_a_single_picture_prints_its_caption(model: Path, folder: Path) -> None:
    result = run(folder / "003.png", "--model", model, "--beams", 1, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    expected, _ = captions(
        CaptionRequest(
            targets=(str(folder),),
            model=str(model),
            options=DecodingOptions(beams=1),
            dtype="float32",
        )
    )
    assert result.stdout == expected["003.png"] + "\n"
    both = run(folder / "003.png", folder, "--model", model, "--beams", 1, "--dtype", "float32")
    lines = both.stdout.splitlines()
    assert lines[0].split("\t")[1] == lines[4].split("\t")[1] == expected["003.png"]
    assert len(lines) == 13


def test_ranking_adds_the_matching_head_to_the_likelihood(
    model: Path, folder: Path, store: Path
) -> None:
    options = ["--model", model, "--sample", "--top-k", 50, "--num-captions", 4, "--json"]
    plain = run("--store", store, *options)
    ranked = run("--store", store, *options, "--rank")
    assert ranked.exit_code == 0, ranked.output
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    gallery = open_store(store).gallery()
    tokens = gallery.images("tokens")
    lines = zip(plain.stdout.splitlines(), ranked.stdout.splitlines(), strict=True)
    for number, (before, after) in enumerate(json.loads(f"[{a},{b}]") for a, b in lines):
        assert sorted(before["captions"]) == sorted(after["captions"])
        pairs = np.array([(number, j) for j in range(4)])
        likely = encoder.matcher().score_pairs(
            lambda i: tokens[i], after["captions"], pairs, as_probability=True
        )
        np.testing.assert_allclose(after["matches"], likely, atol=2e-5)
        both = combined(after["captions"], after["scores"], likely.tolist())
        assert (np.diff(both) < 1e-4).all(), both
        assert after["caption"] == after["captions"][0]


@pytest.mark.parametrize(
    ("scores", "matches", "first"),
    [
        ([-1.0, -1.1], [0.5, 0.9], 1),  # log odds of 2.2 outweigh a tenth
        ([-1.0, -1.1], [0.5, 0.6], 0),  # those of .4 do not
        ([-1.0, -1.0], [1.0, 0.0], 0),
        ([-2.0, -1.0], [1.0, 1.0], 1),
    ],
)
def test_a_better_match_outweighs_a_likelier_sentence(
    scores: list[float], matches: list[float], first: int
) -> None:
    found = combined(["a dog", "a cat"], scores, matches)
    assert np.isfinite(found).all()
    assert int(np.argmax(found)) == first


def test_of_equals_the_longer_sentence_is_chosen() -> None:
    short, long = combined(["a dog", "a dog on the grass"], [-1.0, -1.0], [0.5, 0.5])
    assert long > short
    usual = combined(["a dog runs on the green grass in a park"], [-1.0], [0.5])
    assert usual == [-1.0]


def test_every_form_of_output_can_be_read_again(tmp_path: Path, model: Path, folder: Path) -> None:
    arguments = [folder, "--model", model, "--beams", 2, "--num-captions", 2, "--dtype", "float32"]
    for name in ("a.jsonl", "a.csv", "a.json"):
        result = run(*arguments, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == sorted(p.name for p in folder.glob("*.png"))
    expected = {row["image"]: [row["caption"]] for row in rows}
    for name in ("a.jsonl", "a.csv", "a.json"):
        assert read_captions(tmp_path / name).captions == expected
    with (tmp_path / "a.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["caption_2"] for row in table] == [row["captions"][1] for row in rows]
    coco = json.loads((tmp_path / "a.json").read_text())
    assert coco[0] == {"image_id": "000.png", "caption": rows[0]["caption"]}
    items = list(open_source(f"captions:{tmp_path}/a.jsonl?images={folder}").items())
    assert [[c.text for c in item.captions] for item in items] == [r["captions"] for r in rows]
    settings = json.loads((tmp_path / "a.jsonl.run.json").read_text())
    assert settings["run"] == rows[0]["run"]
    assert settings["decoding"]["beams"] == 2


def test_coco_numbers_come_from_the_source_or_the_name(tmp_path: Path, model: Path) -> None:
    name = "COCO_val2014_000000391895.jpg"
    (tmp_path / name).write_bytes(jpeg(1))
    out = tmp_path / "r.json"
    assert run(tmp_path, "--model", model, "--beams", 1, "--out", out).exit_code == 0
    assert json.loads(out.read_text())[0]["image_id"] == 391895


def test_txt_beside_leaves_what_is_there(tmp_path: Path, model: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "2.txt").write_text("my own words\n")
    arguments = [tmp_path, "--model", model, "--beams", 1, "--txt-beside"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "3 captioned" in result.stderr
    assert "1 had captions" in result.stderr
    assert (tmp_path / "2.txt").read_text() == "my own words\n"
    written = {p.name: p.read_text() for p in sorted(tmp_path.glob("*.txt"))}
    assert set(written) == {"0.txt", "1.txt", "2.txt", "3.txt"}
    assert "0 captioned" in run(*arguments).stderr
    both = run(*arguments, "--out", tmp_path / "out.jsonl")
    assert "4 images had a .txt" in both.stderr
    assert {p.name: p.read_text() for p in sorted(tmp_path.glob("*.txt"))} == written
    scenes = run("scenes:2", "--model", model, "--txt-beside")
    assert scenes.exit_code == 2
    assert "no file of its own" in scenes.stderr


def test_other_settings_and_foreign_files_are_refused(
    tmp_path: Path, model: Path, folder: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [folder, "--model", model, "--out", out, "--limit", 3]
    assert run(*arguments, "--beams", 1).exit_code == 0
    before = out.read_bytes()
    refused = run(*arguments, "--beams", 2)
    assert refused.exit_code == 2
    assert "other settings" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert out.read_bytes() == before
    assert run(*arguments, "--beams", 2, "--overwrite").exit_code == 0
    assert len(out.read_text().splitlines()) == 3
    mine = tmp_path / "mine.jsonl"
    for text in ('{"precious": 1}\n', "no json\n", '{"image": "a.jpg", "caption": "x"}\n'):
        mine.write_text(text)
        refused = run(folder, "--model", model, "--out", mine)
        assert refused.exit_code == 2
        assert mine.read_text() == text
    assert run(folder, "--model", model, "--out", tmp_path / "x.txt").exit_code == 2


def test_a_torn_line_is_written_again(tmp_path: Path, model: Path, folder: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [folder, "--model", model, "--out", out, "--beams", 1, "--batch-size", 5]
    assert run(*arguments).exit_code == 0
    whole = out.read_text()
    out.write_text(whole[: len(whole) * 2 // 3])
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert out.read_text() == whole
    assert "0 captioned" in run(*arguments).stderr


def test_a_full_disk_is_told_by_the_file_s_name(tmp_path: Path, model: Path, folder: Path) -> None:
    """Closing the file must not say it again without its name."""
    out = tmp_path / "full.jsonl"
    command = vlre("caption", folder, "--model", model, "--out", out, "--beams=1")
    ended = in_child(command, file_bytes=700)
    assert ended.code == 1, ended.output
    assert f"cannot write {out}: File too large" in ended.output
    ended.check_told()


def test_a_store_is_captioned_by_its_own_model_where_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that ships as the default is for those who have no store."""
    monkeypatch.delenv("VLRE_MODEL")
    store, out = tmp_path / "store", tmp_path / "out.jsonl"
    options = EncodeOptions(features=("tokens",))
    encode("scenes:3?seed=1", store, encoder=open_encoder("vlre-tiny"), options=options)
    result = run("--store", store, "--out", out, "--beams", 1)
    assert result.exit_code == 0, result.output
    assert "3 captioned, 0 encoded" in result.stderr
    said = json.loads(Path(f"{out}.run.json").read_text())
    assert said["model"] == "vlre-tiny", said


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="nothing can be made there")
def test_a_file_that_cannot_be_made_is_not_one_that_others_write(model: Path, folder: Path) -> None:
    result = run(folder, "--model", model, "--out", "/proc/x.jsonl")
    assert result.exit_code == 1
    assert "cannot write /proc/x.jsonl: No such file or directory" in result.stderr


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    from retrieval_engine.caption.caption_writer import CaptionWriter

    with (
        CaptionWriter(tmp_path / "a.jsonl", {}, "run"),
        pytest.raises(VlreError, match="is being written by process"),
    ):
        CaptionWriter(tmp_path / "a.jsonl", {}, "run")


def test_killed_and_restarted_every_good_picture_once_every_broken_one_told(
    tmp_path: Path, model: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(48):
        (pictures / f"{i:04}.jpg").write_bytes(jpeg(i))
    for broken in broken_images():
        (pictures / f"broken-{broken.name}").write_bytes(broken.data)
    listed = [item.id for item in open_source(f"folder:{pictures}").items()]
    bad = {name for name in listed if name.startswith("broken-")}
    assert len(bad) >= 8

    def captioning(out: Path) -> Callable[[], None]:
        sampling = ("--sample", "--num-captions", 2, "--batch-size", 4, "--dtype", "float32")
        return vlre("caption", pictures, "--model", model, "--out", out, *sampling)

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    begun = lambda: killed.exists() and killed.read_bytes().count(b"\n") >= 12  # noqa: E731
    ended = in_child(held_at("0036.jpg", captioning(killed)), kill_when=begun)
    assert ended.code == -signal.SIGKILL, ended.output
    before = killed.read_bytes()
    assert before.count(b"\n") < len(listed) - len(bad)
    assert in_child(captioning(killed)).code == 3
    assert killed.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    sampling = ("--sample", "--num-captions", 2, "--dtype", "float32")
    again = run(pictures, "--model", model, "--out", whole, *sampling)
    assert again.exit_code == 3
    rows = [json.loads(line) for line in killed.read_text().splitlines()]
    assert [row["image"] for row in rows] == [name for name in listed if name not in bad]
    fresh = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["captions"] for row in rows] == [row["captions"] for row in fresh]
    for file in (killed, whole):
        ledger = file.with_name(file.name + ".failures.jsonl").read_text().splitlines()
        assert {json.loads(line)["item_id"] for line in ledger} == bad
        assert len(ledger) == len(bad)


def test_a_mended_picture_leaves_the_ledger(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(b"")
    out = tmp_path / "out.csv"
    arguments = [tmp_path, "--model", model, "--beams", 1, "--out", out]
    failed = run(*arguments)
    assert failed.exit_code == 3
    assert "failed: b.jpg: " in failed.stderr
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    assert run(*arguments).exit_code == 0
    assert not out.with_name("out.csv.failures.jsonl").exists()
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["scenes:2", "--temperature", "0.5"], 2, "has no effect on beam search"),
        (["scenes:2", "--overwrite"], 2, "--overwrite needs --out"),
        (["scenes:2", "--ranker", "x"], 2, "no effect without --rank"),
        (["scenes:2", "--explain", "x.png"], 2, "one image"),
        (["no-such-thing"], 2, "neither a directory nor a source"),
        ([], 1, "no store at"),
        (["scenes:2", "--model", "no-such-model"], 1, "no checkpoint"),
        (["scenes:2", "--max-length", "3"], 2, "leaves no room"),
        (["scenes:2", "--rank", "--ranker", "no-such-model"], 1, "no checkpoint"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, model: Path, arguments: list[str], code: int, line: str
) -> None:
    named = [] if "--model" in arguments else ["--model", str(model)]
    result = run(*arguments, *named, "--store", tmp_path / "store")
    assert result.exit_code == code, result.output
    assert line in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_retrieval_checkpoint_writes_no_captions(tmp_path: Path) -> None:
    path = tiny_blip2.save_blip2(tmp_path / "itm")
    result = run("scenes:2", "--model", path, "--store", tmp_path / "store")
    assert result.exit_code == 1
    assert "writes no captions" in result.stderr


def test_ranking_without_a_matching_head_says_what_to_do(tmp_path: Path) -> None:
    writer = tiny.save_blip_captioner(tmp_path / "writer")
    result = run("scenes:2", "--model", writer, "--store", tmp_path / "store", "--rank")
    assert result.exit_code == 2
    assert "--ranker" in result.stderr


def test_explain_draws_a_map_for_each_word(tmp_path: Path, model: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "why.png"
    arguments = [folder / "003.png", "--model", model, "--beams", 1, "--dtype", "float32"]
    result = run(*arguments, "--explain", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == run(*arguments).stdout
    from PIL import Image

    with Image.open(out) as image:
        assert min(image.size) > 200
    assert run(*arguments, "--explain", tmp_path / "why.nothing").exit_code == 2
    blip2 = tiny_blip2.save_blip2_opt(tmp_path / "opt")
    refused = run(folder / "003.png", "--model", blip2, "--explain", out)
    assert refused.exit_code == 2
    assert "Q-Former" in refused.stderr


def test_relevance_finds_what_decides_the_word(model: Path) -> None:
    """Taking the image token with the highest relevance away hurts a word more than another."""
    import torch

    captioner: Any = open_captioner(str(model), device="cpu", dtype="float32")
    torch.manual_seed(0)
    tokens = torch.randn(1, 17, 32)
    ids = [10, 20, 30]
    maps = captioner.relevance(tokens, "a picture of ", ids)
    assert [word for word, _ in maps] == captioner.tokenizer.convert_ids_to_tokens(ids)
    logits, _ = captioner.begin(tokens, "a picture of ")
    before = logits.log_softmax(-1)[0, 10].item()

    def loss_without(place: int) -> Any:
        fewer = torch.cat((tokens[:, : place + 1], tokens[:, place + 2 :]), dim=1)
        after, _ = captioner.begin(fewer, "a picture of ")
        return before - after.detach().log_softmax(-1)[0, 10].item()

    seen = maps[0][1].ravel()
    losses = np.array([loss_without(place) for place in range(16)])
    strong, weak = seen.argsort()[-4:], seen.argsort()[:4]
    assert (seen >= 0).all()
    assert losses[strong].mean() > losses[weak].mean()


def test_lit_pictures_are_bright_where_the_map_is_high() -> None:
    image = photo(1, (40, 40))
    seen = np.zeros((4, 4), dtype=np.float32)
    seen[0, 0] = 2.0
    shown = lit(image, seen).astype(float)
    plain = np.asarray(image, dtype=float)
    assert abs(shown[2:6, 2:6] - plain[2:6, 2:6]).mean() < 10
    assert shown[25:, 25:].mean() < 0.45 * plain[25:, 25:].mean()


def test_requests_refuse_what_has_no_effect() -> None:
    with pytest.raises(UsageError, match="one image"):
        CaptionRequest(explain=Path("x.png"))


@pytest.mark.whole
def test_the_benchmark_runs_at_a_tiny_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import caption as benchmark

    monkeypatch.setattr(sys, "argv", ["caption", "--tiny", "--dtypes", "float32"])
    benchmark.main()
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["beams"] for line in figures] == [1, 3]
    for line in figures:
        assert line["same_captions"] == 1.0
        assert line["cpu_ratio"] > 1


def test_a_run_that_orders_nothing_keeps_its_name(model: Path) -> None:
    writer = open_captioner(str(model), device="cpu", dtype="float32")
    judge = Judge(open_encoder(str(model), device="cpu", dtype="float32"))
    several = DecodingOptions(beams=2, num_captions=2)
    assert "match_weight" not in CaptionRun(writer, several).settings
    assert "match_weight" not in CaptionRun(writer, GREEDY, judge=judge).settings
    ordered = CaptionRun(writer, several, judge=judge)
    assert ordered.settings["match_weight"] == 0.15
    assert ordered.name != CaptionRun(writer, several).name
