"""Training heads on stores: data, selection, quality, and clear lines for bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from retrieval_engine.cli import main
from retrieval_engine.encoding import import_embeddings
from retrieval_engine.errors import FeatureMissing, TrainingError, UsageError
from retrieval_engine.heads import Head, HeadConfig, HeadKind, load_head
from retrieval_engine.records import Modality
from retrieval_engine.store import Store, open_store
from retrieval_engine.testing.vector_store import write_store
from retrieval_engine.train.head import (
    CaptionChoice,
    HeadRecipe,
    Loss,
    Start,
    closed_form,
    notebook_recipe,
    recipe_of,
    train_head,
    untrained_head,
)
from retrieval_engine.train.head.adamw import AdamW
from retrieval_engine.train.head.closed_form import Axes, Moments, TruePairs
from retrieval_engine.train.head.fitting import start_closed_form
from retrieval_engine.train.head.pairs import FeaturePairs, read_training_data
from retrieval_engine.train.head.sampler import epoch, mine
from retrieval_engine.train.head.val_recall import val_recall
from retrieval_engine.train.runlog import read_log
from tests.paired_vectors import embeddings, paired_store, views

CPU = torch.device("cpu")
QUICK = HeadRecipe(epochs=4, dim=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return paired_store(tmp_path_factory.mktemp("pairs") / "store", 240)


def recall_of(head: Head, images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> float:
    a = torch.from_numpy(head.project(Modality.IMAGES, images))
    b = torch.from_numpy(head.project(Modality.CAPTIONS, texts))[:, 0]
    return val_recall(a, b, torch.from_numpy(owner)).mean


def ridge_recall(train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> float:
    """Mean recall of the best of many ridge regressions text -> image, centred, chosen on `test`."""
    images, texts, owner = train
    x, y = texts - texts.mean(0), (images - images.mean(0))[owner]
    best = 0.0
    for strength in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        ridge = strength * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
        w = np.linalg.solve(x.T @ x + ridge, x.T @ y)
        found = torch.from_numpy((test[1] - texts.mean(0)) @ w).float()
        right = torch.from_numpy(test[0] - images.mean(0)).float()
        unit = torch.nn.functional.normalize
        sides = unit(right, dim=-1), unit(found, dim=-1)
        best = max(best, val_recall(*sides, torch.from_numpy(test[2])).mean)
    return best


@pytest.mark.whole
@pytest.mark.parametrize("kind", list(HeadKind))
@pytest.mark.parametrize(("n", "widths"), [(60, (64, 96)), (240, (24, 40))])
def test_defaults_are_no_worse_than_the_best_ridge_regression(
    tmp_path: Path, kind: HeadKind, n: int, widths: tuple[int, int]
) -> None:
    train, test = views(n, widths), views(200, widths, seed=1)
    pairs = paired_store(tmp_path / "store", n, widths)
    report = train_head(pairs, tmp_path / "head", HeadRecipe(kind=kind))
    ours = recall_of(report.saved.head, *test)
    assert ours >= ridge_recall(train, test)
    assert report.refitted


def bent(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts that depend on the size of six factors and not on their sign: no linear map helps."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    factors = rng.standard_normal((n, 6))
    images = factors @ fixed.standard_normal((6, 16))
    texts = np.abs(factors) @ fixed.standard_normal((6, 20))
    return images.astype(np.float32), texts.astype(np.float32), np.arange(n)


@pytest.mark.whole
def test_an_mlp_finds_what_no_linear_map_can(tmp_path: Path) -> None:
    import_embeddings(embeddings(*bent(1200, 0)), tmp_path / "store", name="x")
    pairs, test = open_store(tmp_path / "store"), bent(200, 1)
    linear, mlp = (
        train_head(pairs, tmp_path / kind, HeadRecipe(kind=kind, dropout=0, epochs=30)).saved.head
        for kind in HeadKind
    )
    assert recall_of(linear, *test) < 10
    assert recall_of(mlp, *test) > 40


def test_training_beats_an_untrained_projection_by_far(tmp_path: Path) -> None:
    pairs = paired_store(tmp_path / "store", 500)
    test = views(300, seed=1)
    floor = recall_of(untrained_head(pairs, tmp_path / "u", QUICK).head, *test)
    trained = recall_of(train_head(pairs, tmp_path / "h", QUICK).saved.head, *test)
    assert floor < 5
    assert trained > 60


def test_all_captions_beat_the_first_alone(tmp_path: Path) -> None:
    pairs = paired_store(tmp_path / "store", 100, captions=5)
    test = views(300, captions=5, seed=1)
    every, first = (
        train_head(pairs, tmp_path / c, replace(QUICK, captions=c)).saved.head
        for c in (CaptionChoice.ALL, CaptionChoice.FIRST)
    )
    assert recall_of(every, *test) > recall_of(first, *test) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"loss": Loss.SIGMOID},
        {"hard_negatives": 3},
        {"captions": CaptionChoice.ONE},
        {"kind": HeadKind.MLP, "residual": True, "dropout": 0.2},
        {"start": Start.RANDOM},
        {"feature": "itc", "dim": 0},
    ],
)
def test_every_choice_trains(tmp_path: Path, change: dict[str, object]) -> None:
    pairs = paired_store(tmp_path / "store", 120, (16, 16))
    report = train_head(pairs, tmp_path / "head", replace(QUICK, **change))  # type: ignore[arg-type]
    lines = read_log(tmp_path / "head" / "log.jsonl")
    assert [line["epoch"] for line in lines] == list(range(report.epochs + 1))
    assert all(np.isfinite(line.get("loss", 0)) for line in lines)
    assert report.best.to_json()["mean_recall"] == max(line["mean_recall"] for line in lines)
    assert report.best.mean > 20
    assert (tmp_path / "head" / "curves.png").stat().st_size > 5000


def test_from_a_thousand_images_on_the_validation_set_shapes_the_start(tmp_path: Path) -> None:
    """Weak correlations are noise here: damping them finds twice as much without a step."""
    rng = np.random.default_rng(0)
    factors, fixed = rng.standard_normal((1700, 12)), np.random.default_rng(1)
    sides = []
    for width in (300, 400):
        signal = factors @ fixed.standard_normal((12, width))
        sides.append((signal + 14 * rng.standard_normal((1700, width))).astype(np.float32))
    images, texts = sides
    given = embeddings(images[:1400], texts[:1400], np.arange(1400))
    import_embeddings(given, tmp_path / "s", name="x")
    report = train_head(open_store(tmp_path / "s"), tmp_path / "h", HeadRecipe(epochs=0))
    ours = recall_of(report.saved.head, images[1400:], texts[1400:], np.arange(300))

    x, y = (torch.from_numpy(side - side[:1260].mean(0)) for side in sides)
    rows = TruePairs(images=x[:1260], texts=y[:1260], image=torch.arange(1260))
    test = TruePairs(images=x[1400:], texts=y[1400:], image=torch.arange(300))
    plain = Axes(Moments(rows), 1.0, 300).maps(0.5, 300)(test)
    a, b = (torch.nn.functional.normalize(side) for side in plain)
    assert ours > 1.5 * val_recall(a, b, torch.arange(300)).mean


def test_equal_seeds_give_equal_heads(tmp_path: Path) -> None:
    store = paired_store(tmp_path / "store", 60)
    weights = [
        train_head(store, tmp_path / str(i), replace(QUICK, epochs=2, seed=seed)).saved.weights
        for i, seed in enumerate((3, 3, 4))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_the_record_tells_what_a_head_was_trained_on(store: Store, tmp_path: Path) -> None:
    report = train_head(store, tmp_path / "h", replace(QUICK, train_size=100, refit_below=0))
    saved = load_head(tmp_path / "h")
    seen = saved.trained_on()
    assert (seen.roles.count("train"), seen.roles.count("val")) == (100, 48)
    table = store.items()
    keys = dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))
    assert all(keys[item] == key for item, key in zip(seen.ids, seen.keys, strict=True))
    record = json.loads((tmp_path / "h" / "head.json").read_text())
    assert record["trained_on"]["sha256"] == seen.digest
    assert record["encoder"] == store.fingerprint
    assert record["metrics"] == report.best.to_json()
    assert record["recipe"]["train_size"] == 100


def test_a_refitted_head_has_seen_its_validation_images(store: Store, tmp_path: Path) -> None:
    report = train_head(store, tmp_path / "h", QUICK)
    assert report.refitted
    assert set(load_head(tmp_path / "h").trained_on().roles) == {"train"}


def test_split_is_by_id_and_no_picture_is_on_both_sides(tmp_path: Path) -> None:
    """The same images in another order are split alike; copies stay together."""
    images, texts, owner = views(60)
    images = np.concatenate([images, images[:10]])  # ten pictures twice, under other ids
    texts = np.concatenate([texts, views(10, seed=5)[1]])
    owner = np.concatenate([owner, np.repeat(np.arange(60, 70), 2)])
    data = []
    for name, order in (("a", np.arange(70)), ("b", np.arange(70)[::-1])):
        place = np.argsort(order)
        given = embeddings(images[order], texts, place[owner])
        import_embeddings(given, tmp_path / name, name="x")
        data.append(read_training_data(open_store(tmp_path / name), HeadRecipe(), CPU))
    seen = [dict(zip(d.trained_on.ids, d.trained_on.roles, strict=True)) for d in data]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 70
    assert len(data[0].train) + len(data[0].val) == 60
    assert all(seen[0][f"{i}-2"] == seen[0][i] for i in seen[0] if f"{i}-2" in seen[0])
    assert int((data[0].train.captions >= 0).sum(1).max()) == 4


def test_named_splits_are_used(tmp_path: Path) -> None:
    for number, (split, n) in enumerate((("train", 50), ("val", 20), ("test", 30))):
        paired_store(tmp_path / "s", n, seed=number, split=split)
    store = open_store(tmp_path / "s")
    data = read_training_data(store, HeadRecipe(), CPU)
    assert (len(data.train), len(data.val)) == (50, 20)
    data = read_training_data(store, HeadRecipe(split="test", val_split="train"), CPU)
    assert (len(data.train), len(data.val)) == (30, 50)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (HeadRecipe(batch_size=4000), "`batch_size=4000` is more than the 192 images"),
        (HeadRecipe(val_split="val"), "no item has split 'val'; splits here: \\(none\\)"),
        (HeadRecipe(val_size=1), "the validation set has 1 images"),
        (HeadRecipe(val_size=239), "1 images with captions are left to train on"),
        (HeadRecipe(lr=1e30, start=Start.RANDOM, dim=4), "the loss became"),
    ],
)
def test_bad_input_is_one_clear_line(
    store: Store, tmp_path: Path, recipe: HeadRecipe, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train_head(store, tmp_path / "h", recipe)


@pytest.mark.parametrize("side", ["images", "texts"])
def test_features_that_are_all_the_same_are_told(tmp_path: Path, side: str) -> None:
    images, texts, owner = views(60)
    (images if side == "images" else texts)[:] = 1
    import_embeddings(embeddings(images, texts, owner), tmp_path / "s", name="x")
    with pytest.raises(TrainingError, match=f"{side} to train on have the same features"):
        train_head(open_store(tmp_path / "s"), tmp_path / "h", QUICK)


def test_missing_features_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FeatureMissing, match="no tokens of images; it has: pooled"):
        train_head(store, tmp_path / "h", HeadRecipe(feature="tokens"))
    with pytest.raises(FeatureMissing, match="no itc"):
        untrained_head(store, tmp_path / "h", HeadRecipe(feature="itc"))


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"batch_size": 1}, {"lr": 0.0}, {"train_size": 1}]
)
def test_choices_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        recipe_of(wrong)
    with pytest.raises(UsageError, match="epoch_size"):
        recipe_of({"epoch_size": 3})


def test_seed_recipe_is_the_notebooks_set_up(store: Store, tmp_path: Path) -> None:
    """Two epochs of ours equal a plain loop in the notebook's own words."""
    recipe = replace(notebook_recipe(HeadRecipe(val_size=40)), epochs=2, batch_size=64)
    report = train_head(store, tmp_path / "h", recipe)
    assert report.saved.config == HeadConfig(
        kind=HeadKind.LINEAR, feature="pooled", image_width=24, text_width=40, dim=768, bias=False
    )
    data = read_training_data(store, recipe, CPU)
    torch.manual_seed(recipe.seed)
    head = Head(report.saved.config)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(2):
        for batch in torch.split(torch.randperm(200, generator=generator), 64):
            image = data.train.images[batch, 0]
            text = data.train.texts[data.train.captions[batch, 0]]
            image_z = torch.nn.functional.normalize(image @ head.image.linear.weight.T, dim=-1)  # type: ignore[union-attr,operator]
            text_z = torch.nn.functional.normalize(text @ head.text.linear.weight.T, dim=-1)  # type: ignore[union-attr,operator]
            logits = head.log_scale.exp() * image_z @ text_z.t()
            labels = torch.arange(len(batch))
            loss = torch.nn.functional.cross_entropy(logits, labels)
            loss = (loss + torch.nn.functional.cross_entropy(logits.t(), labels)) / 2
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    ours, theirs = report.saved.head.image.linear.weight, head.image.linear.weight  # type: ignore[union-attr]
    assert torch.allclose(ours, theirs, atol=2e-5)  # type: ignore[arg-type]


