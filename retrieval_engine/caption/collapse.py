"""Whether a captioner says one thing over and over, why, and what helps.

A decoder that is trained from scratch first learns which words are common, which needs no picture.
One that never gets further has a falling loss and one sentence for everything. What tells is how
much a true caption's loss rises when the states of another picture are put in place of its own: a
decoder that does not look loses nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.caption.loaded import ImagesRequest
from retrieval_engine.caption.run import CaptionRun
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.errors import EvaluationError
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.diversity import Diversity, diversity
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.models.adapters import resolve
from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.learner import CaptionLearner, Task, open_learner
from retrieval_engine.progress import Progress, Silent
from retrieval_engine.records import Json

WAYS: Mapping[str, DecodingOptions] = MappingProxyType(
    {
        # Whatever a checkpoint says of penalties, here each way is what it is called.
        "greedy": DecodingOptions(beams=1, repetition_penalty=1.0, no_repeat_ngram=0),
        "3 beams": DecodingOptions(beams=3, repetition_penalty=1.0, no_repeat_ngram=0),
        "greedy, repetition penalty 1.3": DecodingOptions(
            beams=1, repetition_penalty=1.3, no_repeat_ngram=0
        ),
        "3 beams, no 3 tokens twice": DecodingOptions(
            beams=3, repetition_penalty=1.0, no_repeat_ngram=3
        ),
    }
)
_BANDS = ((10, "the 10 commonest"), (100, "the next 90"), (10**9, "all rarer"))
_ALIKE = 0.25  # share of one sentence, above which a captioner is called collapsed
_FEW = 0.1  # different captions by captions, below which it is
_REPEATED = 0.1  # word pairs that come twice in a caption
_BLIND = 0.15  # nats a word that another picture costs at least where a decoder looks
_AT_ONCE = 32  # captions whose logits are held
_FEWEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What a captioner says when its words are chosen in one way.

    Attributes:
        name: of the way, a key of `WAYS`.
        captions: one for each picture.
        varied: how varied they are.
        cider: mean CIDEr-D against the true captions; 1 is 100 in papers.
    """

    name: str
    captions: Sequence[str]
    varied: Diversity
    cider: float

    @property
    def is_collapsed(self) -> bool:
        """Whether one sentence, or a few, stand for everything."""
        return self.varied.commonest_share > _ALIKE or self.varied.distinct_captions < _FEW

    @property
    def commonest(self) -> str:
        """The caption that is written most often."""
        return Counter(self.captions).most_common(1)[0][0]

    def to_json(self) -> dict[str, Json]:
        """The figures, without the captions."""
        return {"cider": self.cider, "commonest": self.commonest, **self.varied.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Tokens of the true captions that are about equally common.

    Attributes:
        name: which.
        share: of all tokens, 0-1.
        loss: mean surprise in nats, given the picture and the words before.
        gain: by how much another picture in its place makes it larger.
    """

    name: str
    share: float
    loss: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseReport:
    """What a captioner knows of its pictures, and whether it shows.

    Attributes:
        model: the checkpoint.
        images: those that were captioned.
        references: their true captions.
        ways: of choosing words, side by side.
        loss: mean surprise of a true caption's token, in nats.
        gain: by how much another picture in place of its own makes that larger.
        entropy: of the next token along true captions, in nats.
        entropy_by_place: the same for the first, second, … token.
        bands: the loss by how common a token is.
        verdict: what is wrong and what helps, in sentences.
    """

    model: str
    images: Sequence[SourceImage]
    references: Sequence[Sequence[str]]
    ways: Sequence[Way]
    loss: float
    gain: float
    entropy: float
    entropy_by_place: Sequence[float]
    bands: Sequence[Band]
    verdict: str

    def to_json(self) -> dict[str, Json]:
        """All figures as one JSON object."""
        return {
            "model": self.model,
            "images": len(self.images),
            "ways": {way.name: way.to_json() for way in self.ways},
            "loss": self.loss,
            "gain_of_the_picture": self.gain,
            "entropy": self.entropy,
            "entropy_by_place": list(self.entropy_by_place),
            "loss_by_frequency": [asdict(band) for band in self.bands],
            "verdict": self.verdict,
        }


def study_collapse(
    model: str,
    targets: Sequence[str] = (),
    *,
    store: Path = Path("embeddings"),
    split: str | None = None,
    limit: int = 200,
    device: str = "auto",
    progress: Progress | None = None,
) -> CollapseReport:
    """Caption pictures in several ways and look at what the captioner knows of them.

    Args:
        model: checkpoint of the captioner.
        targets: sources of pictures with captions; none means the store's.
        store: whose `tokens` are used where they fit.
        split: only the items of this split.
        limit: the first so many pictures.
        device: `auto`, `cpu`, `cuda`, …
        progress: told about the pictures.

    Raises:
        EvaluationError: fewer than 8 pictures have captions and could be read.
        CheckpointInvalid: the model writes no captions.
    """
    progress = progress or Silent()
    request = ImagesRequest(
        targets=tuple(targets), store=store, model=model, split=split, device=device
    )
    opened, asked = request.find()
    captioner = request.captioner(opened)
    learner = open_learner(resolve(model), Task.CAPTION, with_tower=False, dtype=torch.float32)
    assert isinstance(learner, CaptionLearner)
    learner.model.eval().to(captioner.device)
    run = CaptionRun(captioner, WAYS["greedy"], store=opened)
    captioned = (image for image in asked.images if image.item.captions)
    first = (image for image, _ in zip(captioned, range(limit), strict=False))
    images: list[SourceImage] = []
    words: dict[str, list[str]] = {name: [] for name in WAYS}
    tables: list[NDArray[np.float64]] = []
    progress.start("captioning", limit)
    for some, states in run.states_of(first, progress):
        images += some
        names = [image.name for image in some]
        for way, options in WAYS.items():
            found = write_captions(captioner, states, names, options)
            words[way] += [captioner.text(s[0].ids, captioner.prompt).strip() for s in found]
        tables += _surprises(learner, states.to(captioner.device), some)
    progress.stop()
    if len(images) < _FEWEST:
        raise EvaluationError(
            f"{len(images)} pictures with captions are too few to tell; at least {_FEWEST}",
            hint="give a source with captions, or a larger `limit`",
        )
    references = [[caption.text for caption in image.item.captions] for image in images]
    told = [[ptb_tokens(text) for text in texts] for texts in references]
    ways = [_way(name, own, told) for name, own in words.items()]
    table = np.concatenate(tables)
    gain = float((table[:, 3] - table[:, 2]).mean())
    return CollapseReport(
        model=model,
        images=images,
        references=references,
        ways=ways,
        loss=float(table[:, 2].mean()),
        gain=gain,
        entropy=float(table[:, 4].mean()),
        entropy_by_place=[float(table[table[:, 1] == p, 4].mean()) for p in _places(table)],
        bands=_bands(table, learner.end_id),
        verdict=verdict(ways, gain),
    )


def _way(name: str, captions: Sequence[str], told: Sequence[Sequence[Sequence[str]]]) -> Way:
    tokens = [ptb_tokens(caption) for caption in captions]
    cider = float(cider_d(tokens, told).mean())
    return Way(name=name, captions=captions, varied=diversity(tokens), cider=cider)


@torch.no_grad()
def _surprises(
    learner: CaptionLearner, states: Tensor, images: Sequence[SourceImage]
) -> Iterator[NDArray[np.float64]]:
    """Of each token of true captions: id, place, loss, loss with another picture, entropy.

    Args:
        learner: reads them.
        states: (n, t, w) of the pictures.
        images: the n pictures.

    Yields:
        (m, 5) arrays.
    """
    rows = [(i, caption.text) for i, image in enumerate(images) for caption in image.item.captions]
    other = np.roll(np.arange(len(images)), 1)  # the picture before
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        ids, given = learner.encode([text for _, text in some])
        padded, mask = (torch.from_numpy(a) for a in pad_tokens(ids, max(map(len, ids)), pad=0))
        own = torch.tensor([i for i, _ in some])
        learned = (mask.bool() & (torch.arange(padded.shape[1]) >= given))[:, 1:]
        both = []
        for chosen in (own, torch.from_numpy(other)[own]):
            seen = learner.read(states[chosen.to(states.device)].float())
            logits = learner.logits(
                seen, padded[:, None].to(states.device), mask[:, None].to(states.device)
            )
            both.append(logits[:, 0, :-1].float().log_softmax(-1).cpu())
        right, wrong = both
        targets = padded[:, 1:, None]
        place = torch.arange(1, padded.shape[1]) - given
        columns = (
            padded[:, 1:],
            place.expand(len(some), -1),
            -right.gather(-1, targets)[..., 0],
            -wrong.gather(-1, targets)[..., 0],
            -(right.exp() * right).sum(-1),
        )
        yield torch.stack([c[learned].double() for c in columns], dim=1).numpy()


def _places(table: NDArray[np.float64]) -> list[int]:
    """Places that at least a tenth of the captions reach."""
    counts = np.bincount(table[:, 1].astype(np.int64))
    return np.flatnonzero(counts >= counts.max() / 10).tolist()


def _bands(table: NDArray[np.float64], end_id: int) -> list[Band]:
    words = table[table[:, 0] != end_id]
    ids, inverse, counts = np.unique(words[:, 0], return_inverse=True, return_counts=True)
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(ids))
    ranks, first, bands = rank[inverse], 0, []
    for last, name in _BANDS:
        own = words[(ranks >= first) & (ranks < last)]
        first = last
        if len(own):
            loss = float(own[:, 2].mean())
            gain = float(own[:, 3].mean()) - loss
            bands.append(Band(name=name, share=len(own) / len(words), loss=loss, gain=gain))
    return bands


def verdict(ways: Sequence[Way], gain: float) -> str:
    """What is wrong, and what helps, in sentences.

    Args:
        ways: greedy first.
        gain: nats that another picture costs a true caption's token.
    """
    greedy = ways[0]
    varied = [way for way in ways if not way.is_collapsed]
    costs = f"another picture in place of its own costs a true caption {gain:.2f} nats a token"
    if greedy.is_collapsed:
        share = f"{greedy.varied.commonest_share:.0%} of greedy captions are {greedy.commonest!r}"
        few = f"{greedy.varied.distinct_captions:.0%} are different"
        if gain < _BLIND:
            return (
                f"Collapsed: {share}, {few}. The decoder does not look: {costs}. No way of choosing "
                "words mends that; training does: learn what is in the pictures first, and match "
                "beside telling (`PretrainConfig(objective='itc+itm+lm+concepts')`), with Muon, or "
                "start from a model that sees."
            )
        better = f" {varied[0].name} says more." if varied else ""
        return (
            f"Collapsed: {share}, {few}, although the decoder looks: {costs}.{better} It knows more "
            "than it says: train longer, on several captions of each picture."
        )
    if greedy.varied.repetition_rate > _REPEATED:
        best = min(ways, key=lambda way: way.varied.repetition_rate)
        return (
            f"Repetition: {greedy.varied.repetition_rate:.0%} of word pairs come twice in a greedy "
            f"caption; {best.name} has {best.varied.repetition_rate:.0%}. The pictures are seen: "
            f"{costs}. Penalties at writing help; longer training mends it."
        )
    blind = " It hardly looks, though: do not trust what it says." if gain < _BLIND else ""
    return (
        f"No collapse: {greedy.varied.distinct_captions:.0%} of greedy captions are different, the "
        f"commonest is {greedy.varied.commonest_share:.0%} of them; {costs}.{blind}"
    )
