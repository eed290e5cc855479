"""Near-duplicates: copies are found whatever was done to them, and other pictures are not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from retrieval_engine import build_index, open_encoder, open_store
from retrieval_engine.cli import main
from retrieval_engine.duplicates import DuplicateReport, DuplicateSettings, find_duplicates
from retrieval_engine.duplicates.candidates import near_pairs, unit
from retrieval_engine.duplicates.duplicate_page import render_duplicates
from retrieval_engine.duplicates.groups import joined
from retrieval_engine.duplicates.proof import agreement, thumbnail
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import UsageError
from retrieval_engine.evaluate import RecallSettings, evaluate_store
from retrieval_engine.index import ExactIndex
from retrieval_engine.records import Modality
from retrieval_engine.sources import read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.testing.vector_store import write_store
from retrieval_engine.train.finetune.captioned import load_sets
from retrieval_engine.train.finetune.crossing import crossing_notes
from tests import tiny

SIZE = (320, 240)


def scene(number: int) -> Image.Image:
    """A drawn scene, made large, with the grain of a photograph."""
    grain = np.random.default_rng(number).integers(-6, 7, (SIZE[1], SIZE[0], 1))
    large = np.asarray(
        decode(read_bytes(f"scenes:5/{number}")).resize(SIZE, Image.Resampling.BICUBIC), np.int64
    )
    return Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda p: p.resize((160, 120)),
    "squashed": lambda p: p.resize((224, 224)),
    "cut-right": lambda p: p.crop((0, 0, 304, 240)),
    "cut-around": lambda p: p.crop((16, 12, 304, 228)),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.35),
    "grey": lambda p: p.convert("L").convert("RGB"),
    "all": lambda p: (
        ImageEnhance.Brightness(p.crop((9, 12, 313, 240))).enhance(1.2).resize((150, 115))
    ),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_the_picture_in_both_directions(kind: str) -> None:
    pictures = [scene(n) for n in range(8)]
    own = np.stack([thumbnail(p) for p in pictures])
    copies = np.stack([thumbnail(COPIES[kind](p)) for p in pictures])
    assert agreement(own, copies).same.all()
    assert agreement(copies, own).same.all()


def test_other_pictures_are_not_though_ground_and_sky_are_the_same() -> None:
    own = np.stack([thumbnail(scene(n)) for n in range(24)])
    one, other = np.triu_indices(24, 1)
    assert not agreement(own[one], own[other]).same.any()


def test_a_thing_that_came_into_the_picture_makes_it_another() -> None:
    picture, other = scene(3), scene(3)
    ImageDraw.Draw(other).ellipse((60, 90, 115, 160), fill=(150, 40, 30))
    assert not agreement(thumbnail(picture)[None], thumbnail(other)[None]).same[0]


def test_another_colour_is_another_picture() -> None:
    picture = scene(3)
    red, green, blue = picture.split()
    swapped = Image.merge("RGB", (blue, green, red))
    assert not agreement(thumbnail(picture)[None], thumbnail(swapped)[None]).same[0]


def test_flat_pictures_are_told_by_their_colour() -> None:
    colours = [(0, 0, 0), (1, 1, 1), (200, 30, 30)]
    flat = np.stack([thumbnail(Image.new("RGB", (50, 40), c)) for c in colours])
    assert agreement(flat[[0, 0, 1]], flat[[1, 2, 2]]).same.tolist() == [True, False, False]
    assert not agreement(flat[:1], thumbnail(scene(1))[None]).same[0]


def test_near_pairs_are_those_of_plain_numpy_and_of_an_index(tmp_path: Path) -> None:
    gallery = open_store(_store(tmp_path, _pictures(tmp_path))).gallery()
    vectors = unit(gallery.images("itc"))
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    expected = set()
    for one in range(len(vectors)):
        for other in np.argsort(-cosine[one], kind="stable")[:3].tolist():
            if cosine[one, other] >= 0.5:
                expected.add((min(one, other), max(one, other)))
    rows = gallery.image_rows
    expected = {(a, b) for a, b in expected if rows[a] != rows[b]}
    found = near_pairs(gallery, "itc", neighbours=3, least=0.5)
    assert {(a, b) for a, b in found.tolist()} >= expected
    rows = np.unique(gallery.image_rows)
    exact = ExactIndex(gallery.store.read(Modality.IMAGES, "itc", rows).astype(np.float32))
    assert rows.tolist() == list(range(len(rows)))  # so that its items are rows
    by_index = near_pairs(gallery, "itc", neighbours=3, least=0.5, index=exact)
    assert len(found)
    assert {(a, b) for a, b in by_index.tolist()} <= {(a, b) for a, b in found.tolist()}


@pytest.mark.parametrize("with_index", [False, True])
def test_near_ones_of_some_images_are_those_that_all_together_have(
    tmp_path: Path, with_index: bool
) -> None:
    gallery = open_store(_store(tmp_path, _pictures(tmp_path))).gallery()
    rows, numbers = np.unique(gallery.image_rows), range(len(gallery))
    exact = ExactIndex(gallery.store.read(Modality.IMAGES, "itc", rows).astype(np.float32))
    how: dict[str, Any] = {"neighbours": 3, "least": 0.5, "index": exact if with_index else None}
    every = near_pairs(gallery, "itc", **how)
    each = [near_pairs(gallery, "itc", of=np.array([n]), **how) for n in numbers]
    assert all(len(pairs) <= 3 for pairs in each)
    assert np.unique(np.concatenate(each), axis=0).tolist() == every.tolist()
    halves = [near_pairs(gallery, "itc", of=np.array(some), **how) for some in ([0, 2, 5], [7])]
    assert (
        halves[0].tolist()
        == np.unique(np.concatenate([each[n] for n in (0, 2, 5)]), axis=0).tolist()
    )
    assert halves[1].tolist() == each[7].tolist()


def test_near_ones_in_a_crowd_are_those_of_plain_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_engine.duplicates.candidates._ROWS", 150)
    rng = np.random.default_rng(0)
    vectors = unit(1 + 0.3 * rng.standard_normal((700, 24)))
    gallery = write_store(tmp_path / "s", vectors).gallery()
    cosine = vectors @ vectors.T
    assert (cosine > 0.5).mean() > 0.9
    nearest = np.argsort(-cosine, axis=1)[:, 1:3]
    pairs = np.stack([np.repeat(np.arange(700), 2), nearest.ravel()], axis=1)
    expected = np.unique(np.sort(pairs, axis=1), axis=0)
    assert near_pairs(gallery, "itc", neighbours=2, least=0.5).tolist() == expected.tolist()


def test_pairs_join_to_groups_through_others() -> None:
    pairs = np.array([[5, 7], [1, 2], [7, 3], [2, 1]])
    assert joined(9, pairs) == [[1, 2], [3, 5, 7]]
    assert joined(4, np.empty((0, 2), np.int64)) == []


def _pictures(root: Path) -> Path:
    """Six scenes; of the second a blurred, a small and an enlarged copy, of the third its bytes."""
    folder = root / "pictures"
    folder.mkdir(exist_ok=True)
    for number in range(6):
        scene(number).save(folder / f"{number}.png")
    scene(1).filter(ImageFilter.GaussianBlur(3)).save(folder / "0-blurred.png")
    scene(1).crop((0, 0, 310, 235)).resize((120, 90)).save(folder / "1-small.jpg", quality=80)
    scene(1).resize((120, 90)).resize((640, 480)).save(folder / "1-enlarged.png")
    (folder / "same.png").write_bytes((folder / "2.png").read_bytes())
    return folder


def _store(root: Path, folder: Path) -> Path:
    model = tiny.save_blip(root / "model")
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    options = EncodeOptions(features=("itc",), worker_kind="serial")
    encode(f"folder:{folder}", root / "store", encoder=encoder, options=options)
    return root / "store"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("duplicates")
    return _store(root, _pictures(root))


@pytest.fixture(scope="module")
def report(store: Path) -> DuplicateReport:
    return find_duplicates(open_store(store), DuplicateSettings(least=-1))


def test_groups_hold_the_copies_and_begin_with_the_best(report: DuplicateReport) -> None:
    found = [[member.item_id for member in group.members] for group in report.groups]
    assert found == [
        ["1.png", "0-blurred.png", "1-enlarged.png", "1-small.jpg"],
        ["2.png", "same.png"],
    ]
    best = report.groups[0].best
    assert (best.width, best.height) == SIZE
    assert report.n_spare == 4
    assert not report.unreadable


def test_a_picture_that_is_gone_is_named_and_not_guessed(tmp_path: Path) -> None:
    folder = _pictures(tmp_path)
    store = open_store(_store(tmp_path, folder))
    (folder / "1-small.jpg").unlink()
    found = find_duplicates(store, DuplicateSettings(least=-1))
    assert [uri for uri in found.unreadable if uri.endswith("1-small.jpg")]
    assert "1-small.jpg" not in [m.item_id for g in found.groups for m in g.members]


def test_the_command_prints_lines_json_and_a_sheet(store: Path, tmp_path: Path) -> None:
    asked = ["duplicates", "--store", str(store), "--least", "-1"]
    plain = CliRunner().invoke(main, [*asked, "--html", str(tmp_path / "sheet.html")])
    assert plain.exit_code == 0, plain.stderr
    lines = [line.split("\t") for line in plain.stdout.splitlines()]
    assert [line[0] for line in lines] == ["1", "1", "1", "2"]
    assert Path(lines[0][1]).name == "1.png"
    assert "4 of 10 pictures are copies of a better one" in plain.stderr
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<img") == 6
    assert page.count('class="best"') == 2
    asked_json = CliRunner().invoke(main, [*asked, "--json"])
    groups = [json.loads(line) for line in asked_json.stdout.splitlines()]
    assert [len(group["others"]) for group in groups] == [3, 1]
    assert groups[0]["best"]["width"] == 320


def test_one_is_no_plural(report: DuplicateReport) -> None:
    """The store's second group alone is a picture and one copy."""
    assert "<h1>2 groups of duplicates</h1>" in render_duplicates(report)
    alone = replace(report, groups=report.groups[1:])
    page = render_duplicates(alone)
    assert "<h1>1 group of duplicates</h1>" in page
    assert "1 of 10 pictures is a copy of a better one" in page