def test_batches_hold_every_image_once_and_know_all_positives() -> None:
    captions = torch.tensor([[0, 1], [2, -1], [3, 0], [4, 5], [6, -1]])
    pairs = FeaturePairs(images=torch.randn(5, 1, 3), texts=torch.randn(7, 3), captions=captions)
    recipe = HeadRecipe(batch_size=3)
    seen: list[int] = []
    for batch in epoch(pairs, recipe, torch.Generator().manual_seed(0), None):
        seen += batch.images.tolist()
        for i, image in enumerate(batch.images.tolist()):
            mine_ = set(captions[image].tolist())
            for j, text in enumerate(batch.texts.tolist()):
                assert bool(batch.positive[i, j]) == (text in mine_)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_mined_negatives_are_near_and_never_the_image_itself() -> None:
    """Groups of near images: companions come from the group, not from oneself."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((10, 12)) * 4, 4, axis=0)
    x = torch.from_numpy(centres + 0.3 * rng.standard_normal((40, 12))).float()
    pairs = FeaturePairs(
        images=x[:, None], texts=x + 0.01 * torch.randn(40, 12), captions=torch.arange(40)[:, None]
    )
    config = HeadConfig(
        kind=HeadKind.LINEAR, feature="pooled", image_width=12, text_width=12, dim=12
    )
    head = Head(config)
    for side in (head.image, head.text):
        side.start_from(torch.eye(12), torch.zeros(12))
    found = mine(head, pairs, 3)
    itself = torch.arange(40)[:, None]
    assert (found != itself).all()
    assert (found // 4 == itself // 4).float().mean() > 0.95


def test_heads_on_several_vectors_per_image(tmp_path: Path) -> None:
    """BLIP-2's form: the text is near one of an image's vectors; only the maximum finds it."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((150, 6, 16))
    texts = [images[i, [rng.integers(6)]] + 0.6 * rng.standard_normal((1, 16)) for i in range(150)]
    unit = [t / np.linalg.norm(t) for t in texts]
    store = write_store(
        tmp_path / "s",
        images / np.linalg.norm(images, axis=2, keepdims=True),
        [u.astype(np.float32) for u in unit],
    )
    report = train_head(store, tmp_path / "h", HeadRecipe(feature="itc", epochs=3))
    assert report.saved.config.dim == 16
    assert report.best.mean > 60


