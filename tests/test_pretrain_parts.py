"""The parts of pretraining: losses, what is true of what, negatives, words, pieces."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from retrieval_engine.metrics.recall import recall
from retrieval_engine.progress import Silent
from retrieval_engine.train.negatives import draw_negatives
from retrieval_engine.train.pretrain.losses import (
    caption_loss,
    concept_loss,
    itc_loss,
)
from retrieval_engine.train.pretrain.tokenizer import train_tokenizer
from retrieval_engine.train.pretrain.trainer import Run
from retrieval_engine.train.pretrain.words import Slots, mirrored, nonsense
from retrieval_engine.train.runlog import RunLog, read_log
from retrieval_engine.train.schedule import step_factor
from tests.pretraining import CONFIG


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Run:
    """A run that has not begun."""
    out = tmp_path_factory.mktemp("run")
    return Run(CONFIG, out, cache, Silent(), resume=False)


# Losses


def test_itc_is_the_mean_of_both_directions() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 4)
    rows = torch.arange(4)
    expected = (cross_entropy(scores, rows) + cross_entropy(scores.T, rows)) / 2
    torch.testing.assert_close(itc_loss(scores, torch.eye(4) > 0), expected)


def test_captions_of_one_picture_are_not_pushed_apart() -> None:
    """Two captions each of two pictures: raising a caption's own score never costs anything."""
    scores = torch.zeros(4, 2, requires_grad=True)
    true = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]]) > 0
    itc_loss(scores, true).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert (scores.grad[true] < 0).all()
    assert (scores.grad[~true] > 0).all()


def test_negatives_go_from_even_to_hard() -> None:
    scores = torch.tensor([[9.0, 5.0, 1.0]]).repeat(3000, 1)
    allowed = torch.tensor([[False, True, True]]).repeat(3000, 1)
    shares = []
    for hardness in (0.0, 1.0):
        drawn, usable = draw_negatives(scores, allowed, hardness, torch.Generator().manual_seed(1))
        assert usable.all()
        assert (drawn != 0).all()
        shares.append(float((drawn == 1).float().mean()))
    assert shares[0] == pytest.approx(0.5, abs=0.03)
    assert shares[1] == pytest.approx(1 / (1 + np.exp(-4)), abs=0.01)


def test_a_row_without_a_negative_says_so() -> None:
    allowed = torch.tensor([[False, False], [True, False]])
    drawn, usable = draw_negatives(torch.zeros(2, 2), allowed, 1.0, torch.Generator())
    assert usable.tolist() == [False, True]
    assert drawn[1] == 0


def test_caption_loss_leaves_out_the_prompt(run: Run) -> None:
    tokens, labels = run.texts.for_decoder(
        np.array([4, 4]), np.array([True, False]), mirrored=False
    )
    words = run.tokenizer.convert_ids_to_tokens(tokens.ids[0].tolist())
    assert words[:4] == ["[DEC]", "a", "picture", "of"]
    assert (labels[0, :4] == -100).all()
    assert labels[0, 4] == tokens.ids[0, 4]
    assert run.tokenizer.convert_ids_to_tokens([int(tokens.ids[1, 0])]) == ["[DEC]"]
    caption = run.tokenizer(run.train_set.captions[4])["input_ids"]
    assert labels[1, 1 : len(caption)].tolist() == caption[1:]
    assert (labels[tokens.mask == 0] == -100).all()
    logits = torch.zeros(2, tokens.ids.shape[1], 11)
    flat = caption_loss(logits, labels.clamp(max=10), smoothing=0.1)
    assert float(flat) == pytest.approx(np.log(11), rel=1e-5)


def test_concepts_that_cannot_be_seen_cost_nothing() -> None:
    logits = torch.tensor([[5.0, -5.0]], requires_grad=True)
    loss = concept_loss(logits, torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] > 0


