"""More words in captions: what can be done to the decoder of `vlre-photo` after `vlre pretrain`.

    vlre encode flickr8k:DIR --features itc,tokens --store STORE
    python -m benchmarks.photo_words --store STORE --model DIR --out DIR

A decoder that learned from 25,000 sentences and is asked for the likeliest one says what is common.
Known steps move it along the line between CIDEr and words, and the line outwards:

1. **Logit adjustment** (Menon et al., ICLR 2021; `models/lexicon.py`): a share of the log frequency
   that a piece has in the training captions is taken from its bias in the word head.
2. **A reward** (`train.finetune.rewarded`): captions drawn from the adjusted model learn to score better by
   CIDEr-D. Vectors stay: what learns is the decoder's own attention, cross-attention and the layer
   before the word head. Each seed is a run of its own, a thread each.
3. **Weights between** the mean of the runs and the ones before (Wortsman et al., "Robust fine-tuning of
   zero-shot models", CVPR 2022). The share that stays in the bias is a little less; `vlre caption
   --logit-adjustment` takes more where it is asked for.

A killed run goes on from where it last printed. It prints a JSON line for every 25 steps, and one for
greedy captions of 500 images of the split `val`.
"""

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.report import emit
from retrieval_engine.metrics.bleu import bleu, bleu_statistics
from retrieval_engine.metrics.cider import CiderD, cider_d
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.models import open_encoder
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.checksums import CHECKSUMS, write_checksums
from retrieval_engine.models.learner import Task, open_learner
from retrieval_engine.models.lexicon import WORD_COUNTS, Lexicon, counted, write_word_counts
from retrieval_engine.store import Gallery, open_store
from retrieval_engine.train.finetune.captioning import greedy_captions, sentence, written
from retrieval_engine.train.finetune.rewarded import Drawn, policy_loss_sum
from retrieval_engine.train.pretrain.cached.second_opinion import weight_of
from retrieval_engine.train.resume import load_checkpoint, save_atomically

