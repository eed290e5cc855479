"""Pretraining from a frozen backbone's cached states, with a tiny BERT and few drawn scenes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

from retrieval_engine.cli import main
from retrieval_engine.encoding.from_source import EncodeOptions, encode
from retrieval_engine.errors import CheckpointInvalid, TrainingError, UsageError, VlreError
from retrieval_engine.evaluate.evaluation import RecallSettings, evaluate_store
from retrieval_engine.models import open_encoder
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.blip.backbone import (
    BATCH_NORM_EPSILON,
    EfficientNetLite,
    published_names,
)
from retrieval_engine.models.blip.captioner import BlipCaptioner
from retrieval_engine.models.blip.cross_encoder import BlipCrossEncoder
from retrieval_engine.models.blip.encoder import BlipEncoder
from retrieval_engine.models.captioner import open_captioner
from retrieval_engine.models.checksums import write_checksums
from retrieval_engine.models.text_tower import TextTowerFirst, reopen_for_texts
from retrieval_engine.progress import Silent
from retrieval_engine.records import Modality
from retrieval_engine.sources import open_source, read_bytes
from retrieval_engine.sources.decode import decode
from retrieval_engine.store import open_store
from retrieval_engine.train.model_files import write_model
from retrieval_engine.train.pretrain.cached.cached_objective import Draw
from retrieval_engine.train.pretrain.cached.config import CachedConfig
from retrieval_engine.train.pretrain.cached.judge import Judgement
from retrieval_engine.train.pretrain.cached.prototypes import (
    ClassName,
    Prototypes,
    read_class_names,
)
from retrieval_engine.train.pretrain.cached.second_opinion import WEIGHTS, second_opinion, weight_of
from retrieval_engine.train.pretrain.cached.start import first_guess
from retrieval_engine.train.pretrain.cached.trainer import CachedRun, pretrain_cached

NAMES = ["tench | doctor fish; fish", "apple; fruit", "red car", *(f"thing {i}" for i in range(7))]


def publish(path: Path) -> None:
    """A random lite0 in the layout in which its weights are published."""
    torch.manual_seed(0)
    backbone = EfficientNetLite("efficientnet-lite0")
    state: dict[str, torch.Tensor] = {"_fc.weight": torch.randn(len(NAMES), 1280) / 10}
    own = {k.removesuffix(".weight"): v for k, v in backbone.state_dict().items()}
    convolutions = {f"_{name}.weight": name for name in own if name.startswith("blocks.")}
    for key, name in convolutions.items():
        at, part = name.rsplit(".", 1)
        if f"{at}.{part}.bias" in own:
            state[f"_{at}._{part}_conv.weight"] = own[name] * 2
        del key
    state |= {"_conv_stem.weight": own["stem"] * 2, "_conv_head.weight": own["head"] * 2}
    for _, convolution, norm in published_names(dict(state)):
        channels = len(state[f"{convolution}.weight"])
        state[f"{norm}.weight"] = torch.ones(channels)
        state[f"{norm}.bias"] = torch.zeros(channels)
        state[f"{norm}.running_mean"] = torch.zeros(channels)
        state[f"{norm}.running_var"] = torch.full((channels,), 1 - BATCH_NORM_EPSILON)
    torch.save(state, path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> CachedConfig:
    """A run of four steps, two of them with captions, the last one with matching."""
    home = tmp_path_factory.mktemp("teachers")
    publish(home / "lite0.pth")
    words = [
        "a",
        "the",
        "dog",
        "cat",
        "on",
        "grass",
        "red",
        "car",
        "sky",
        "boat",
        "water",
        "of",
        "photo",
        "picture",
        "bird",
        "tree",
    ]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + [w for w in words if len(w) > 1]
    torch.manual_seed(1)
    bert = BertModel(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=80,
        )
    )
    bert.save_pretrained(home / "bert")
    BertTokenizer(vocab={p: i for i, p in enumerate(pieces)}).save_pretrained(home / "bert")
    (home / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return CachedConfig(
        source="scenes:20?seed=1",
        val_source="scenes:10?seed=2",
        backbone="efficientnet-lite0",
        backbone_weights=str(home / "lite0.pth"),
        text_init=str(home / "bert"),
        class_names=str(home / "names.txt"),
        embed_dim=16,
        frozen_layers=1,
        steps=4,
        contrast_share=0.5,
        matching_share=0.6,
        batch_size=8,
        fused_size=4,
        matched_size=2,
        prototypes=4,
        eval_every=2,
        save_dtype="float32",
        device="cpu",
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the states of the module's runs are kept."""
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def trained(recipe: CachedConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the run writes."""
    out = tmp_path_factory.mktemp("models") / "small"
    report = pretrain_cached(recipe, out, cache=cache)
    assert report.steps == 4
    assert not (out / "run").exists()
    return out


def test_what_is_written_computes_what_was_trained(
    recipe: CachedConfig, cache: Path, trained: Path, tmp_path: Path
) -> None:
    """The folded scale, the whole tower and the tied decoder, against the network in training."""
    encoder = open_encoder(str(trained), device="cpu", dtype="float32")
    items = list(open_source(recipe.val_source).items())
    pixels = np.stack([encoder.preprocessor.pixels(decode(read_bytes(i.uri))) for i in items])
    found = encoder.encode_images(pixels, ["itc", "pooled", "tokens"])
    assert found["tokens"].shape == (10, 50, 32)
    np.testing.assert_array_equal(found["tokens"][:, 0], found["pooled"])

    run = CachedRun(recipe, tmp_path / "again", cache, Silent(), False)
    run.train()
    run.model.load_state_dict(torch.load(tmp_path / "again" / "run" / "best.pt"))
    run.model.eval()
    with torch.inference_mode():
        tokens = run.model.see(torch.from_numpy(run.scale.apply(run.val_set.views[0][:])))
        images = run.model.embed_images(tokens)
        words = run.val_texts.of(np.arange(4), mirrored=False)
        texts = run.model.embed_texts(words.ids, words.mask)
    np.testing.assert_allclose(found["tokens"], tokens.numpy(), atol=5e-3)  # float16 states
    np.testing.assert_allclose(found["itc"][:, 0], images.numpy(), atol=5e-3)
    captions = list(run.val_set.captions[:4])
    itc = encoder.encode_texts(captions, ["itc"])["itc"][:, 0]
    np.testing.assert_allclose(itc, texts.numpy(), atol=1e-5)

    captioner = open_captioner(str(trained), device="cpu", dtype="float32")
    assert isinstance(captioner, BlipCaptioner)
    decoder, ours = captioner.model.text_decoder, run.model.text_decoder
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(decoder.state_dict()[name], tensor, msg=name)
    assert (
        captioner.features(Modality.IMAGES)["tokens"] == encoder.features(Modality.IMAGES)["tokens"]
    )


def test_soft_targets_reward_captions_that_read_alike(
    recipe: CachedConfig, cache: Path, tmp_path: Path
) -> None:
    """Without them the loss is cross-entropy; with them a kindred caption is the lesser mistake."""
    losses = {}
    for soft in (0.0, 0.4):
        config = dataclasses.replace(recipe, soft_targets=soft)
        run = CachedRun(config, tmp_path / str(soft), cache, Silent(), False)
        seen = run.batcher.batch(0, 8, 0.4)
        texts = [run.train_set.captions[i] for i in seen.captions]
        assert len(set(texts)) == len(texts)
        states = torch.eye(len(run.train_set.captions))
        states[seen.captions[1]] = states[seen.captions[0]] + 0.1 * states[seen.captions[1]]
        run.objective.learn_likeness(states)
        for other in (1, 2):  # who is taken for picture 0, and caption 0 for whose
            scores = 10.0 * torch.eye(8)
            scores[0, other] = scores[other, 0] = 9.0
            losses[soft, other] = float(run.objective._contrast(scores, seen))
    assert losses[0.0, 1] == pytest.approx(losses[0.0, 2], abs=1e-6)
    assert losses[0.4, 1] < losses[0.4, 2] - 0.1


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_what_is_judged_and_written_is_the_average(
    recipe: CachedConfig, cache: Path, tmp_path: Path, average: float
) -> None:
    config = dataclasses.replace(recipe, average=average)
    run = CachedRun(config, tmp_path / "run", cache, Silent(), False)
    name = "retrieval.text_encoder.encoder.layer.0.crossattention.self.query.weight"
    expected = run.model.state_dict()[name].clone()
    step = run._step

    def stepped() -> dict[str, torch.Tensor]:
        nonlocal expected
        found = step()
        expected = average * expected + (1 - average) * run.model.state_dict()[name]
        return found

    run._step = stepped  # type: ignore[method-assign]
    run.train()
    torch.testing.assert_close(run.averaged.module.state_dict()[name], expected)
    last = run.model.state_dict()[name]
    assert torch.equal(expected, last) == (average == 0.0)
    kept = torch.load(tmp_path / "run" / "run" / "best.pt")[name]
    assert run.state.kept_step < config.steps or torch.equal(
        kept, run.averaged.module.state_dict()[name]
    )


def test_captions_leave_the_vectors_as_they_were(
    recipe: CachedConfig, cache: Path, tmp_path: Path
) -> None:
    """What was best at retrieval stays, to the last bit; what reads both sides learns."""
    run = CachedRun(recipe, tmp_path / "run", cache, Silent(), False)
    settle, settled = run._settle, {}

    def settle_and_note() -> None:
        settle()
        settled.update({n: p.detach().clone() for n, p in run.model.named_parameters()})

    run._settle = settle_and_note  # type: ignore[method-assign]
    run.train()
    now = dict(run.model.named_parameters())
    moved = {name for name, before in settled.items() if not torch.equal(now[name], before)}
    assert moved == {name for name, parameter in now.items() if parameter.requires_grad}
    layer = "retrieval.text_encoder.encoder.layer.0."
    assert f"{layer}crossattention.self.query.weight" in moved
    assert f"{layer}output.dense.weight" not in moved
    assert {"retrieval.itm_head.weight", "match_scale"} <= moved
    kept = torch.load(tmp_path / "run" / "run" / "best.pt")
    torch.testing.assert_close(kept["temperature"], settled["temperature"])


def test_a_false_picture_is_another_and_the_likelier_the_harder(
    recipe: CachedConfig, cache: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(recipe, matched_size=4)
    run = CachedRun(config, tmp_path / "run", cache, Silent(), False)
    seen = run.batcher.batch(0, 4, 1.0)
    images = torch.eye(4, 16)
    run.objective._bank[torch.from_numpy(seen.captions)] = 9.0 * images.roll(1, 0)
    drawn = {}
    for hardness in (0.0, 1.0):
        draw = Draw(step=0, fused=True, matched=True, hardness=hardness)
        rngs = [np.random.default_rng(seed) for seed in range(50)]
        drawn[hardness] = torch.stack(
            [run.objective._false_pictures(images, seen, draw, rng) for rng in rngs]
        )
    listed = run.train_set.listed("folder:pictures")["ids"]
    assert len(listed) == len({str(i) for i in listed}) == len(run.train_set)
    own = torch.arange(4)
    assert not (drawn[0.0] == own).any()
    assert not (drawn[1.0] == own).any()
    assert all(len(set(drawn[0.0][:, row].tolist())) == 3 for row in range(4))
    assert (drawn[1.0] == own.roll(1)).float().mean() > 0.95


def test_the_shared_weights_are_written_once(trained: Path) -> None:
    names = load_file(trained / "model.safetensors").keys()
    assert not [n for n in names if n.startswith("text_decoder.") and "crossattention" in n]
    assert "text_decoder.bert.encoder.layer.0.attention.self.query.weight" in names
    facts = json.loads((trained / "training.json").read_text())
    assert facts["frozen"] == ["vision_model.backbone"]
    assert "ids" not in facts  # the source's name says them


def test_words_are_read_without_the_tower(trained: Path) -> None:
    encoder = open_encoder(str(trained), device="cpu", dtype="float32")
    words = reopen_for_texts(encoder.spec, device="cpu")
    assert isinstance(words, TextTowerFirst)
    texts = ["a dog on grass", "a red car"]
    np.testing.assert_array_equal(
        words.encode_texts(texts, ["itc"])["itc"], encoder.encode_texts(texts, ["itc"])["itc"]
    )


class _Killed(Silent):
    """Stops the run in its third step."""

    steps = -1

    def start(self, what: str, total: int | None) -> None:
        self.steps = 0 if what == "pretraining" else -1

    def advance(self, steps: int = 1) -> None:
        if self.steps >= 0:
            self.steps += steps
        if self.steps == 3:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_to_the_same_weights(
    recipe: CachedConfig, cache: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        pretrain_cached(recipe, out, cache=cache, progress=_Killed())
    with pytest.raises(TrainingError, match="interrupted run"):
        pretrain_cached(recipe, out, cache=cache)
    pretrain_cached(recipe, out, resume=True, cache=cache)
    expected = load_file(trained / "model.safetensors")
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_a_first_guess_finds_a_linear_relation() -> None:
    rng = np.random.default_rng(0)
    truth, means = rng.standard_normal((6, 20)), rng.standard_normal((400, 20)).astype(np.float32)
    texts = (means @ truth.T + 3).astype(np.float32)
    mapping, components, middle = first_guess(means, texts, 6)
    guessed = (means @ mapping.T) @ components.T
    wanted = (texts - middle) @ components.T
    cosines = (guessed * wanted).sum(1) / np.linalg.norm(guessed, axis=1)
    assert np.median(cosines / np.linalg.norm(wanted, axis=1)) > 0.98
    # Half whitened: what varies much in all texts weighs less, and the longest row does not rule.
    spread = ((texts - middle) @ components.T / np.linalg.norm(components, axis=1)).std(0)
    lengths = np.linalg.norm(components, axis=1)
    np.testing.assert_allclose(lengths * spread**0.5, lengths[0] * spread[0] ** 0.5, rtol=1e-4)
    assert (lengths**2).mean() == pytest.approx(1, rel=1e-5)


def test_prototypes_lie_along_their_classifier_rows() -> None:
    rng = np.random.default_rng(0)
    rows = np.eye(6, 40, dtype=np.float32)
    names = [ClassName(names=[f"thing{i}"], kinds=[]) for i in range(6)]
    drawn = Prototypes(rows, names, np.ones(40, dtype=np.float32)).draw(3, rng)
    for states, text in zip(*drawn, strict=True):
        said = {int(word[5:]) for word in text.split() if word.startswith("thing")}
        seen = set(states[[0, -1]].argmax(1).tolist())
        assert seen == said
        assert states.max() == pytest.approx(8, abs=0.7)


def test_class_names_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("tench | doctor fish; fish\napple\n", encoding="utf-8")
    first, second = read_class_names(path, 2)
    assert first == ClassName(names=["tench", "doctor fish"], kinds=["fish"])
    assert second.kinds == []
    with pytest.raises(UsageError, match="has 2 lines"):
        read_class_names(path, 3)
    path.write_text("tench\n; fish\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2 names nothing"):
        read_class_names(path, 2)


def test_bad_recipes_are_refused(recipe: CachedConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown backbone 'resnet'"):
        dataclasses.replace(recipe, backbone="resnet")
    with pytest.raises(UsageError, match="`matched_size` is 5; allowed: 2 to `fused_size`, 4"):
        dataclasses.replace(recipe, matched_size=5)
    with pytest.raises(TrainingError, match=r"20 captioned items to train on.*`fused_size` 21"):
        pretrain_cached(dataclasses.replace(recipe, fused_size=21), tmp_path / "out")
    wrong: list[tuple[str, Any]] = [("places_told", 0.0), ("places_kept", 1.5)]
    for name, value in [*wrong, ("matching_share", 1.0)]:
        with pytest.raises(UsageError, match=f"`{name}` is {value}; allowed: "):
            dataclasses.replace(recipe, **{name: value})
    other = dataclasses.replace(recipe, backbone="efficientnet-lite2")
    with pytest.raises(UsageError, match="are not those of efficientnet-lite2"):
        pretrain_cached(other, tmp_path / "out")


def test_bad_files_are_refused_before_a_picture_is_encoded(
    recipe: CachedConfig, tmp_path: Path
) -> None:
    text, bert = tmp_path / "notes.txt", tmp_path / "bert"
    text.write_text("no weights\n", encoding="utf-8")
    shutil.copytree(recipe.text_init, bert)
    (bert / "model.safetensors").unlink()
    for wrong, said in (
        ({"backbone_weights": str(text)}, "is no PyTorch checkpoint"),
        ({"backbone_weights": str(tmp_path / "none.pth")}, "is no file"),
        ({"text_init": str(tmp_path)}, "holds no tokenizer"),
        ({"text_init": str(bert)}, "holds no BERT"),
        ({"class_names": str(text)}, "lines"),
    ):
        config = dataclasses.replace(recipe, **cast("Any", wrong))
        with pytest.raises(VlreError, match=said) as refusal:
            pretrain_cached(config, tmp_path / "out", cache=tmp_path / "states")
        assert "\n" not in refusal.value.message
        assert not (tmp_path / "states").exists()


def told(trained: Path, tokens: "np.ndarray[Any, Any]", text: str) -> list[float]:
    """Mean log-likelihood of a text's pieces that may be written, by the captioner, piece by piece."""
    captioner = open_captioner(str(trained), device="cpu", dtype="float32")
    assert isinstance(captioner, BlipCaptioner)
    wanted = captioner.tokenizer(text)["input_ids"][1:]
    said = captioner.model.text_decoder.cls.predictions.bias > -15
    found = []
    for i, piece in enumerate(wanted):
        before = torch.tensor([[captioner.start_id, *wanted[:i]]] * len(tokens))
        with torch.inference_mode():
            logits = captioner.next_logits(torch.from_numpy(tokens), before)[:, said]
        place = int(said[:piece].sum())
        if said[piece]:
            found.append(logits.log_softmax(-1)[:, place])
    assert found
    return torch.stack(found).mean(0).tolist()


@pytest.mark.parametrize("kind", ["of the cosine alone", "shared", "apart"])
def test_match_logits_start_at_the_cosine_and_likelihood_orders_images(
    kind: str, trained: Path, tmp_path: Path
) -> None:
    """A logit is ITM's, and the cosine; how likely the decoder would write the text is beside it."""
    model = tmp_path / "model"
    moved = "text_decoder.bert.encoder.layer.0.crossattention.self.value.weight"
    if kind == "apart":  # as after a fine-tuning: the decoder looks at images in its own way
        twin = load_file(trained / "model.safetensors")[moved.replace("decoder.bert", "encoder")]
        write_model(trained, {moved: twin * 3}, model)
    else:
        shutil.copytree(trained, model)
    config = json.loads((model / "config.json").read_text())
    start = config["match_start"]
    for name in ("likelihood", "usual"):
        start.pop(name, None)
    if kind != "of the cosine alone":
        start |= {"likelihood": 2.0, "usual": -1.5}
    (model / "config.json").write_text(json.dumps(config))
    write_checksums(model, ["config.json", "model.safetensors"])
    items = list(open_source("scenes:3?seed=3").items())
    texts = ["a dog on grass", "a red car", "water"]
    pairs = np.array([[image, text] for text in range(3) for image in range(3)])
    fingerprints = set()
    for plain in (True, False):
        encoder = BlipEncoder(resolve(str(model)), device="cpu", dtype="float32", plain=plain)
        fingerprints.add(encoder.spec.fingerprint)
        pixels = np.stack([encoder.preprocessor.pixels(decode(read_bytes(i.uri))) for i in items])
        found = encoder.encode_images(pixels, ["itc", "tokens"])
        cosines = encoder.encode_texts(texts, ["itc"])["itc"][:, 0] @ found["itc"][:, 0].T
        tokens = found["tokens"]
        matcher = encoder.matcher()
        logits = matcher.score_pairs(tokens.__getitem__, texts, pairs)
        orders = matcher.score_pairs(tokens.__getitem__, texts, pairs, of_images=True)
        assert matcher.orders_images == ("likelihood" in start)
        alone = BlipCrossEncoder(encoder.model.text_encoder, encoder.model.itm_head)
        ids = [[encoder.enc_token_id, *row[1:]] for row in encoder.tokenize(texts)]
        for text, row in enumerate(ids):
            with torch.inference_mode():
                one = torch.tensor(row).expand(3, 1, -1)
                own = alone.logits(
                    alone.keys_values(torch.from_numpy(tokens)), one, torch.ones_like(one)
                )
            expected = own[:, 0, 1].numpy() + start["scale"] * cosines[text] - start["offset"]
            np.testing.assert_allclose(logits[3 * text : 3 * text + 3], expected, atol=1e-4)
            if "likelihood" in start:
                expected += 2 * (np.array(told(model, tokens, texts[text])) + 1.5)
            np.testing.assert_allclose(orders[3 * text : 3 * text + 3], expected, atol=1e-4)
    assert len(fingerprints) == 1


def test_a_decoder_counts_in_the_fingerprint_of_matching_where_it_matches(
    trained: Path, tmp_path: Path
) -> None:
    own = "text_decoder.bert.encoder.layer.0.attention.self.value.weight"
    parts = {}
    for weight in (0.0, 2.0):
        for moved in (0.0, 1.0):
            folder = tmp_path / f"{weight}-{moved}"
            write_model(
                trained, {own: load_file(trained / "model.safetensors")[own] + moved}, folder
            )
            config = json.loads((folder / "config.json").read_text())
            config["match_start"] |= {"likelihood": weight, "usual": -2.0}
            (folder / "config.json").write_text(json.dumps(config))
            write_checksums(folder, ["config.json", "model.safetensors"])
            parts[weight, moved] = open_encoder(str(folder), device="cpu").spec.weights
    assert parts[0.0, 0.0] == parts[0.0, 1.0]
    assert parts[2.0, 0.0]["itm"] != parts[2.0, 1.0]["itm"]
    assert (
        len({tuple(sorted((k, v) for k, v in p.items() if k != "itm")) for p in parts.values()})
        == 1
    )


def test_a_second_opinion_is_heard_as_far_as_it_knows_better(
    recipe: CachedConfig, tmp_path: Path
) -> None:
    logits, means = torch.zeros(3, 4), -2 + torch.eye(4)[[0, 0, 1]]
    assert 0 < weight_of(logits, means) < WEIGHTS[-1]  # right twice, wrong once
    assert weight_of(logits[:2], means[:2]) == WEIGHTS[-1]
    assert weight_of(logits[2:], means[2:]) == 0
    run = CachedRun(recipe, tmp_path / "out", tmp_path / "states", Silent(), False)
    held_out = run.val_set, run.val_texts, run.scale
    weight, usual = second_opinion(run.model.eval(), *held_out, Silent())
    assert weight in WEIGHTS
    likely = []
    for picture, first in enumerate(run.val_set.starts[:-1]):
        states = torch.from_numpy(run.scale.apply(run.val_set.views[0][picture : picture + 1]))
        words = run.val_texts.of(np.array([first]), mirrored=False).ids[0, 1:].tolist()
        given = torch.tensor([[[run.model.config.text_config.bos_token_id, *words[:-1]]]])
        with torch.inference_mode():
            seen = run.model.cross.keys_values(run.model.see(states))
            logits = run.model.caption_logits(seen, given)[0].log_softmax(-1)
        said = run.model.said.tolist()
        pieces = [logits[at, said.index(piece)] for at, piece in enumerate(words) if piece in said]
        likely.append(float(torch.stack(pieces).mean()))
    assert usual == pytest.approx(np.mean(likely), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"likelihood": "high"}, "match_start.likelihood in config.json is 'high'"),
        ({"scale": None}, "match_start.scale in config.json is None"),
        ({"usual": [1]}, "match_start.usual in config.json is [1]"),
        ({"cls_token_id": 2.5}, "match_start.cls_token_id in config.json is 2.5"),
        ({"unusual": 1}, "match_start in config.json is {"),
    ],
)
def test_a_start_that_is_none_is_refused(
    change: dict[str, Any], said: str, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "model")
    config = json.loads((trained / "config.json").read_text())
    config["match_start"] |= change
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    write_checksums(tmp_path / "model", ["config.json", "model.safetensors"])
    with pytest.raises(CheckpointInvalid, match=re.escape(said)) as refusal:
        open_encoder(str(tmp_path / "model"), device="cpu")
    assert refusal.value.hint


