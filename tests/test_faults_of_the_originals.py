"""The faults of the five originals, each by its letter in our study of them: none can happen here.

S0 is mukhilDS/Vision-Language_Final_project, S1 a "BLIP from scratch" tutorial, S2 a BLIP retrieval
fine-tune on one GPU, S3 Tiezhu-233/LoRA-BLIP2-Flickr8K, S4 likthvishal/VLM-for-image-captioning.
"""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from retrieval_engine.caption.caption_run import CaptionRun
from retrieval_engine.caption.collapse import WAYS
from retrieval_engine.caption.decoding import DecodingOptions, Method
from retrieval_engine.caption.ranking import Judge, combined
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.cli import main
from retrieval_engine.encoding.projected import open_through
from retrieval_engine.errors import EvaluationError, SourceError, TrainingError, UsageError
from retrieval_engine.evaluate import evaluate_store
from retrieval_engine.evaluate.caption_scores import evaluate_captions
from retrieval_engine.evaluate.compare import compare, open_runs
from retrieval_engine.evaluate.compare.samples import sample_queries
from retrieval_engine.evaluate.published import published_recall
from retrieval_engine.heads.projection import HeadConfig, HeadKind, make_projection
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.recall import recall
from retrieval_engine.metrics.rouge import rouge_l
from retrieval_engine.models import open_encoder
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.learner import CaptionLearner, Task, open_learner
from retrieval_engine.progress import Silent
from retrieval_engine.records import Caption, Item
from retrieval_engine.sources import open_source
from retrieval_engine.store import Store, open_store
from retrieval_engine.testing.images import jpeg
from retrieval_engine.testing.vector_store import write_store
from retrieval_engine.train.finetune import configure, finetune
from retrieval_engine.train.finetune.captioned import CaptionedImages, Order
from retrieval_engine.train.finetune.captioning import caption_batch, caption_loss_sum
from retrieval_engine.train.finetune.vision_states import augmented
from retrieval_engine.train.head import HeadRecipe, notebook_recipe, train_head, untrained_head
from retrieval_engine.train.head.pairs import read_training_data
from retrieval_engine.train.lora import LoraOptions, attach, matching_modules
from retrieval_engine.train.pretrain import PretrainConfig
from retrieval_engine.train.pretrain.training_set import load_sets
from tests import tiny
from tests.paired_vectors import paired_store
from tests.tiny_blip2 import save_blip2_opt


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return paired_store(tmp_path_factory.mktemp("faults") / "store", 60)


