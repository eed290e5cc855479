"""What the decoder's likelihood of a text is worth to the order of images, by held-out pictures.

Weights that were fitted to the training captions say nothing of it: of those, search knows most.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from retrieval_engine.models.blip.likelihood import Likelihood
from retrieval_engine.progress import Progress
from retrieval_engine.train.pretrain.cached.data import ChannelScale, Described
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.texts import Texts

_PICTURES, _ASKED, _AGAINST = 1000, 200, 32
_ROWS = 64
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


@torch.no_grad()
def second_opinion(
    model: CachedModel, data: Described, texts: Texts, scale: ChannelScale, progress: Progress
) -> tuple[float, float]:
    """The weight with which the true picture is the likeliest of those that search finds.

    For the first caption of some pictures, the best of all by ITC, the true one among them; the
    weight is that of the least cross-entropy of match logits over each list.

    Args:
        model: in evaluation.
        data: the held-out items.
        texts: their captions.
        scale: of the training set's states.
        progress: told about every picture.

    Returns:
        The weight, and the usual: the mean of the true pictures.
    """
    device = model.temperature.device
    tokens = torch.cat(
        [
            model.see(torch.from_numpy(scale.apply(part)).to(device))
            for part in _parts(data.views[0][:_PICTURES])
        ]
    )
    asked = min(len(tokens), _ASKED)
    words = texts.of(data.starts[:asked], mirrored=False).to(device)
    scores = model.embed_texts(words.ids, words.mask) @ model.embed_images(tokens).T
    own = torch.arange(asked, device=device)
    scores[own, own] += 2  # first in its list, above any cosine
    best = scores.topk(min(_AGAINST, len(tokens)), dim=1).indices  # (q, k)
    ids = words.ids.clone()
    ids[:, 0] = texts.encode_id
    told = Likelihood(model.text_decoder, model.config.text_config.bos_token_id)
    logits, means = (torch.zeros(best.shape, device=device) for _ in range(2))
    progress.start("weighing likelihood", len(tokens))
    for image in range(len(tokens)):
        progress.advance()
        rows, places = (best == image).nonzero(as_tuple=True)
        if not len(rows):
            continue
        seen = model.cross.keys_values(tokens[image : image + 1])
        given, mask = ids[rows][None], words.mask[rows][None]
        both = model.cross.logits(seen, given, mask)[0].float()
        logits[rows, places] = both[:, 1] - both[:, 0]
        means[rows, places] = told(seen[:-1], given, mask)[0]
    progress.stop()
    return weight_of(logits, means), round(float(means[:, 0].mean()), 4)


def weight_of(logits: Tensor, means: Tensor) -> float:
    """The weight of means that makes the first of each list the likeliest.

    Args:
        logits: (q, k) match logits without them.
        means: (q, k) log-likelihoods.
    """
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    losses = [float(cross_entropy(logits + weight * means, first)) for weight in WEIGHTS]
    return WEIGHTS[int(np.argmin(losses))]


def _parts(states: "np.ndarray[tuple[int, int, int], np.dtype[np.float16]]") -> "list[np.ndarray]":
    return [states[start : start + _ROWS] for start in range(0, len(states), _ROWS)]