@pytest.mark.parametrize("devices", ["", "cpu,cpu"])
def test_eval_orders_images_by_likelihood_and_texts_without(
    devices: str, trained: Path, tmp_path: Path
) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    shutil.copytree(trained, model)
    config = json.loads((model / "config.json").read_text())
    config["match_start"]["likelihood"] = 30.0
    (model / "config.json").write_text(json.dumps(config))
    write_checksums(model, ["config.json", "model.safetensors"])
    options = EncodeOptions(features=("itc", "tokens"), store_dtype="float32")
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    encode("scenes:12?seed=4", store, encoder=encoder, options=options)
    gallery = open_store(store).gallery()
    images, captions = len(gallery), len(gallery.caption_texts)
    pairs = np.stack(np.meshgrid(range(images), range(captions), indexing="ij"), -1).reshape(-1, 2)
    tokens = gallery.images("tokens")
    itc = np.asarray(gallery.images("itc"))[:, 0] @ np.asarray(gallery.captions("itc"))[:, 0].T
    own = gallery.caption_image[None] == np.arange(images)[:, None]
    ranks = []
    for of_images in (False, True):
        logits = encoder.matcher().score_pairs(
            tokens.__getitem__, gallery.caption_texts, pairs, of_images=of_images
        )
        total = logits.reshape(itc.shape) + itc
        best = np.where(own, total, -np.inf).max(0 if of_images else 1, keepdims=True)
        ranks.append((total > best).sum(0 if of_images else 1))
    settings = RecallSettings(rerank=captions, devices=devices, model=str(model))
    protocol, found = evaluate_store(open_store(store), settings).results[-1]
    assert "likelihood" in protocol.score
    for report, rank in ((found.image_to_text, ranks[0]), (found.text_to_image, ranks[1])):
        assert report.recall[1] == pytest.approx(100 * (rank == 0).mean())
        assert report.recall[5] == pytest.approx(100 * (rank < 5).mean())


