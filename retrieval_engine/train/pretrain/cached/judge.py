"""What the weights of a moment are worth on held-out pictures: all three tasks together."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrieval_engine.metrics.recall import RecallReport, recall
from retrieval_engine.records import Json
from retrieval_engine.train.pretrain.cached.data import ChannelScale, Described
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.texts import Texts

_ROWS = 64
_CAPTIONS = 2  # of each picture: half the time of five, and enough to choose by
_MATCHED, _AGAINST, _TOLD = 96, 8, 192


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Figures in per cent.

    Attributes:
        recall: by ITC, two captions of each picture.
        matching: how often ITM puts a picture's own caption before one that ITC finds alike.
        words: next pieces of captions that the decoder puts first.
    """

    recall: RecallReport
    matching: float
    words: float

    @property
    def mean(self) -> float:
        """What a run selects on."""
        return (self.recall.mean_recall + self.matching + self.words) / 3

    def __str__(self) -> str:
        one, ten = (self.recall.text_to_image.recall[k] for k in (1, 10))
        return (
            f"mean recall {self.recall.mean_recall:.1f} (text to image R@1 {one:.1f}, R@10 {ten:.1f}), "
            f"matching {self.matching:.1f}, next word {self.words:.1f}"
        )

    def to_json(self) -> dict[str, Json]:
        """One flat line for the log."""
        line: dict[str, Json] = {"mean_recall": round(self.recall.mean_recall, 3)}
        for name in ("text_to_image", "image_to_text"):
            for k, value in getattr(self.recall, name).recall.items():
                line[f"{name}@{k}"] = round(value, 3)
        return line | {"matching": round(self.matching, 3), "next_word": round(self.words, 3)}


@torch.no_grad()
def judge(
    model: CachedModel, data: Described, texts: Texts, scale: ChannelScale, *, fused: bool
) -> Judgement:
    """Figures of a model on held-out items; it is left in training.

    Args:
        model: in training.
        data: the held-out items.
        texts: their captions.
        scale: of the training set's states.
        fused: whether matching and captions have been trained; they count 0 before.
    """
    model.eval()
    device = model.temperature.device
    rows = np.concatenate(
        [
            np.arange(start, min(start + _CAPTIONS, end))
            for start, end in zip(data.starts[:-1], data.starts[1:], strict=True)
        ]
    )
    images, kept = [], []
    for start in range(0, len(data), _ROWS):
        states = torch.from_numpy(scale.apply(data.views[0][start : start + _ROWS]))
        tokens = model.see(states.to(device))
        images.append(model.embed_images(tokens))
        kept.append(tokens if start < max(_MATCHED, _TOLD) else tokens[:0])
    vectors = []
    for start in range(0, len(rows), 4 * _ROWS):
        words = texts.of(rows[start : start + 4 * _ROWS], mirrored=False).to(device)
        vectors.append(model.embed_texts(words.ids, words.mask))
    seen, written, tokens = torch.cat(images), torch.cat(vectors), torch.cat(kept)
    owner = data.owner[rows]
    found = Judgement(
        recall=recall(seen.cpu().numpy(), written.cpu().numpy(), owner),
        matching=_matching(model, texts, tokens, rows, owner, seen @ written.T) if fused else 0.0,
        words=_next_words(model, texts, tokens, data) if fused else 0.0,
    )
    model.train()
    return found


def _matching(
    model: CachedModel,
    texts: Texts,
    tokens: Tensor,
    rows: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    owner: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    scores: Tensor,
) -> float:
    right, judged = 0, 0
    for image in range(min(_MATCHED, len(tokens))):
        own = int(np.flatnonzero(owner == image)[0])
        others = torch.from_numpy(owner != image).to(scores.device)
        hard = scores[image].masked_fill(~others, -torch.inf).topk(_AGAINST - 1).indices.tolist()
        words = texts.of(rows[[own, *hard]], mirrored=False).to(scores.device)
        ids = words.ids.clone()
        ids[:, 0] = texts.encode_id
        seen = model.cross.keys_values(tokens[image : image + 1])
        logits = model.cross.logits(seen, ids[None], words.mask[None]).view(-1, 2)
        match = logits[:, 1] - logits[:, 0]
        right += int((match[0] > match[1:]).sum())
        judged += len(match) - 1
    return 100.0 * right / judged


def _next_words(model: CachedModel, texts: Texts, tokens: Tensor, data: Described) -> float:
    """Per cent of the pieces of each picture's first caption that come first in the logits."""
    right, count = 0, 0
    for start in range(0, min(_TOLD, len(tokens)), _ROWS):
        part = tokens[start : min(start + _ROWS, _TOLD)]
        words = texts.of(data.starts[start : start + len(part)], mirrored=False)
        ids = words.ids.to(tokens.device)
        given = ids[:, None, :-1].clone()
        given[..., 0] = model.config.text_config.bos_token_id
        logits = model.caption_logits(model.cross.keys_values(part), given)
        best = model.said[logits.argmax(-1)]
        real = ids[:, 1:] != 0
        right += int(((best == ids[:, 1:]) & real).sum())
        count += int(real.sum())
    return 100.0 * right / count