CAPTIONS, JUDGED = 5, 500
ASKED, AGAINST = 200, 32
TEMPERATURE = 0.5
LR = 4e-5
SAVE_EVERY = 25
BETWEEN = 0.6
BIAS = "text_decoder.cls.predictions.bias"
_END = "</s>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is asked for.

    Attributes:
        model: checkpoint as `vlre pretrain` wrote it.
        store: `itc` and `tokens` of the images, captions, the splits train and val.
        steps: of the reward.
        images: of a step.
        share: of the log frequencies that is taken while the reward teaches.
        out: where each run keeps how far it came, to be gone on with after it was killed.
    """

    model: str
    store: Path
    steps: int
    images: int
    share: float
    out: Path


class Words:
    """The decoder of a checkpoint, the images of a store, and what is done with both."""

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.recipe, opened = recipe, open_store(recipe.store)
        self.kept_at = recipe.out / f"run-{seed}.pt"
        self.train, self.val = opened.gallery("train"), opened.gallery("val")
        self.states = self.train.images("tokens")
        self.learner: Any = open_learner(
            resolve(recipe.model), Task.CAPTION, with_tower=False, dtype=torch.float32, quantize=""
        )
        self.captions = captions_of(self.train)
        self.scorer = CiderD([[[*ptb_tokens(t), _END] for t in own] for own in self.captions])
        self.random = np.random.default_rng(seed)
        self.own: dict[str, Tensor] = {}
        for name, weights in self.learner.model.named_parameters():
            learns = "attention." in name or "predictions.transform" in name
            weights.requires_grad_(learns)
            if learns or name == BIAS:
                self.own[name] = weights

    def adjust(self, share: float) -> None:
        """Take a share of the log frequencies from the bias."""
        texts = [text for own in self.captions for text in own]
        self.counts = counted(self.learner.tokenizer, texts)
        logs = Lexicon(self.counts, self.learner.tokenizer, len(self.own[BIAS])).log_frequencies
        with torch.no_grad():
            self.own[BIAS] -= share * torch.from_numpy(logs)

    def reward(self) -> None:
        """Teach; the step size is full after a tenth of the steps."""
        steps, many = self.recipe.steps, self.recipe.images
        learns = [weights for weights in self.own.values() if weights.requires_grad]
        optimiser = torch.optim.AdamW(learns, lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
        order: list[int] = []
        scores, start, done = [], time.perf_counter(), 0
        if self.kept_at.is_file():
            saved = load_checkpoint(self.kept_at, identity=str(self.recipe))
            self.put({name: value.numpy() for name, value in saved["own"].items()})
            optimiser.load_state_dict(saved["optimiser"])
            self.random.bit_generator.state = saved["random"]
            torch.set_rng_state(saved["torch"])
            order, done = saved["order"], saved["step"]
        for step in range(done + 1, steps + 1):
            if len(order) < many:
                order = self.random.permutation(len(self.captions)).tolist()
            for group in optimiser.param_groups:
                group["lr"] = LR * min(1.0, step / max(1, steps // 10))
            loss, score = self._step([order.pop() for _ in range(many)])
            scores.append(score)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learns, 1.0)
            optimiser.step()
            if step % SAVE_EVERY == 0:
                seconds = (time.perf_counter() - start) / (step - done)
                mean = np.mean(scores[-SAVE_EVERY:])
                emit("photo-words", step=step, reward=mean, seconds=seconds)
                state = {
                    "identity": str(self.recipe),
                    "own": {name: own.detach() for name, own in self.own.items()},
                    "optimiser": optimiser.state_dict(),
                    "random": self.random.bit_generator.state,
                    "torch": torch.get_rng_state(),
                    "order": order,
                    "step": step,
                }
                save_atomically(state, self.kept_at)

    def _step(self, images: list[int]) -> tuple[Tensor, float]:
        learner = self.learner
        learner.model.eval()  # what is made likelier is what was drawn: no dropout
        states = torch.from_numpy(self.states[images]).float()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            ids, given = written(learner, states, _at_random, count=CAPTIONS)
        ends = ids[..., given:] == learner.end_id
        counts = torch.zeros_like(ids, dtype=torch.bool)
        counts[..., given:] = ends.cumsum(-1) - ends.long() == 0
        drawn = zip(ids[..., given:].tolist(), images, strict=True)
        found = [self.scorer.scores([self._words(row) for row in own], i) for own, i in drawn]
        scores = torch.tensor(np.array(found), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner.logits(learner.read(states), ids, torch.ones_like(ids))
        loss = policy_loss_sum(logits.float(), Drawn(ids=ids, counts=counts, scores=scores))
        return loss / counts.sum(), float(scores.mean())

    def _words(self, ids: list[int]) -> list[str]:
        kept = sentence(self.learner, ids)
        return ptb_tokens(self.learner.decode(kept)) + [_END] * (len(kept) < len(ids))

    def judge(self) -> None:
        """Greedy captions, no rule against repeating."""
        texts: list[str] = []
        states = self.val.images("tokens")[:JUDGED]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for at in range(0, len(states), 50):
                some = torch.from_numpy(states[at : at + 50]).float()
                texts += greedy_captions(self.learner, some)
        references = [[ptb_tokens(t) for t in own] for own in captions_of(self.val)[:JUDGED]]
        words = [ptb_tokens(text) for text in texts]
        matched = [bleu_statistics(*pair) for pair in zip(words, references, strict=True)]
        emit(
            "photo-words",
            cider=float(cider_d(words, references).mean()),
            bleu4=float(bleu(np.sum(matched, axis=0))[-1]),
            words=len({word for own in words for word in own}),
        )

    def kept(self) -> dict[str, NDArray[np.float32]]:
        """A copy of all that learns, and of the bias."""
        return {name: weights.detach().numpy().copy() for name, weights in self.own.items()}

    def put(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Take these."""
        with torch.no_grad():
            for name, value in weights.items():
                self.own[name].copy_(torch.from_numpy(value))