def test_training_one_text_tower_leaves_the_other(trained: Path, tmp_path: Path) -> None:
    base = load_file(trained / "model.safetensors")
    shared = "encoder.layer.1.crossattention.self.key.weight"
    encoder, decoder = f"text_encoder.{shared}", f"text_decoder.bert.{shared}"
    write_model(trained, {decoder: base[encoder] + 1}, tmp_path / "captions")
    write_model(trained, {encoder: base[encoder] + 1}, tmp_path / "search")
    for folder, moved, kept in (("captions", decoder, encoder), ("search", encoder, decoder)):
        written = load_file(tmp_path / folder / "model.safetensors")
        torch.testing.assert_close(written[moved], base[encoder] + 1)
        torch.testing.assert_close(written[kept], base[encoder])
    captioner = open_captioner(str(tmp_path / "captions"), device="cpu", dtype="float32")
    assert isinstance(captioner, BlipCaptioner)
    layer = captioner.model.text_decoder.bert.encoder.layer[1]
    torch.testing.assert_close(layer.crossattention.self.key.weight.data, base[encoder] + 1)


@pytest.fixture(scope="module")
def store(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as the trained model sees them."""
    path = tmp_path_factory.mktemp("scenes") / "store"
    encode(
        "scenes:14?seed=8",
        path,
        encoder=open_encoder(str(trained), device="cpu", dtype="float32"),
        options=EncodeOptions(features=("itc", "tokens"), store_dtype="float32"),
    )
    return path


@pytest.mark.whole
@pytest.mark.parametrize(
    "task", [("retrieval", "--no-itm"), ("caption",), ("retrieval", "--from-pixels", "--no-itm")]
)
def test_what_was_pretrained_can_be_finetuned(
    task: tuple[str, ...], trained: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["finetune", *task, "--store", str(store), "--out", str(out), "--max-steps", "2"]
    result = CliRunner().invoke(main, [*arguments, "--batch-size", "4", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    before = load_file(trained / "model.safetensors")
    after = load_file(out / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name].float())}
    assert moved
    assert not [name for name in moved if ".backbone." in name]
    open_encoder(str(out), device="cpu")
    open_captioner(str(out), device="cpu", dtype="auto")


def test_weights_from_before_matching_are_not_written(
    recipe: CachedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the figures said before: what is kept has a matching head that was trained."""
    falling = iter(range(100, 0, -1))
    monkeypatch.setattr(Judgement, "mean", property(lambda self: float(next(falling))))
    config = dataclasses.replace(recipe, steps=10, eval_every=1)
    report = pretrain_cached(config, tmp_path / "out", cache=tmp_path / "states")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    along = (np.arange(10) / 10 - 0.5) / 0.5  # of the steps with captions
    first = int(np.flatnonzero(along + config.matching_share >= 1)[0])
    assert report.best_step == first + 1
    assert any("itm" in line for line in lines)
