"""The cross-encoder on several devices: scores of pairs, the same as those of one process.

Which pairs are scored together is decided here, as one process decides it; a device has all captions
from its beginning, and is sent the vision states (or the pixels) of a few images at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.encoding.device import Facts
from retrieval_engine.encoding.image_tokens import ImageTokens, Seen
from retrieval_engine.encoding.model_pool import ModelPool
from retrieval_engine.encoding.steps import Work
from retrieval_engine.errors import EncoderError
from retrieval_engine.fingerprint import EncoderSpec
from retrieval_engine.models import Arrays, Encoder
from retrieval_engine.models.matcher import Block, by_images
from retrieval_engine.progress import Progress
from retrieval_engine.records import Modality

_LOGITS = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWork(Work):
    """A group of images with their pairs; the keys are the images' numbers.

    Attributes:
        seen: the images.
        blocks: of the group.
        of_images: see `Matcher.score_pairs`.
    """

    seen: Seen
    blocks: Sequence[Block]
    of_images: bool
    modality: Modality = Modality.IMAGES

    def part(self, some: slice) -> Self:
        """See `Work`."""
        blocks = [Block(texts=b.texts[some], pairs=b.pairs[some]) for b in self.blocks]
        return replace(self, keys=self.keys[some], seen=self.seen.part(some), blocks=blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatcherFacts:
    """What must be known of a matcher where it is not; see `device.AnyFacts`.

    Attributes:
        encoder: whose matcher it is.
        lengths: of each text in tokens.
        texts_at_once: that suit the device.
        orders_images: see `Matcher.orders_images`.
    """

    encoder: Facts
    lengths: Sequence[int]
    texts_at_once: int
    orders_images: bool

    @property
    def specs(self) -> Sequence[EncoderSpec]:
        """See `AnyFacts`."""
        return [self.encoder.spec]


class OpenMatcher:
    """An encoder's matcher and all texts, in the process of a device; see `device.Opened`.

    Args:
        open_model: opens the encoder on a device.
        texts: captions as people wrote them.
        device: as torch has it.
    """

    def __init__(
        self, open_model: Callable[..., Encoder], texts: Sequence[str], *, device: str
    ) -> None:
        self._encoder = open_model(device=device)
        self._matcher = self._encoder.matcher()
        self._ids = self._matcher.tokenized(texts)
        self.facts = MatcherFacts(
            encoder=Facts.of(self._encoder),
            lengths=[len(ids) for ids in self._ids],
            texts_at_once=self._matcher.texts_at_once,
            orders_images=self._matcher.orders_images,
        )

    def compute(self, work: PairWork) -> Arrays:
        """(i, n) logits of all blocks of a group, one beside the other."""
        tokens = work.seen.states_by(self._encoder)
        found = self._matcher.score_group(tokens, self._ids, work.blocks, of_images=work.of_images)
        return {_LOGITS: np.concatenate(found, axis=1)}


def scores_of_pool(
    pool: ModelPool[MatcherFacts],
    tokens: ImageTokens,
    pairs: NDArray[np.int64],
    progress: Progress,
    *,
    of_images: bool,
) -> NDArray[np.float32]:
    """(p,) `itm_logit[1]` of pairs, as `Matcher.score_pairs` gives them.

    Args:
        pool: of devices that hold `OpenMatcher`.
        tokens: what gathers the images.
        pairs: (p, 2) numbers of image and text.
        progress: told about every pair.
        of_images: see `Matcher.score_pairs`.

    Raises:
        EncoderError: an image could not be scored, whoever tried: there are no honest figures then.
    """
    facts, scores = pool.facts, np.empty(len(pairs), dtype=np.float32)

    def works() -> Iterator[PairWork]:
        for images, blocks in by_images(pairs, facts.lengths, facts.texts_at_once):
            keys = [str(number) for number in images]
            seen = tokens.gathered(images)
            yield PairWork(keys=keys, seen=seen, blocks=blocks, of_images=of_images)

    for work, found in pool.imap(works(), progress):
        assert found is not None
        for key, reason in found.bad.items():
            raise EncoderError(f"the pairs of image {key} cannot be scored: {reason}")
        progress.detail(pool.rates)
        places = np.concatenate([block.pairs for block in work.blocks], axis=1)
        wanted = places >= 0
        scores[places[wanted]] = found.arrays[_LOGITS][wanted]
        progress.advance(int(wanted.sum()))
    return scores


def opener_of(
    open_model: Callable[..., Encoder], texts: Sequence[str]
) -> Callable[..., OpenMatcher]:
    """What opens a matcher in the process of a device; it can be pickled."""
    return partial(OpenMatcher, open_model, texts)
