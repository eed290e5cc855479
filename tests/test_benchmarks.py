"""Each benchmark runs at a tiny size, so that it cannot rot, and says what it must."""

import contextlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import scale
from retrieval_engine import open_encoder
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import TrainingError
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.testing.images import jpeg

pytestmark = pytest.mark.whole


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("encode", {"images_per_s", "plain_images_per_s", "ratio", "smallest_cosine"}),
        ("int8", {"dtype", "seconds_per_image", "text_to_image@1"}),
        ("full_size", {"open_s", "images_per_s", "pairs_per_s", "peak_bytes"}),
        ("heads", {"seed_s", "ours_until_seed_recall_s", "seed_test_recall", "our_test_recall"}),
        ("rerank", {"pairs_per_s", "ratio_as_shipped", "ratio_half", "largest_difference"}),
    ],
)
def test_it_runs_and_reports(
    name: str,
    figures: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--device", "cpu"])
    importlib.import_module(f"benchmarks.{name}").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines
    for line in lines:
        assert figures | {"commit", "cores", "cpu", "versions"} <= set(line)
    if name == "encode":
        assert min(line["smallest_cosine"] for line in lines) > 0.99


def test_the_gpu_benchmark_runs_every_part_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu"])
    importlib.import_module("benchmarks.gpu").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not [line for line in lines if line["benchmark"] == "gpu-failed"]
    done = [line["of"] for line in lines if line["benchmark"] == "gpu-part"]
    assert done == ["encode", "rerank", "caption", "recall", "texts", "head"]
    close = [line["smallest_cosine"] for line in lines if "smallest_cosine" in line]
    assert min(close) > 0.9999


def test_the_duplicates_benchmark_finds_all_of_few(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["duplicates", "--tiny", "--device", "cpu"])
    importlib.import_module("benchmarks.duplicates").main()
    line = json.loads(capsys.readouterr().out)
    assert line["photographs"] == 24
    assert (line["precision"], line["recall"]) == (1, 1)


def test_the_steady_benchmark_tells_the_model_s_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["steady", "--tiny"])
    importlib.import_module("benchmarks.steady").main()
    line = json.loads(capsys.readouterr().out)
    assert 0 < line["ideal"] <= 1
    assert min(line["overlap"], line["cpu_share"]) > 0  # eight pictures: noise may make them over 1


def test_the_decode_benchmark_tells_what_a_scale_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["decode", "--tiny"])
    importlib.import_module("benchmarks.decode").main()
    large, small = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert large["plain_cpu_ms"] > large["fast_cpu_ms"] > 0
    assert 0.95 < large["cosine_min"] <= large["cosine_mean"]
    assert large["size"] == [4000, 3000]
    assert small["size"] == [500, 375]


def test_the_filter_benchmark_runs_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["filters", "--tiny"])
    importlib.import_module("benchmarks.filters").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["way"]: line["found"] for line in lines if "where" in line}
    assert found["duckdb"] == found["pyarrow"]
    under = [line for line in lines if line["way"] in ("random", "clusters")]
    assert sorted({line["share"] for line in under}) == [0.001, 0.05, 0.5]
    assert all(line["recall_at_10"] >= 0.95 for line in under if line["way"] == "random")
    assert all(line["ratio"] > 0 for line in under)


def test_the_calibration_benchmark_keeps_and_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["calibration", "--tiny", "--device", "cpu"])
    importlib.import_module("benchmarks.calibration").main()
    itm, itc = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (itm["by"], itc["by"]) == ("itm", "itc")
    assert itm["nonsense_refused"] >= 0.9
    assert itm["true_top_hits_kept"] >= 0.9


def test_the_photo_benchmark_runs_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["photo", "--tiny", "--model", "vlre-tiny", "recall", "itm", "queries"]
    monkeypatch.setattr(sys, "argv", arguments)
    importlib.import_module("benchmarks.photo").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [line["benchmark"] for line in lines]
    assert kinds == ["photo-recall", *["photo-queries"] * 2, "photo-nonsense", *["photo-itm"] * 2]
    low, high = lines[-1]["R@1"][1:]
    assert low <= lines[-1]["R@1"][0] <= high
    assert lines[-1]["R@10"][0] > 90


@pytest.mark.slow
def test_the_devices_benchmark_gives_one_store_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["devices", "--tiny"])
    importlib.import_module("benchmarks.devices").main()
    speed, kills = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert speed["same_bytes"]
    assert kills["same_bytes"]
    assert (kills["failed"], kills["left"]) == (0, 0)
    assert speed["ratio_to_threads"] > 0


@pytest.mark.slow
def test_the_server_benchmark_runs_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--scenes", "20", "--seconds", "1", "--clients", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    importlib.import_module("benchmarks.serve").main()
    first, steady, crowd = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 < first["page_s"] <= first["search_s"]
    assert steady["p50_ms"] <= steady["p99_ms"]
    assert crowd["ratio"] == pytest.approx(crowd["batched_per_s"] / crowd["unbatched_per_s"], 0.05)