def test_step_factor_rises_and_falls() -> None:
    factors = [step_factor(done, 0.1) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])
    assert step_factor(1.0, 0.1, floor=0.2) == pytest.approx(0.2)


# Data


def test_what_is_true_of_a_picture_is_never_its_negative(run: Run) -> None:
    labels = run.train_set.labels
    assert labels is not None
    found_other = 0
    for step in range(3):
        batch = run.batcher.batch(step, with_texts=True)
        assert batch.true is not None
        assert batch.true[torch.arange(len(batch.captions)), batch.owner].all()
        for (row, caption), (column, item) in itertools.product(
            enumerate(batch.captions), enumerate(batch.items)
        ):
            claims = labels.claims(run.train_set.captions[caption])
            facts = labels.facts(run.train_set.pictures.items[item].meta)
            is_true = claims is not None and claims <= facts
            assert bool(batch.true[row, column]) == is_true or batch.owner[row] == column
            found_other += is_true and int(batch.owner[row]) != column
    assert found_other > 50  # short captions are true of many pictures


def test_matching_pairs_are_rightly_labelled(run: Run) -> None:
    """Read each text back from its tokens and judge it by what is in the picture."""
    labels = run.train_set.labels
    assert labels is not None
    firsts, seen = [], {0: 0, 1: 0}
    for step in range(6):
        batch = run.batcher.batch(step, with_texts=True)
        scores = torch.zeros(len(batch.captions), len(batch.items))
        pairs = run.objective._matcher.pairs(batch, scores, step, hardness=1.0)
        for ids, image, label in zip(pairs.tokens.ids, pairs.image, pairs.label, strict=True):
            text = run.tokenizer.decode(ids, skip_special_tokens=True)
            firsts.append(int(ids[0]))
            claims = labels.claims(text)
            if claims is None:  # nonsense
                assert label == 0
                continue
            meta = run.train_set.pictures.items[batch.items[image]].meta
            assert (claims <= labels.facts(meta, mirrored=batch.is_mirrored)) == bool(label), text
            seen[int(label)] += 1
    assert seen[1] == 6 * 12
    assert seen[0] > 6 * 12
    share = np.mean([first == run.texts.encode_id for first in firsts])
    assert share == pytest.approx(0.75, abs=0.1)


def test_patch_labels_are_mirrored_with_the_picture(run: Run) -> None:
    data = run.train_set
    labels = data.labels
    assert labels is not None
    both = set()
    for step in range(6):
        batch = run.batcher.batch(step, with_texts=True)
        assert batch.regions is not None
        item = data.pictures.items[batch.items[0]]
        kinds = labels.patch_labels(item, 4)["kind"].astype(np.int64)
        expected = kinds[:, ::-1] if batch.is_mirrored else kinds
        assert batch.regions[0, 0].tolist() == expected.ravel().tolist()
        both.add(batch.is_mirrored)
    assert both == {True, False}


def test_grey_pictures_are_not_asked_for_colours(run: Run) -> None:
    """Labels must not leak into what the picture does not show."""
    names = run.train_set.concepts
    coloured = run.train_set.is_colour
    assert {"red car", "brown dog"} & {n for n, c in zip(names, coloured, strict=True) if c}
    assert not coloured[names.index("on grass")]
    batches = [run.batcher.batch(step, with_texts=False) for step in range(4)]
    pixels = torch.cat([b.pixels for b in batches])
    known = torch.cat([b.known for b in batches])
    regions = torch.cat([b.regions for b in batches if b.regions is not None])
    rgb = pixels * run.batcher._std + run.batcher._mean
    spread = (rgb.amax(1) - rgb.amin(1)).mean((1, 2))
    grey = known[:, torch.from_numpy(coloured)].sum(1) == 0
    assert 0 < int(grey.sum()) < len(grey) // 2
    assert float(spread[grey].max()) < 0.1 < float(spread[~grey].min()) + 0.1
    assert (regions[grey] == -100).all()


