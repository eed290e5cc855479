"""The collapse report: what it calls collapsed, what it says helps, and that it looks at pictures."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import collapse as benchmark
from retrieval_engine.caption.collapse import WAYS, Way, study_collapse, verdict
from retrieval_engine.caption.collapse_page import write_collapse_page
from retrieval_engine.cli import main
from retrieval_engine.errors import EvaluationError
from retrieval_engine.metrics.diversity import diversity
from tests import tiny

VARIED = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ["dog", "car", "cat"]]


def way(captions: Sequence[str], name: str = "greedy") -> Way:
    words = [caption.split() for caption in captions]
    return Way(name=name, captions=captions, varied=diversity(words), cider=0.5)


@pytest.mark.parametrize(
    ("captions", "gain", "said"),
    [
        (["a dog"] * 5 + ["a cat"], 0.01, "Collapsed: 83% of greedy .* does not look.* training"),
        (["a dog"] * 5 + ["a cat"], 0.80, "Collapsed: .* although the decoder looks: .* 0.80 nats"),
        (["a dog a dog a dog", *VARIED], 0.8, "Repetition: .* come twice"),
        (VARIED, 0.80, "No collapse: 100% of greedy captions are different"),
        (VARIED, 0.01, "No collapse: .* It hardly looks"),
    ],
)
def test_the_verdict_says_what_is_wrong_and_what_helps(
    captions: Sequence[str], gain: float, said: str
) -> None:
    found = verdict([way(captions), way(VARIED, "3 beams")], gain)
    assert re.search(said, found), found


def test_a_random_captioner_is_blind_and_a_trained_one_looks(tmp_path: Path) -> None:
    random = study_collapse(
        str(tiny.save_blip_captioner(tmp_path / "m")),
        ["scenes:9?seed=4"],
        store=tmp_path / "none",
        limit=8,
        device="cpu",
    )
    trained = study_collapse(
        "vlre-tiny", ["scenes:9?seed=4"], store=tmp_path / "none", limit=8, device="cpu"
    )
    assert abs(random.gain) < 0.1
    assert trained.gain > 1
    assert trained.loss < random.loss
    assert trained.entropy < random.entropy
    assert [one.name for one in trained.ways] == list(WAYS)
    assert len(trained.images) == 8
    assert sum(band.share for band in trained.bands) == pytest.approx(1)
    # What is common is less of a surprise, and the picture helps with what is rare.
    assert trained.bands[0].loss < trained.bands[1].loss
    page = write_collapse_page(trained, tmp_path / "page").read_text()
    assert trained.verdict.replace("'", "&#39;") in page
    assert page.count("data:image/jpeg") == 8
    for one in trained.ways:
        assert one.captions[0] in page


def test_the_command_says_it_in_options(tmp_path: Path) -> None:
    model = tiny.save_blip_captioner(tmp_path / "m")
    words = ["study", "collapse", "scenes:9?seed=4", "--model", str(model), "--limit", "8"]
    result = CliRunner().invoke(main, [*words, "--store", str(tmp_path / "none"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["ways"]) == set(WAYS)
    assert len(found["loss_by_frequency"]) >= 2
    with pytest.raises(EvaluationError, match="3 pictures with captions are too few"):
        study_collapse(str(model), ["scenes:3?seed=4"], store=tmp_path / "none", device="cpu")


@pytest.mark.whole
def test_the_benchmark_trains_once_and_prints_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["collapse", "--tiny", "--out", str(tmp_path), "--shipped", "vlre-tiny"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["setting"] for line in first] == [*benchmark.SETTINGS, "shipped"]
    made = (tmp_path / "scenes-ours" / "model.safetensors").stat().st_mtime_ns
    benchmark.main()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == first
    assert (tmp_path / "scenes-ours" / "model.safetensors").stat().st_mtime_ns == made
    assert first[-1]["gain_of_the_picture"] > first[0]["gain_of_the_picture"]