@pytest.mark.slow
def test_the_server_under_stress_gives_right_answers_or_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve_stress", "--scenes", "20", "--seconds", "1"])
    importlib.import_module("benchmarks.serve_stress").main()
    over, growing = map(json.loads, capsys.readouterr().out.splitlines())
    assert over["right"] > 0
    assert over["wrong"] == over["lost"] == over["ill"] == growing["failed"] == 0
    assert growing["found_after_s"] < 2


def test_every_command_is_measured_at_scale(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", "--tiny"])
    scale.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["command"] for line in lines] == list(scale.COMMANDS)
    assert all(line["s"] > 0 and line["peak_mb"] > 20 for line in lines)
    [found] = [line for line in lines if line["command"] == "search"]
    assert found["recall_at_10"] == 1


def test_ranges_for_int8_are_those_of_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["int8_ranges", "--tiny"])
    importlib.import_module("benchmarks.int8_ranges").main()
    ((digest, ranges),) = json.loads(capsys.readouterr().out).items()
    from retrieval_engine.models.blip import int8_backbone

    assert set(ranges) == set(int8_backbone._known()[digest])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 40 pictures with two captions each, a quarter of them of the split val."""
    folder = tmp_path_factory.mktemp("captioned")
    encoder = open_encoder("vlre-photo", device="cpu", dtype="float32")
    options = EncodeOptions(features=("itc", "tokens"))
    rows = []
    for number in range(40):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        split = "val" if number % 4 == 0 else "train"
        who, where = ("a dog", "a man", "a boy")[number % 3], ("the grass", "the snow")[number % 2]
        told = [f"{who} is running through {where}", f"{who} on {where} today"]
        rows += [{"image": f"{number}.jpg", "caption": t, "split": split} for t in told]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encode(f"captions:{folder / 'list.jsonl'}", folder / "store", encoder=encoder, options=options)
    return folder / "store"


def test_captions_with_more_words_leave_search_as_it_is(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    captioned: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "model"
    encoder = open_encoder("vlre-photo", device="cpu", dtype="float32")
    arguments = ["photo_words", "--store", captioned, "--model", "vlre-photo", "--out", out]
    short = ["--steps", "1", "--images", "6", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), *short])
    importlib.import_module("benchmarks.photo_words").main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["benchmark"] for line in lines] == ["photo-words"] * 2
    taught = open_encoder(str(out), device="cpu", dtype="float32")
    texts = ["a dog in the snow", "two children"]
    for name in ("itc", "pooled"):
        np.testing.assert_array_equal(
            taught.encode_texts(texts, [name])[name], encoder.encode_texts(texts, [name])[name]
        )
    assert taught.spec.part("vision") == encoder.spec.part("vision")
    assert json.loads((out / "word_counts.json").read_text())["a"] >= 60
    captioner: Any = open_captioner(str(out), device="cpu", dtype="float32")
    before: Any = open_captioner("vlre-photo", device="cpu", dtype="float32")
    own, old = (dict(c.model.text_decoder.named_parameters()) for c in (captioner, before))
    changed = {name for name in own if not torch.equal(own[name], old[name])}
    assert "cls.predictions.bias" in changed
    assert any("crossattention" in name for name in changed)
    assert all("attention" in name or "cls.predictions" in name for name in changed)


def test_a_killed_run_of_the_reward_goes_on_as_if_it_had_not_been(
    captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = importlib.import_module("benchmarks.photo_words")
    monkeypatch.setattr(recipe, "SAVE_EVERY", 1)

    def run(out: Path, *, steps: int) -> Any:
        """A run of two steps, killed after so many."""
        out.mkdir(exist_ok=True)
        asked = {"model": "vlre-photo", "store": captioned, "images": 4, "share": 0.8, "out": out}
        words = recipe.Words(recipe.Recipe(steps=2, **asked), 3)
        words.adjust(0.8)
        words.scorer = SimpleNamespace(scores=lambda own, i: [len(set(text)) for text in own])
        step, left = words._step, iter(range(steps))

        def until_killed(images: list[int]) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return step(images)

        words._step = until_killed
        with contextlib.suppress(KeyboardInterrupt):
            words.reward()
        return words.kept()

    whole = run(tmp_path / "whole", steps=2)
    run(tmp_path / "killed", steps=1)
    again = run(tmp_path / "killed", steps=1)
    untaught = run(tmp_path / "untaught", steps=0)
    assert sum((whole[name] != value).any() for name, value in untaught.items()) > 10
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "whole" / "run-3.pt", tmp_path / "other")
    with pytest.raises(TrainingError, match="other options"):
        run(tmp_path / "other", steps=2)
