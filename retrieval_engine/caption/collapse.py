"""Whether a captioner says one thing over and over, why, and what helps.

A decoder that is trained from scratch first learns which words are common, which needs no picture.
One that never gets further has a falling loss and one sentence for everything. What tells is how
much a true caption's loss rises when the states of another picture are put in place of its own: a
decoder that does not look loses nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import torch

from retrieval_engine.caption.caption_run import CaptionRun
from retrieval_engine.caption.decoding import DecodingOptions
from retrieval_engine.caption.generating import write_captions
from retrieval_engine.caption.loaded import ImagesRequest
from retrieval_engine.caption.source_images import SourceImage
from retrieval_engine.caption.surprise import Band, Surprise, surprises
from retrieval_engine.errors import EvaluationError
from retrieval_engine.metrics.cider import cider_d
from retrieval_engine.metrics.diversity import Diversity, diversity
from retrieval_engine.metrics.ptb import ptb_tokens
from retrieval_engine.models.adapters import resolve
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
_ALIKE = 0.25  # share of one sentence, above which a captioner is called collapsed
_FEW = 0.1  # different captions by captions, below which it is
_REPEATED = 0.1  # word pairs that come twice in a caption
_BLIND = 0.15  # nats a word that another picture costs at least where a decoder looks
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
    images: list[SourceImage] = []
    words: dict[str, list[str]] = {name: [] for name in WAYS}
    found: list[Surprise] = []
    progress.start("captioning", limit)
    for some, states in run.states_of(islice(captioned, limit), progress):
        images += some
        names = [image.name for image in some]
        for way, options in WAYS.items():
            written = write_captions(captioner, states, names, options)
            words[way] += [captioner.text(s[0].ids, captioner.prompt).strip() for s in written]
        found += surprises(learner, states.to(captioner.device), _references(some))
    progress.stop()
    if len(images) < _FEWEST:
        raise EvaluationError(
            f"{len(images)} pictures with captions are too few to tell; at least {_FEWEST}",
            hint="give a source with captions, or a larger `limit`",
        )
    return _report(model, images, words, Surprise.joined(found), learner.end_id)


def _references(images: Sequence[SourceImage]) -> list[list[str]]:
    return [[caption.text for caption in image.item.captions] for image in images]


def _report(
    model: str,
    images: Sequence[SourceImage],
    words: Mapping[str, Sequence[str]],
    surprise: Surprise,
    end_id: int,
) -> CollapseReport:
    references = _references(images)
    told = [[ptb_tokens(text) for text in texts] for texts in references]
    ways = [_way(name, own, told) for name, own in words.items()]
    return CollapseReport(
        model=model,
        images=images,
        references=references,
        ways=ways,
        loss=float(surprise.own.mean()),
        gain=surprise.gain,
        entropy=float(surprise.entropy.mean()),
        entropy_by_place=surprise.entropy_by_place,
        bands=surprise.bands(end_id),
        verdict=verdict(ways, surprise.gain),
    )


def _way(name: str, captions: Sequence[str], told: Sequence[Sequence[Sequence[str]]]) -> Way:
    tokens = [ptb_tokens(caption) for caption in captions]
    cider = float(cider_d(tokens, told).mean())
    return Way(name=name, captions=captions, varied=diversity(tokens), cider=cider)


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