def test_adamw_is_torch_s_bit_by_bit() -> None:
    def trained(*, ours: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, late = torch.nn.Linear(9, 5), torch.nn.Parameter(torch.ones(3))
        parameters = [*model.parameters(), late]

        def pace(step: int) -> float:
            return (step + 1) / 5 if step < 5 else 0.5

        mine = AdamW(parameters, rate=lambda step: 0.01 * pace(step), weight_decay=0.1)
        optimiser = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, pace)
        for step in range(20):
            loss = model(torch.randn(7, 9)).square().mean() + (late.sum() if step % 3 else 0)
            loss.backward()
            if ours:
                mine.step()
            else:
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
        return [p.detach() for p in parameters]

    for found, expected in zip(trained(ours=True), trained(ours=False), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("count", "most", "taken"), [(40_000, None, 40_000), (500, 200, 200)])
def test_a_closed_form_reads_all_pairs_that_fit(
    count: int, most: int | None, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.arange(count, dtype=torch.float32)[:, None]
    pairs = FeaturePairs(images=rows[:, None], texts=-rows, captions=torch.arange(count)[:, None])
    if most is not None:
        monkeypatch.setattr(closed_form, "_MOST_NUMBERS", most * 2)
    found = closed_form.one_to_one(pairs, torch.Generator().manual_seed(0))
    assert len(found.images) == taken
    torch.testing.assert_close(found.images, -found.texts)
    fewer = closed_form.one_to_one(pairs, torch.Generator().manual_seed(0), most=100)
    assert len(set(fewer.image.tolist())) == 100


def test_many_pairs_of_few_directions_make_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As real features are: nearly all of the variance in some directions, and a CPU with bfloat16."""
    monkeypatch.setattr("retrieval_engine.train.head.closed_form.is_fast_at_bfloat16", lambda: True)
    generator = torch.Generator().manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(256, 256, generator=generator))
    common = torch.randn(20_000, 256, generator=generator) * torch.logspace(0, -4, 256) @ turned
    images, texts = (
        common + 1e-5 * torch.randn(20_000, 256, generator=generator) for _ in range(2)
    )
    pairs = FeaturePairs(
        images=images[:, None], texts=texts, captions=torch.arange(20_000)[:, None]
    )
    config = HeadConfig(
        kind=HeadKind.LINEAR, feature="pooled", image_width=256, text_width=256, dim=64
    )
    head = Head(config)
    start_closed_form(head, pairs, None, 0)
    unit = [
        torch.nn.functional.normalize(v, dim=-1) for v in (head.image(images), head.text(texts))
    ]
    assert ((unit[0][:500] @ unit[1][:500].T).argmax(1) == torch.arange(500)).float().mean() > 0.95


def test_features_that_are_not_finite_are_told() -> None:
    rows = torch.full((50, 4), torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        Axes(Moments(TruePairs(images=rows, texts=rows, image=torch.arange(50))), 1.0, 2)


def test_search_without_a_head_stands_beside_it(tmp_path: Path, store: Store) -> None:
    told = tmp_path / "told"
    run = CliRunner().invoke
    command = ["encode", "scenes:80?seed=4", "--model", "vlre-tiny", "--device", "cpu"]
    assert run(main, [*command, "--features", "itc,pooled", "--store", str(told)]).exit_code == 0
    itc = read_training_data(open_store(told), HeadRecipe(feature="itc"), CPU).val
    image, row = itc.owners
    expected = val_recall(itc.images, itc.texts[row], image)
    train = ["train-head", "--store", str(told), "--epochs", "0", "--start", "random", "--dim", "4"]
    said = run(main, [*train, "--out", str(tmp_path / "poor")])
    assert f"search without a head: {expected.mean:.2f}" in said.output
    assert "no better than without: try --feature itc --beside 0.5" in said.output
    found = json.loads(run(main, [*train, "--out", str(tmp_path / "again"), "--json"]).stdout)
    assert found["without_head"] == expected.to_json()
    begun = train_head(open_store(told), tmp_path / "itc", HeadRecipe(feature="itc", epochs=0))
    assert begun.without == expected
    assert begun.start.mean >= expected.mean  # begins there, or with what is better
    assert train_head(store, tmp_path / "made", QUICK).without is None  # has no `itc`


def test_a_head_beside_the_features_goes_from_these_to_the_head(tmp_path: Path) -> None:
    store = paired_store(tmp_path / "store", 600, (24, 24))
    plain = HeadRecipe(epochs=3, refit_below=0, start=Start.RANDOM)

    def scores(name: str, recipe: HeadRecipe) -> tuple[np.ndarray, float]:
        report = train_head(store, tmp_path / name, recipe)
        data = read_training_data(store, recipe, CPU).val
        head = load_head(tmp_path / name).head
        a = head.project(Modality.IMAGES, data.images.numpy())[:, 0]
        b = head.project(Modality.CAPTIONS, data.texts.numpy())[:, 0]
        image, row = data.owners
        found = val_recall(torch.from_numpy(a), torch.from_numpy(b)[row], image)
        assert found.mean == pytest.approx(report.best.mean)  # of what was saved
        return a @ b.T, report.best.mean

    head, _ = scores("head", plain)
    near_head, _ = scores("much", replace(plain, beside=1e6))
    np.testing.assert_allclose(near_head, head, atol=2e-2)
    data = read_training_data(store, plain, CPU).val
    unit = [
        torch.nn.functional.normalize(x, dim=-1).numpy() for x in (data.images[:, 0], data.texts)
    ]
    near_features, _ = scores("little", replace(plain, beside=1e-9))
    np.testing.assert_allclose(near_features, unit[0] @ unit[1].T, atol=1e-4)
    both, _ = scores("both", replace(plain, beside=1.0))
    assert np.corrcoef(both.ravel(), (head + near_features).ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beside": -1}, "`beside` is a weight of 0 or more"),
        ({"beside": 1, "kind": HeadKind.MLP}, "of a linear head with a bias"),
        ({"beside": 1, "dim": 8}, "as it is, but that of images is 24 wide"),
    ],
)
def test_what_cannot_lie_beside_features_is_refused(
    store: Store, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_head(store, tmp_path / "h", replace(HeadRecipe(epochs=0), **change))
