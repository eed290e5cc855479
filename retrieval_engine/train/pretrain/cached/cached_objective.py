"""What a step minimises: the contrastive loss, and then matching and captions beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from retrieval_engine.models.device import on_device
from retrieval_engine.models.matcher import KeysValues
from retrieval_engine.train.pretrain.cached.config import CachedConfig
from retrieval_engine.train.pretrain.cached.data import Described, Seen
from retrieval_engine.train.pretrain.cached.hybrid_model import CachedModel
from retrieval_engine.train.pretrain.cached.prototypes import Prototypes
from retrieval_engine.train.pretrain.texts import Texts
from retrieval_engine.train.pretrain.words import Slots, mirrored, nonsense

_COLDEST, _WARMEST = 0.01, 0.5
_CANDIDATES = 1000  # captions that a picture's false ones are drawn from
_FALSE = 2  # false captions of each picture
_BANKED = 512
_MADE, _NONSENSE = 0.4, 0.1  # of the second ones: a word changed (late), or true of nothing
_LONGEST = 22  # tokens of a caption that is matched or told; few are longer
_GROUPS = 4
_PROTOTYPE_WEIGHT = 0.5
_SOFTNESS = 0.1  # temperature of the soft targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a step is made of.

    Attributes:
        step: with the seed, decides what is drawn.
        fused: captions, or else the contrastive loss and the prototypes.
        matched: matching beside the captions.
        hardness: of the false captions and pictures, 0 to 1.
    """

    step: int
    fused: bool
    matched: bool
    hardness: float

    @classmethod
    def at(cls, step: int, along: float | None, matching_share: float) -> "Draw":
        """That of a step.

        Args:
            step: its number.
            along: part of the steps with captions that is over; None before they begin.
            matching_share: part of them, their end, with matching.
        """
        if along is None:
            return cls(step=step, fused=False, matched=False, hardness=0.0)
        over = along + matching_share - 1
        hardness = min(1.0, 2 * over / matching_share) if over > 0 else 0.0
        return cls(step=step, fused=True, matched=over >= 0, hardness=hardness)


