"""Probabilities of a match: fitted right, honest on held-out pairs, and used by searches."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.calibration import MORE_NONSENSE
from retrieval_engine import Engine, open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import EvaluationError, FingerprintMismatch, UsageError
from retrieval_engine.metrics.calibration import fit_logistic, reliability
from retrieval_engine.search.calibrate import CalibrationSettings, calibrate
from retrieval_engine.search.matching import FILE, MatchBy, load_calibration, save_calibration
from tests.small_store import vectors, write_store
from tests.test_duplicates import scene


def test_the_fit_finds_what_made_the_data() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2)) * (1, 5) + (0.3, -2)
    chance = 1 / (1 + np.exp(-(2 * x[:, 0] - 0.4 * x[:, 1] - 1)))
    match = rng.random(len(x)) < chance
    fit = fit_logistic(x, match, np.ones(len(x)))
    assert fit.weights == pytest.approx((2, -0.4), abs=0.1)
    assert fit.bias == pytest.approx(-1, abs=0.1)
    kept = reliability(fit(x), match, np.ones(len(x)))
    assert kept.ece < 0.02
    assert kept.brier == pytest.approx(float(np.mean((fit(x) - match) ** 2)))


def test_weights_count_as_so_many_rows() -> None:
    rng = np.random.default_rng(1)
    x, match = rng.normal(size=(50, 2)), rng.random(50) < 0.5
    weight = rng.integers(1, 4, 50)
    rows = np.repeat(np.arange(50), weight)
    one = fit_logistic(x, match, weight.astype(float))
    p, q = one(x), one(x)[rows]
    a = reliability(p, match, weight.astype(float))
    b = reliability(q, match[rows], np.ones(len(rows)))
    assert a.ece == pytest.approx(b.ece)
    assert a.brier == pytest.approx(b.brier)


def test_the_error_is_the_mean_gap_of_plain_python() -> None:
    p = np.array([0.05, 0.08, 0.55, 0.95, 1.0])
    match = np.array([False, True, True, True, False])
    found = reliability(p, match, np.ones(5))
    bins = {0: [0, 1], 5: [2], 9: [3, 4]}
    gap = sum(len(r) / 5 * abs(p[r].mean() - match[r].mean()) for r in bins.values())
    assert found.ece == pytest.approx(gap)
    assert [b for b, share in enumerate(found.weight) if share] == [0, 5, 9]


def test_pairs_that_cannot_be_told_apart_stay_at_a_half_and_separable_ones_stay_finite() -> None:
    match = np.arange(40) % 2 == 0
    same = fit_logistic(np.zeros((40, 1)), match, np.ones(40))
    assert same(np.zeros((1, 1)))[0] == pytest.approx(0.5)
    apart = fit_logistic(match[:, None] * 2.0, match, np.ones(40))
    assert np.isfinite(apart.weights).all()
    assert apart(np.array([[2.0]]))[0] > 0.9
    with pytest.raises(EvaluationError, match="pairs that match and pairs that do not"):
        fit_logistic(np.zeros((4, 1)), np.ones(4, bool), np.ones(4))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matching") / "store"
    options = EncodeOptions(features=("itc", "pooled", "tokens"), worker_kind="serial")
    encoder = open_encoder("vlre-tiny", device="cpu")
    encode("scenes:120?seed=77&captions=detailed", path, encoder=encoder, options=options)
    return path


@pytest.mark.parametrize("by", list(MatchBy))
def test_held_out_pairs_are_told_apart(by: MatchBy, store: Path) -> None:
    opened = open_store(store)
    made = calibrate(opened, open_encoder("vlre-tiny", device="cpu"), CalibrationSettings(by=by))
    assert made.by is by
    assert made.kept > 0.85
    assert made.refused > 0.7
    assert made.held_out is not None
    assert made.held_out.ece < 0.15


def test_a_calibration_is_written_read_and_held_to_its_encoder(store: Path, tmp_path: Path) -> None:
    images, captions = vectors(3, 60, 1)
    write_store(tmp_path / "s", images, captions, np.arange(60))
    opened = open_store(tmp_path / "s")
    made = calibrate(opened, None)
    assert made.by is MatchBy.ITC
    assert load_calibration(opened) is None
    save_calibration(made, opened.path / FILE)
    read = load_calibration(opened)
    assert read is not None
    x = np.array([[0.2, 1.0], [0.8, 3.0]])
    np.testing.assert_array_equal(read.fit(x), made.fit(x))
    (store / FILE).write_bytes((opened.path / FILE).read_bytes())
    with pytest.raises(FingerprintMismatch, match="calibration"):
        load_calibration(open_store(store))
    (store / FILE).write_text("{}")
    with pytest.raises(EvaluationError, match="cannot read"):
        load_calibration(open_store(store))
    for name, value in (("weights", [1.0]), ("bias", math.nan), ("format", 2), ("by", "eye")):
        other = made.to_json() | {"fingerprint": open_store(store).fingerprint, name: value}
        (store / FILE).write_text(json.dumps(other))
        with pytest.raises(EvaluationError, match=r"cannot read .*(three finite|format is 2|eye)"):
            load_calibration(open_store(store))
    (store / FILE).unlink()
    assert opened.verify() == []


def test_too_few_images_and_no_cross_encoder_are_said(tmp_path: Path) -> None:
    images, captions = vectors(3, 12, 1)
    write_store(tmp_path / "s", images, captions, np.arange(12))
    with pytest.raises(EvaluationError, match="needs twenty images with captions"):
        calibrate(open_store(tmp_path / "s"))
    with pytest.raises(UsageError, match="no cross-encoder"):
        calibrate(open_store(tmp_path / "s"), None, CalibrationSettings(by=MatchBy.ITM))


def test_nonsense_matches_nothing_and_sense_does(store: Path) -> None:
    engine = Engine(store=store, device="cpu")
    refused = engine.search(list(MORE_NONSENSE), k=3, min_match=0.5)
    assert np.mean([not hits for hits in refused]) >= 0.9
    assert all(hits.best_match is not None and 0 <= hits.best_match < 1 for hits in refused)
    plain = engine.search("a dog", k=5)
    kept = engine.search("a dog", k=5, min_match=0.5)
    assert kept
    assert {hit.item_id for hit in kept} <= {hit.item_id for hit in plain}
    assert all(hit.match is not None and hit.match >= 0.5 for hit in kept)
    assert [hit.rank for hit in kept] == list(range(1, len(kept) + 1))
    assert plain.best_match is None
    with pytest.raises(UsageError, match="`min_match` is 2"):
        engine.search("a dog", min_match=2)
    with pytest.raises(UsageError, match="`min_match` matches words"):
        engine.search(np.ones(64, np.float32), min_match=0.5)


def test_states_that_are_not_stored_are_made_for_the_top(store: Path, tmp_path: Path) -> None:
    options = EncodeOptions(features=("itc",), worker_kind="serial")
    encoder = open_encoder("vlre-tiny", device="cpu")
    source = "scenes:120?seed=77&captions=detailed"
    encode(source, tmp_path / "s", encoder=encoder, options=options)
    with_them = Engine(store=store, device="cpu").search("a dog", k=3, min_match=0.01)
    without = Engine(store=tmp_path / "s", device="cpu").search("a dog", k=3, min_match=0.01)
    assert [h.item_id for h in with_them] == [h.item_id for h in without]
    assert [h.match for h in with_them] == pytest.approx([h.match for h in without], abs=0.02)


def test_the_commands_calibrate_and_say_that_nothing_matches(store: Path) -> None:
    made = CliRunner().invoke(main, ["calibrate", "--store", str(store), "--device", "cpu"])
    assert made.exit_code == 0, made.stderr
    assert "ECE" in made.stdout
    assert (store / FILE).is_file()
    asked = ["search", MORE_NONSENSE[1], "--min-match", ".5", "--store", str(store)]
    found = CliRunner().invoke(main, [*asked, "--device", "cpu"])
    assert found.exit_code == 0, found.stderr
    assert found.stdout == ""
    assert re.search(
        r"nothing matches 'a committee of square roots' with .* the best has 0\.", found.stderr
    )
    asked = ["search", "a dog", "--min-match", ".5", "--store", str(store), "--json", "-k", "2"]
    hits = [json.loads(line) for line in CliRunner().invoke(main, asked).stdout.splitlines()]
    assert hits
    assert all(hit["match"] >= 0.5 for hit in hits)
    (store / FILE).unlink()


def test_distinct_hits_show_a_picture_once(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        scene(number).save(folder / f"{number}.png")
        scene(number).crop((0, 0, 310, 234)).save(folder / f"{number}-copy.jpg", quality=70)
    encoder = open_encoder("vlre-tiny", device="cpu")
    encode(
        f"folder:{folder}",
        tmp_path / "s",
        encoder=encoder,
        options=EncodeOptions(worker_kind="serial"),
    )
    engine = Engine(store=tmp_path / "s", device="cpu")
    plain = engine.search("a boat", k=10)
    assert len(plain) == 10
    distinct = engine.search("a boat", k=4, distinct=True)
    numbers = [hit.item_id[0] for hit in distinct]
    assert len(distinct) == len(set(numbers)) == 4
    first = [
        h.item_id
        for i, h in enumerate(plain)
        if h.item_id[0] not in {o.item_id[0] for o in plain[:i]}
    ]
    assert [hit.item_id for hit in distinct] == first[:4]
    assert len(engine.search("a boat", k=10, distinct=True)) == 5
    asked = ["search", "a boat", "--distinct", "--store", str(tmp_path / "s"), "--paths", "-k", "9"]
    found = CliRunner().invoke(main, asked)
    assert len(found.stdout.splitlines()) == 5, found.stderr