def test_the_command_asks_an_index_for_near_pictures(store: Path, tmp_path: Path) -> None:
    build_index(open_store(store), tmp_path / "index", recipe="flat")
    asked = ["duplicates", "--store", str(store), "--least", "-1"]
    exact = CliRunner().invoke(main, asked)
    indexed = CliRunner().invoke(main, [*asked, "--index", str(tmp_path / "index")])
    assert indexed.exit_code == 0, indexed.stderr
    assert indexed.stdout == exact.stdout


def test_bounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="`neighbours` is 0"):
        DuplicateSettings(neighbours=0)
    with pytest.raises(UsageError, match="`least` is 2"):
        DuplicateSettings(least=2)


def test_recall_is_warned_of_a_copy_across_train_and_test(tmp_path: Path) -> None:
    for split, copies in (("train", range(5)), ("test", (5, 6))):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for number in copies:
            file = tmp_path / "pictures" / split / f"{number}.png"
            scene(number).save(file)
            file.with_suffix(".txt").write_text(f"a dog {number}\n")
    copy = tmp_path / "pictures" / "test" / "copy.jpg"
    scene(3).crop((0, 0, 310, 232)).save(copy, quality=70)
    copy.with_suffix(".txt").write_text("a cat\n")
    rows = [
        {
            "image": f"{p.parent.name}/{p.name}",
            "caption": p.with_suffix(".txt").read_text(),
            "split": p.parent.name,
        }
        for p in sorted((tmp_path / "pictures").glob("*/*"))
        if p.suffix != ".txt"
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    encoder = open_encoder(str(tiny.save_blip(tmp_path / "model")), device="cpu", dtype="float32")
    encode(
        f"captions:{tmp_path / 'list.jsonl'}?images={tmp_path / 'pictures'}",
        tmp_path / "store",
        encoder=encoder,
        options=EncodeOptions(features=("itc",), worker_kind="serial"),
    )
    found = evaluate_store(
        open_store(tmp_path / "store"), RecallSettings(split="test", device="cpu")
    )
    assert found.leaks.near_duplicates == 1
    assert found.leaks.examples == ("near: test/copy.jpg",)
    sets = load_sets(open_store(tmp_path / "store"), from_cache=False)
    notes = crossing_notes(open_store(tmp_path / "store"), sets)
    assert notes == ["LEAK: 1 of split test are nearly images to train on (test/copy.jpg)"]