class CachedObjective:
    """Losses of a model on the batch of a step.

    Args:
        model: the network.
        data: the training set.
        texts: its captions as tokens.
        config: the recipe.
        prototypes: images of named things, or None.
        said: (s,) ids of the pieces that the decoder may write.
    """

    def __init__(
        self,
        model: CachedModel,
        data: Described,
        texts: Texts,
        config: CachedConfig,
        prototypes: Prototypes | None,
        said: Tensor,
    ) -> None:
        self._model, self._data, self._texts, self._config = model, data, texts, config
        self._prototypes = prototypes
        self._device = said.device
        self._place = torch.full((int(said.max()) + 1,), -100, device=self._device)
        self._place[said] = torch.arange(len(said), device=self._device)
        self._start = model.config.text_config.bos_token_id
        self._bank = torch.zeros(len(data.captions), config.embed_dim, device=self._device)
        self._owner = data.owner
        self._likeness = torch.zeros(0, device=self._device)
        self._slots = Slots(data.captions)
        self._words = frozenset(w for text in data.captions for w in text.split())

    def learn_likeness(self, states: Tensor) -> None:
        """Remember how alike captions are, from their (m, w) states before training."""
        if self._config.soft_targets:
            alike = normalize(states - states.mean(0), dim=-1).half()
            self._likeness = alike.to(self._device)

    def losses(self, seen: Seen, draw: Draw) -> dict[str, Tensor]:
        """The losses of a step's pictures by name, to be summed."""
        rng = np.random.default_rng((self._config.seed, 2, draw.step))
        with torch.set_grad_enabled(not draw.fused):
            tokens = self._model.see(seen.states, seen.places)
            images = self._model.embed_images(tokens)
        temperature = self._model.temperature.clamp(_COLDEST, _WARMEST)
        if draw.fused:
            keys_values = self._model.cross.keys_values(tokens)
            parts = {"lm": self._captions(keys_values, seen, rng)}
            if draw.matched:
                scaled = images / temperature
                parts["itm"] = self._matching(keys_values, scaled, seen, draw, rng)
            return parts
        words = self._texts.of(seen.captions, mirrored=seen.is_mirrored).to(self._device)
        texts = self._model.embed_texts(words.ids, words.mask)
        parts = {"itc": self._contrast(_cosines(texts, images) / temperature, seen)}
        if self._prototypes is not None:
            parts["prototypes"] = self._named(temperature, rng)
        return parts

    @torch.no_grad()
    def learn_bank(self) -> None:
        """Remember the ITC vectors of all captions: false ones are drawn by them."""
        for start in range(0, len(self._bank), _BANKED):
            rows = np.arange(start, min(start + _BANKED, len(self._bank)))
            words = self._texts.of(rows, mirrored=False).to(self._device)
            self._bank[start : start + _BANKED] = self._model.embed_texts(words.ids, words.mask)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to draw the same false captions."""
        return {"bank": self._bank, "likeness": self._likeness}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`."""
        self._bank = state["bank"].to(self._device)
        self._likeness = state["likeness"].to(self._device)

    def _contrast(self, scores: Tensor, seen: Seen) -> Tensor:
        """Both directions; captions worded alike share the target."""
        texts = [self._data.captions[i] for i in seen.captions]
        first = {text: row for row, text in reversed(list(enumerate(texts)))}
        group = on_device(np.array([first[text] for text in texts]), self._device)
        true = (group[:, None] == group[None]).to(scores.dtype)
        targets = true / true.sum(1, keepdim=True)
        smoothing, soft = self._config.label_smoothing, self._config.soft_targets
        if soft:
            alike = self._likeness[on_device(seen.captions, self._device)].float()
            others = (_cosines(alike, alike) / _SOFTNESS).masked_fill(true.bool(), -torch.inf)
            targets = (1 - soft) * targets + soft * others.softmax(1)
        targets = (1 - smoothing) * targets + smoothing / len(true)
        to_image = -(targets * scores.log_softmax(1)).sum(1).mean()
        return (to_image - (targets.T * scores.log_softmax(0)).sum(0).mean()) / 2

    def _named(self, temperature: Tensor, rng: np.random.Generator) -> Tensor:
        assert self._prototypes is not None
        states, texts = self._prototypes.draw(self._config.prototypes, rng)
        count = self._config.grid**2
        places = rng.random((len(states), count)).argsort(1)[:, : states.shape[1]]
        tokens = self._model.see(on_device(states, self._device), on_device(places, self._device))
        words = self._texts.encode(texts).to(self._device)
        written = self._model.embed_texts(words.ids, words.mask)
        scores = _cosines(written, self._model.embed_images(tokens))
        targets = torch.arange(len(texts), device=self._device)
        smoothing = self._config.label_smoothing
        both = [
            cross_entropy(side / temperature, targets, label_smoothing=smoothing)
            for side in (scores, scores.T)
        ]
        return _PROTOTYPE_WEIGHT * (both[0] + both[1]) / 2

    def _false_captions(
        self, images: Tensor, seen: Seen, draw: Draw, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """(f, 2) captions of other pictures, the likelier the more alike (Gumbel's trick)."""
        everything = len(self._bank)
        drawn = rng.choice(everything, min(_CANDIDATES, everything), replace=False)
        bank = self._bank[on_device(drawn, self._device)]
        scores = draw.hardness * _cosines(images, bank).detach().cpu().numpy()
        own = {self._data.captions[i] for i in seen.captions[: len(images)]}
        scores[self._owner[drawn][None] == seen.items[: len(images), None]] = -np.inf
        scores[:, np.array([self._data.captions[i] in own for i in drawn])] -= 1e4
        ranked = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)
        return drawn[ranked[:, :_FALSE]]

    def _false_pictures(
        self, images: Tensor, seen: Seen, draw: Draw, rng: np.random.Generator
    ) -> Tensor:
        """(f,) another picture of the step for each of the first f captions, drawn likewise."""
        captions = self._bank[on_device(seen.captions[: self._config.matched_size], self._device)]
        scores = draw.hardness * _cosines(captions, images).detach().cpu().numpy()
        scores[np.arange(len(scores)), np.arange(len(scores))] = -np.inf
        return on_device((scores + rng.gumbel(size=scores.shape)).argmax(1), self._device)

    def _matching(
        self,
        seen_as: KeysValues,
        images: Tensor,
        seen: Seen,
        draw: Draw,
        rng: np.random.Generator,
    ) -> Tensor:
        """Each true pair against two false captions and a false picture, alone and as a list."""
        false = self._false_captions(images[: self._config.matched_size], seen, draw, rng)
        others = self._false_pictures(images, seen, draw, rng)
        texts = []
        for row, drawn in enumerate(false):
            own = self._data.captions[seen.captions[row]]
            mixed = [own, *(self._data.captions[i] for i in drawn)]
            mixed[-1] = self._made(own, int(seen.items[row]), draw, rng) or mixed[-1]
            texts += [mirrored(text) if seen.is_mirrored else text for text in mixed]
        words = self._texts.encode(texts).to(self._device)
        ids = words.ids[:, :_LONGEST].clone()
        ids[:, 0] = self._texts.encode_id
        ids = ids.view(len(false), 1 + _FALSE, -1)
        parts = []
        for rows, length in _groups(ids):
            part = ids[rows, :, :length]
            asked = ((rows, part), (others[rows], part[:, :1]))
            found = [
                self._model.cross.logits([(k[at], v[at]) for k, v in seen_as], t, (t != 0).long())
                for at, t in asked
            ]
            parts.append(torch.cat(found, dim=1).float())
        logits = torch.cat(parts)  # (f, 4, 2), the true pair first
        labels = torch.zeros(logits.shape[:2], dtype=torch.long, device=ids.device)
        labels[:, 0] = 1
        alone = cross_entropy(logits.flatten(0, 1), labels.flatten())
        listed = logits[..., 1] - logits[..., 0]
        return alone + cross_entropy(listed, torch.zeros_like(labels[:, 0]))

    def _made(self, text: str, item: int, draw: Draw, rng: np.random.Generator) -> str | None:
        """A false text made for a picture now and then: a word changed, or words from nowhere."""
        fate = rng.random()
        if fate < _NONSENSE:
            return nonsense(rng, self._words)
        if fate > _NONSENSE + _MADE * draw.hardness:
            return None
        made = self._slots.changed(text, rng)
        own = self._data.captions[self._data.starts[item] : self._data.starts[item + 1]]
        if made is None or any(made[1] in caption.split() for caption in own):
            return None
        return made[0]

    def _captions(self, seen_as: KeysValues, seen: Seen, rng: np.random.Generator) -> Tensor:
        size, told = self._config.fused_size, self._config.captions_told
        starts = self._data.starts[seen.items[:size]]
        counts = self._data.starts[seen.items[:size] + 1] - starts
        first = rng.integers(counts)
        rows = np.stack([starts + (first + i) % counts for i in range(told)], axis=1)
        words = self._texts.of(rows.ravel(), mirrored=seen.is_mirrored).to(self._device)
        ids = words.ids[:, : _LONGEST + 1].view(size, told, -1)
        total = torch.zeros((), device=self._device)
        count = torch.zeros((), dtype=torch.long, device=self._device)
        for part, length in _groups(ids):
            given = ids[part, :, : length - 1].clone()
            given[..., 0] = self._start
            wanted = ids[part, :, 1:length]
            labels = self._place[wanted].masked_fill(wanted == 0, -100).flatten()
            kept = [(k[part], v[part]) for k, v in seen_as]
            logits = self._model.caption_logits(kept, given).float().flatten(0, 1)
            smoothing = self._config.label_smoothing
            total = total + cross_entropy(
                logits, labels, label_smoothing=smoothing, reduction="sum"
            )
            count += (labels >= 0).sum()
        return total / count


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) products of (n, d) and (m, d) vectors; in bfloat16 near ties would be lost."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def _groups(ids: Tensor) -> Iterator[tuple[Tensor | slice, int]]:
    """Rows of (f, n, l) padded ids in groups of about equal length, and the length of each.

    On CUDA one group is sooner done than four, each of which is waited for.
    """
    if ids.is_cuda:
        yield slice(len(ids)), ids.shape[-1]
        return
    lengths = (ids != 0).sum(-1).amax(-1)
    for rows in lengths.argsort().chunk(_GROUPS):
        yield rows, int(lengths[rows].max())


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum of the losses."""
    return torch.stack(list(parts.values())).sum()
