"""Captions written during a run, and whether they say one thing over and over."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from retrieval_engine.models.learner import CaptionLearner

_LONGEST = 20  # tokens of a written caption, after the prompt
_FEWEST = 8  # captions that can be judged
_MOST_ALIKE, _MOST_REPEATED, _FEWEST_PAIRS = 0.5, 0.3, 0.05


@torch.no_grad()
def write(learner: CaptionLearner, states: Tensor) -> list[str]:
    """The likeliest word after word for each of (i, t, w) images: for a look, not for speed."""
    rows, given = learner.encode([""])
    ids = torch.tensor(rows[0][:given], device=states.device).expand(len(states), 1, -1)
    seen = learner.read(states)
    ended = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    for _ in range(_LONGEST):
        logits = learner.logits(seen, ids, torch.ones_like(ids))[:, 0, -1]
        chosen = logits.argmax(-1).masked_fill(ended, learner.end_id)
        ended |= chosen == learner.end_id
        ids = torch.cat((ids, chosen[:, None, None]), dim=-1)
        if bool(ended.all()):
            break
    texts = []
    for row in ids[:, 0, given:].tolist():
        end = row.index(learner.end_id) if learner.end_id in row else len(row)
        texts.append(learner.words(row[:end]))
    return texts


def variety(texts: Sequence[str]) -> dict[str, float]:
    """How varied captions are: `distinct_2`, `repetition_rate`, `commonest_share`, in [0, 1]."""
    pairs = [list(pairwise(words)) for words in map(str.split, texts)]
    count = max(1, sum(map(len, pairs)))
    return {
        "distinct_2": len({pair for own in pairs for pair in own}) / count,
        "repetition_rate": sum(len(own) - len(set(own)) for own in pairs) / count,
        "commonest_share": max(Counter(texts).values()) / len(texts),
    }


def collapse(texts: Sequence[str], figures: Mapping[str, float]) -> str:
    """A warning where captions say one thing over and over; empty where they do not."""
    if len(texts) < _FEWEST:
        return ""
    commonest, _ = Counter(texts).most_common(1)[0]
    if figures["commonest_share"] > _MOST_ALIKE:
        return f"mode collapse: {figures['commonest_share']:.0%} of captions are {commonest!r}"
    if figures["repetition_rate"] > _MOST_REPEATED:
        return f"repetition: {figures['repetition_rate']:.0%} of word pairs repeat in their caption"
    if figures["distinct_2"] < _FEWEST_PAIRS:
        return f"little variety: only {figures['distinct_2']:.1%} of word pairs are distinct"
    return ""