def test_nothing_but_the_picture_reaches_the_vision_tower(run: Run) -> None:
    """The validation reads neither captions nor labels of what it embeds."""
    data = run.val_set
    assert data.pictures.regions is None
    assert not {i.uri for i in data.pictures.items} & {i.uri for i in run.train_set.pictures.items}


def test_every_picture_comes_once_an_epoch(run: Run) -> None:
    per_epoch = len(run.train_set) // CONFIG.batch_size
    seen = np.concatenate([run.batcher._items(step) for step in range(per_epoch)])
    assert len(set(seen.tolist())) == len(seen)


def test_slots_change_a_caption_into_one_of_its_kind() -> None:
    slots = Slots(["a red car on grass", "a blue car on grass", "a red boat on water"])
    rng = np.random.default_rng(0)
    made = {slots.changed("a red car on grass", rng) for _ in range(60)}
    assert made == {
        ("a blue car on grass", "blue"),
        ("a red boat on grass", "boat"),
        ("a red car on water", "water"),
    }
    assert slots.changed("nothing like it", rng) is None


def test_mirrored_swaps_the_sides() -> None:
    assert mirrored("a dog left of a cat on the right") == "a dog right of a cat on the left"
    assert mirrored("leftover rights") == "leftover rights"


def test_nonsense_uses_no_known_content_word() -> None:
    rng = np.random.default_rng(0)
    known = frozenset({"a", "the", "pizza", "castle"})
    words = {w for _ in range(300) for w in nonsense(rng, known).split()}
    assert not words & {"pizza", "castle"}
    assert "volcano" in words


@pytest.mark.parametrize("seed", range(3))
def test_recall_equals_a_plain_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(-2, 3, (7, 3)).astype(np.float32)  # many ties
    texts = rng.integers(-2, 3, (15, 3)).astype(np.float32)
    owner = np.sort(rng.integers(0, 7, 15)).astype(np.int64)
    found = recall(images, texts, owner)
    scores = texts @ images.T
    ranks = [
        sorted(range(7), key=lambda i: (-row[i], i)).index(o)
        for row, o in zip(scores, owner.tolist(), strict=True)
    ]
    assert found.text_to_image.recall[1] == pytest.approx(100 * np.mean(np.array(ranks) < 1))
    first = []
    for image in sorted(set(owner.tolist())):
        order = sorted(range(15), key=lambda t: (-scores[t, image], t))
        first.append(min(order.index(t) for t in np.flatnonzero(owner == image).tolist()))
    assert found.image_to_text.recall[5] == pytest.approx(100 * np.mean(np.array(first) < 5))


def test_log_drops_the_lines_that_will_come_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    for step in (1, 2, 3):
        log.write({"step": step})
    path.write_text(path.read_text() + '{"step": 4, "los')
    RunLog(path, keep_steps=2)
    assert read_log(path) == [{"step": 1}, {"step": 2}]


# Tokenizer


def test_tokenizer_is_laid_out_as_in_blip() -> None:
    captions = ["a dog on grass", "a red car", "two dogs"] * 5
    tokenizer = train_tokenizer(captions, limit=300)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == pieces
    last = len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens([last - 1, last]) == ["[DEC]", "[ENC]"]
    assert tokenizer.tokenize("a red dog") == ["a", "red", "dog"]
    assert "[UNK]" not in tokenizer.tokenize("zebra quux 42")
    again = train_tokenizer(reversed(captions), limit=300)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_tokenizer_spells_rare_words_in_frequent_pieces() -> None:
    captions = [*["the dog is walking and talking"] * 9, "stalking", "a hawk is walking"]
    tokenizer = train_tokenizer(captions, limit=120)
    assert len(tokenizer) <= 120 + 2
    assert tokenizer.tokenize("walking") == ["walking"]
    pieces = tokenizer.tokenize("balking")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "balking"
    assert len(pieces) <= 3