def rewarded(recipe: Recipe, seed: int) -> dict[str, NDArray[np.float32]]:
    """What one run comes to, in a thread."""
    torch.set_num_threads(1)
    words = Words(recipe, seed)
    words.adjust(recipe.share)
    words.reward()
    return words.kept()


def captions_of(gallery: Gallery) -> list[list[str]]:
    """Of each image."""
    texts = gallery.caption_texts
    return [[texts[int(j)] for j in gallery.captions_of(i)] for i in range(len(gallery))]


def _at_random(logits: Tensor) -> Tensor:
    chances = (logits.float().flatten(0, 1) / TEMPERATURE).softmax(-1)
    return torch.multinomial(chances, 1).view(logits.shape[:2])


def second_opinion(
    model: Path, start: Mapping[str, float], gallery: Gallery
) -> tuple[float, float]:
    """Weight and usual of likelihood among the images of a text, as `cached.second_opinion` has them."""
    encoder = open_encoder(str(model), device="cpu", dtype="float32")
    tokens = gallery.images("tokens")
    asked, against = min(len(gallery), ASKED), min(len(gallery), AGAINST)
    first = [int(gallery.captions_of(i)[0]) for i in range(asked)]
    texts = [gallery.caption_texts[j] for j in first]
    images = encoder.encode_tokens(tokens, ["itc"])["itc"][:, 0]  # type: ignore[attr-defined]
    scores = encoder.encode_texts(texts, ["itc"])["itc"][:, 0] @ images.T
    scores[np.arange(asked), np.arange(asked)] += 2  # first in its list, above any cosine
    best = np.argsort(-scores, axis=1)[:, :against]
    pairs = np.stack([best.ravel(), np.repeat(np.arange(asked), against)], axis=1)
    plain, ordered = (
        encoder.matcher().score_pairs(lambda rows: tokens[rows], texts, pairs, of_images=both)
        for both in (False, True)
    )
    means = (ordered - plain) / start["likelihood"] + start["usual"]
    logits, told = (torch.from_numpy(x).view(asked, against) for x in (plain, means))
    return weight_of(logits, told), round(float(told[:, 0].mean()), 4)


def write(model: Path, out: Path, words: Words) -> None:
    """The checkpoint with these weights, float16; a decoder's cross-attention is the encoder's."""
    shutil.copytree(model, out, dirs_exist_ok=True)
    weights = load_file(model / "model.safetensors")
    for name, value in words.own.items():
        shared = name.replace("text_decoder.bert.", "text_encoder.")
        weights[name if name in weights else shared].copy_(value.detach())
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_word_counts(out, words.counts)
    files = [*json.loads((model / CHECKSUMS).read_text())["sha256"], WORD_COUNTS]
    write_checksums(out, files)
    config = json.loads((out / "config.json").read_text())
    told, usual = second_opinion(out, config["match_start"], words.val)
    config["match_start"] |= {"likelihood": told, "usual": usual}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_checksums(out, files)


def main() -> None:
    """Teach, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True, help="Checkpoint as `vlre pretrain` wrote it.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--share", type=float, default=0.8, help="While the reward teaches.")
    parser.add_argument("--stays", type=float, default=0.7, help="Of it, in what is written.")
    given = parser.parse_args()
    recipe = Recipe(
        model=given.model,
        store=given.store,
        steps=given.steps,
        images=given.images,
        share=given.share,
        out=given.out,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    new = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(given.seeds), mp_context=new) as pool:
        runs = list(pool.map(rewarded, [recipe] * len(given.seeds), given.seeds))
    words = Words(recipe)
    words.judge()
    before = words.kept()
    mean = {name: np.mean([run[name] for run in runs], axis=0) for name in before}
    between = {name: (1 - BETWEEN) * before[name] + BETWEEN * mean[name] for name in before}
    words.put({**between, BIAS: before[BIAS]})
    words.adjust(given.stays)
    words.judge()
    write(resolve(given.model).path, given.out, words)
    for run in given.out.glob("run-*.pt"):
        run.unlink()


if __name__ == "__main__":
    main()