@pytest.fixture(scope="module")
def head(store: Store) -> Path:
    out = store.path.parent / "head"
    recipe = HeadRecipe(train_size=30, val_size=10, epochs=1, refit_below=0)
    train_head(store, out, recipe, device="cpu")
    return out


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP that matches and one that tells, with one tower."""
    root = tmp_path_factory.mktemp("faults-models")
    tiny.save_blip(root / "blip")
    tiny.save_blip_captioner(root / "captioner")
    save_blip2_opt(root / "opt")
    return root


def test_s0_a_no_training_pair_is_in_the_gallery(store: Store, head: Path) -> None:
    found = evaluate_store(open_through(store.path, head))
    seen = json.loads((head / "head.json").read_text())
    assert seen
    assert found.report.n_images == 60 - 40
    assert not found.leaks.found
    assert found.certificate()["head"]["left_out"] is True  # type: ignore[index,call-overload]


def test_s0_b_a_split_called_test_is_never_trained_on(tmp_path: Path) -> None:
    """Also where it is the whole data set."""
    everything = paired_store(tmp_path / "s", 40, split="test")
    with pytest.raises(TrainingError):
        read_training_data(everything, HeadRecipe(), torch.device("cpu"))


def test_s0_c_all_captions_train_and_count(store: Store) -> None:
    assert evaluate_store(open_store(made_of(store))).report.n_captions == 24
    data = read_training_data(store, HeadRecipe(), torch.device("cpu"))
    assert int((data.train.captions >= 0).sum()) == 2 * len(data.train)
    first = read_training_data(store, notebook_recipe(HeadRecipe()), torch.device("cpu"))
    assert int((first.train.captions >= 0).sum()) == len(first.train)  # theirs, by its name


def test_s0_d_any_caption_of_the_image_is_right_not_the_one_on_the_diagonal() -> None:
    images = np.eye(2, 3, dtype=np.float32)
    captions = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    found = recall(images, captions, np.array([0, 0, 1]))
    assert found.image_to_text.recall[1] == 100  # the second caption of the first image is nearest
    assert (found.n_images, found.n_captions) == (2, 3)


def test_s0_e_an_mlp_is_no_linear_map() -> None:
    torch.manual_seed(0)
    x, y, nothing = torch.randn(3, 1, 6).unbind()
    for kind, is_linear in ((HeadKind.LINEAR, True), (HeadKind.MLP, False)):
        config = HeadConfig(
            kind=kind,
            feature="pooled",
            dim=4,
            hidden=8,
            dropout=0.0,
            image_width=6,
            text_width=6,
        )
        project = make_projection(config, 6).eval()
        with torch.no_grad():
            sums = project(x + y) + project(0 * nothing)
            apart = project(x) + project(y)
        assert torch.allclose(sums, apart, atol=1e-5) is is_linear, kind


def test_s0_f_an_untrained_projection_is_called_so_and_stands_beside_itc(
    tmp_path: Path, store: Store
) -> None:
    untrained_head(store, tmp_path / "random", HeadRecipe())
    rows = compare(open_runs([f"baseline={tmp_path / 'random'}"], store.path)).rows
    assert [(row.name, row.kind) for row in rows] == [("baseline", "untrained")]


def test_s0_g_the_32_vectors_of_an_image_are_not_averaged() -> None:
    near, far = np.array([1, 0, 0]), np.array([-1, 0, 0])
    images = np.array([[near, far], [[0.6, 0.8, 0], [0.6, 0.8, 0]]], dtype=np.float32)
    found = recall(images, np.array([near], dtype=np.float32), np.array([0]))
    assert found.text_to_image.recall[1] == 100  # the mean of the first image is nothing at all


def test_s0_h_a_caption_finds_images_under_their_own_ids(store: Store) -> None:
    comparison = compare(open_runs(["itc"], made_of(store)))
    (gallery,) = comparison.galleries.values()
    for sample in sample_queries(comparison.galleries):
        (hits,) = sample.hits.values()
        assert {hit.item_id for hit in hits} <= set(gallery.ids)
        own = gallery.caption_texts.index(sample.text)
        right = [hit.item_id for hit in hits if hit.is_right]
        assert right == [gallery.ids[gallery.caption_image[own]]]


def test_s0_i_figures_are_there_whatever_has_run_since(store: Store) -> None:
    comparison = compare(open_runs(["itc"], made_of(store)))
    before = comparison.csv()
    sample_queries(comparison.galleries)
    assert comparison.csv() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.rows[0].recall = {}  # type: ignore[misc]


def made_of(store: Store) -> Path:
    """A store of vectors beside, with ITC of its own."""
    path = store.path.parent / "itc"
    if not path.exists():
        rng = np.random.default_rng(0)
        images = rng.standard_normal((12, 8)).astype(np.float32)
        write_store(path, images, [np.stack([image, image + 0.1]) for image in images])
    return path


def test_s0_j_a_score_that_is_no_number_is_an_error_not_an_answer() -> None:
    images = np.eye(3, dtype=np.float32)
    images[1, 1] = np.nan
    with pytest.raises(EvaluationError, match="NaN"):
        recall(images, np.eye(3, dtype=np.float32), np.arange(3))


def test_s0_k_published_figures_are_the_published_ones() -> None:
    rows = published_recall("flickr30k")
    first = {row.model: row.image_to_text["R@1"] for row in rows}
    back = {row.model: row.text_to_image["R@1"] for row in rows}
    assert not {96.1, 96.4, 96.7, 95.0} & {v for n, v in first.items() if "ViT-g" in n}
    best = max(back, key=lambda name: back[name] or 0)
    assert "BLIP-2" in best
    assert (first[best], back[best]) == (97.6, 89.7)
    assert all(row.source for row in rows)


def test_s1_what_is_judged_was_not_trained_on_and_a_limit_is_no_split(tmp_path: Path) -> None:
    given = {"source": "scenes:60?seed=2", "preset": "micro", "batch_size": 8}
    sets = {
        limit: load_sets(PretrainConfig(limit=limit, **given), tmp_path / "c", Silent())  # type: ignore[arg-type]
        for limit in (0, 16)
    }
    ids = {limit: [{i.id for i in s.pictures.items} for s in both] for limit, both in sets.items()}
    assert not ids[0][0] & ids[0][1]
    assert len(ids[16][0]) == 16
    assert ids[16][1] == ids[0][1], "what is selected on stays what it is"
    assert {way.method for way in WAYS.values()} >= {Method.GREEDY, Method.BEAMS}


def test_s2_to_evaluate_trains_nothing_and_both_directions_are_told(
    tmp_path: Path, blip: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(blip / "blip", model)
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    words = ["eval", "--recall", "scenes:6?seed=1", "--model", str(model), "--json"]
    result = CliRunner().invoke(main, [*words, "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"image_to_text", "text_to_image"} <= set(found)
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    (model / "training.json").write_text("{}")
    config = configure(Task.RETRIEVAL, store=str(tmp_path / "store"))
    with pytest.raises(TrainingError, match="already holds a trained model"):
        finetune(config, model)


def test_s3_a_cider_knows_rare_words_and_length() -> None:
    told = [
        [["a", "dog", "on", "grass"]],
        [["a", "cat", "on", "snow"]],
        [["a", "car", "on", "sand"]],
    ]
    said = [reference[0] for reference in told]
    assert cider_d(said, told).min() > 5
    common = cider_d([["a", "on"]] * 3, told)
    assert common.max() < 0.01  # clipped precision would be 1
    doubled = cider_d([caption * 2 for caption in said], told)
    assert (doubled < 0.7 * cider_d(said, told)).all()


def test_s3_b_rouge_looks_at_every_reference_and_none_is_empty(tmp_path: Path) -> None:
    told = [["a", "red", "car"], ["two", "dogs", "run"]]
    assert rouge_l(told[1], told) == pytest.approx(1)
    (tmp_path / "told.json").write_text(json.dumps([{"image": "a", "caption": ""}]))
    (tmp_path / "said.json").write_text(json.dumps([{"image": "a", "caption": "a car"}]))
    with pytest.raises(EvaluationError):
        evaluate_captions(tmp_path / "said.json", tmp_path / "told.json")


def flickr8k(root: Path, names: list[str], *, lists: bool = True) -> Path:
    (root / "images").mkdir(parents=True)
    for name in names:  # in the order that a listing of the folder may give
        (root / "images" / name).write_bytes(jpeg(names.index(name) % 7))
    told = "".join(f"{name}#{i}\tcaption {i} of it\n" for name in sorted(names) for i in range(3))
    (root / "Flickr8k.token.txt").write_text(told)
    for number, split in enumerate(("train", "dev", "test") if lists else ()):
        own = sorted(names)[number::3]
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(own) + "\n")
    return root


def test_s3_c_the_test_set_is_the_official_list_whatever_a_folder_lists_first(
    tmp_path: Path,
) -> None:
    names = [f"{number}.jpg" for number in range(9)]
    found = []
    for place, order in (("a", names), ("b", names[::-1])):
        source = open_source(f"flickr8k:{flickr8k(tmp_path / place, order)}?split=test")
        found.append(sorted(item.id for item in source.items()))
    assert found[0] == found[1] == ["2.jpg", "5.jpg", "8.jpg"]
    bare = flickr8k(tmp_path / "c", names, lists=False)
    with pytest.raises(SourceError, match="no split lists"):
        open_source(f"flickr8k:{bare}?split=test")


def captioned(texts: list[list[str]]) -> CaptionedImages:
    n = len(texts)
    return CaptionedImages(
        ids=[str(i) for i in range(n)],
        keys=[str(i) for i in range(n)],
        uris=[""] * n,
        rows=np.arange(n),
        same=np.arange(n),
        texts=[text for own in texts for text in own],
        starts=np.cumsum([0, *map(len, texts)]),
    )


def learner_of(path: Path) -> CaptionLearner:
    learner = open_learner(resolve(str(path)), Task.CAPTION, with_tower=False, dtype=torch.float32)
    assert isinstance(learner, CaptionLearner)
    return learner


def test_s3_d_padding_and_prompt_cost_nothing(blip: Path) -> None:
    learner = learner_of(blip / "captioner")
    data = captioned([["a dog"], ["a red car in the street at night"]])
    states = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))

    def loss(images: list[int]) -> float:
        chosen = data.starts[:-1][images][:, None]
        batch = caption_batch(learner, data, chosen, np.zeros(len(images)))
        with torch.no_grad():
            logits = learner.logits(learner.read(states[images]), batch.ids, batch.mask)
            return float(caption_loss_sum(logits, batch.labels, smoothing=0.1))

    assert loss([0, 1]) == pytest.approx(loss([0]) + loss([1]), rel=1e-5)
    (ids,), given = learner.encode(["a dog"])
    batch = caption_batch(learner, data, np.array([[0]]), np.zeros(1))
    assert batch.count == len(ids) - given


def test_s3_e_nothing_but_adapters_is_trained(blip: Path) -> None:
    learner = learner_of(blip / "opt")
    modules = matching_modules(learner.model, "opt")
    attach(learner.model, LoraOptions.parse("r=2"), modules, name="default")
    trained = [name for name, p in learner.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    with pytest.raises(UsageError, match="matches no linear layer"):
        matching_modules(learner_of(blip / "opt").model, "q")  # a letter of many names


def test_s3_f_a_target_that_is_not_in_the_model_is_refused(blip: Path) -> None:
    with pytest.raises(UsageError, match=r"'o_proj' matches no linear layer.*out_proj"):
        matching_modules(learner_of(blip / "opt").model, "q_proj+o_proj")


@pytest.mark.parametrize("kind", ["captioner", "opt"])
def test_s3_g_captions_go_on_from_the_prompt_they_were_trained_with(blip: Path, kind: str) -> None:
    writer = open_captioner(str(blip / kind), device="cpu", dtype="float32")
    assert learner_of(blip / kind).prompt == writer.prompt


def test_s3_h_no_candidate_is_chosen_by_its_reference(blip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    writer = open_captioner(str(blip / "captioner"), device="cpu", dtype="float32")
    judge = Judge(open_encoder(str(blip / "blip"), device="cpu", dtype="float32"))
    options = DecodingOptions(sample=True, num_captions=4, seed=1, max_length=12)
    found = []
    for reference in ("a dog on grass", "two birds in the sky"):
        told = (Caption(id="a#0", text=reference),)
        item = Item(id="a", uri=str(tmp_path / "a.jpg"), captions=told)
        run = CaptionRun(writer, options, judge=judge, workers=1)
        (done,) = run([SourceImage(source="s", item=item)])
        found.append(done.captioned[0])
    assert found[0].captions == found[1].captions
    assert found[0].matches == found[1].matches
    both = combined(found[0].captions, found[0].scores, found[0].matches)
    assert both == sorted(both, reverse=True)


def test_s3_i_a_failure_is_no_caption(tmp_path: Path) -> None:
    told = [{"image": n, "caption": "a dog on grass"} for n in "ab"]
    said = [{"image": "a", "caption": "a dog"}, {"image": "b", "caption": "[ERROR] out of memory"}]
    (tmp_path / "told.json").write_text(json.dumps(told))
    (tmp_path / "said.json").write_text(json.dumps(said))
    with pytest.raises(EvaluationError, match="no caption to score"):
        evaluate_captions(tmp_path / "said.json", tmp_path / "told.json")


def test_s3_j_every_caption_is_learned_once_a_pass() -> None:
    order = Order(captioned([["x", "y", "z"]] * 4), batch_size=4, per_image=1, seed=0)
    numbers = np.concatenate([order(step).captions.ravel() for step in range(3)])
    assert sorted(numbers.tolist()) == list(range(12))


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p"])
def test_s4_a_what_has_no_effect_under_beams_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` .* has no effect on beam search"):
        DecodingOptions(**{name: 1})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no effect"):
        DecodingOptions(num_captions=3, temperature=(0.7, 1.0, 1.3))


def test_s4_b_pictures_are_never_mirrored_where_a_caption_says_left_or_right() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 1, 3))
    picture = Image.fromarray(ramp)

    def mirrored(captions: list[str]) -> int:
        count = 0
        for seed in range(60):
            found = np.asarray(
                augmented(picture, 64, np.random.default_rng(seed), captions=captions), np.int64
            )[16:48, 16:48, 0]
            count += int(found[:, -8:].mean() < found[:, :8].mean() - 5)
        return count

    assert mirrored(["a dog"]) > 15
    assert mirrored(["a dog", "A dog to the Left of a cat"]) == 0
    assert mirrored(["it left-handed"]) == 0


def test_s4_c_what_is_selected_on_is_told_and_never_the_test_split(tmp_path: Path) -> None:
    for number, (split, n) in enumerate((("train", 12), ("val", 6), ("test", 9))):
        paired_store(tmp_path / "s", n, seed=number, split=split)
    store = open_store(tmp_path / "s")
    data = read_training_data(store, HeadRecipe(), torch.device("cpu"))
    used = set(data.trained_on.ids)
    table = store.items().to_pydict()
    assert used == {i for i, s in zip(table["id"], table["split"], strict=True) if s != "test"}
    assert set(data.trained_on.roles) == {"train", "val"}


def test_s4_d_weights_stay_out_of_git(tmp_path: Path) -> None:
    ignored = Path(__file__).parents[1] / ".gitignore"
    if shutil.which("git") is None or not ignored.exists():
        pytest.skip("no git, or not its work tree")
    shutil.copyfile(ignored, tmp_path / ".gitignore")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    names = ["tuned/model.safetensors", "checkpoint_epoch_30.pt", "weights_best.pt", "a.pth"]
    asked = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", *names], capture_output=True, text=True
    )
    assert asked.stdout.split() == names
