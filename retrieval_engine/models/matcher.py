"""Matches images with texts through the cross-encoder (ITM), from stored image states.

Only the text side runs for each pair. The keys and values that cross-attention makes of an image
are computed once for all its candidate texts (for ViT-B/16 at 384 pixels they are two thirds of a
pair's arithmetic), the candidates of an image are batched by length, and nobody runs the vision
tower again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_engine.errors import UsageError
from retrieval_engine.models.batching import pad_tokens
from retrieval_engine.models.device import autocast, on_device
from retrieval_engine.models.lanes import TOKENIZING, in_lanes, lanes_on
from retrieval_engine.models.text import maps_of_words

KeysValues = Sequence[tuple[torch.Tensor, torch.Tensor]]

_CPU_TEXTS, _CUDA_TEXTS = 64, 2048
_IMAGES_PER_TEXTS = 4  # keys and values of an image weigh as much as several texts


class CrossEncoder(Protocol):
    """A family's text encoder that looks at an image; plain torch, so that it can be trained."""

    def keys_values(self, tokens: torch.Tensor) -> KeysValues:
        """What each cross-attention makes of images.

        Args:
            tokens: (i, t, w) vision states of i images.

        Returns:
            For each cross-attention layer (i, h, t, d) keys and values.
        """

    def logits(self, seen: KeysValues, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Matching logits of each image's own texts.

        Args:
            seen: from `keys_values`.
            ids: (i, n, l) token ids of n texts for each of the i images.
            mask: (i, n, l) 1 on tokens, 0 on padding.

        Returns:
            (i, n, 2) logits: no match, match.
        """


@runtime_checkable
class OrderingCrossEncoder(Protocol):
    """A cross-encoder that tells a text's images apart by more than its match logits."""

    def order(self, seen: KeysValues, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What is added to match logits where images are compared for a text, never texts.

        Args:
            seen: as in `CrossEncoder.logits`.
            ids: the same.
            mask: the same.

        Returns:
            (i, n).
        """


@runtime_checkable
class ExplainingCrossEncoder(Protocol):
    """A cross-encoder that can tell where it looked."""

    def relevance(self, tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """How much each part of an image did for its match with a text, through each of its tokens.

        Args:
            tokens: (1, t, w) vision states of the image.
            ids: (l,) of the text.

        Returns:
            (l, t) float32, at least 0.
        """


@dataclass(frozen=True, slots=True)
class Block:
    """Pairs that are scored in one go: n texts for each of i images, some of them fillers."""

    texts: NDArray[np.int64]  # (i, n)
    pairs: NDArray[np.int64]  # (i, n) position in the caller's list, -1 for fillers


class Matcher:
    """Scores of (image, text) pairs.

    Args:
        cross: the family's cross-encoder.
        tokenize: token ids of cleaned texts, with the first token ITM was trained with.
        pad_token_id: fills short texts.
        device: where it runs.
        dtype: arithmetic; float32, or half precision through autocast on a CPU.
        pieces: the tokens of ids, as words are written; for `relevance`.
    """

    def __init__(
        self,
        cross: CrossEncoder,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        *,
        pad_token_id: int,
        device: torch.device,
        dtype: torch.dtype,
        pieces: Callable[[Sequence[int]], list[str]] | None = None,
    ) -> None:
        self.cross = cross
        self._tokenize = tokenize
        self._pad = pad_token_id
        self._pieces = pieces
        self._device = device
        self._dtype = dtype
        self.texts_at_once = _CUDA_TEXTS if device.type == "cuda" else _CPU_TEXTS

    def score_pairs(
        self,
        read_tokens: Callable[[NDArray[np.int64]], NDArray[Any]],
        texts: Sequence[str],
        pairs: NDArray[np.int64],
        *,
        advance: Callable[[int], None] = lambda pairs: None,
        as_probability: bool = False,
        of_images: bool = False,
    ) -> NDArray[np.float32]:
        """The match logit of each pair, `itm_logit[1]` of the authors' evaluation code.

        Args:
            read_tokens: gives the (i, t, w) vision states of i images by their numbers.
            texts: captions as people wrote them.
            pairs: (p, 2) numbers of image and text.
            advance: told how many pairs were just scored.
            as_probability: softmax over both logits instead, the probability of a match.
            of_images: the scores order images for each text; see `OrderingCrossEncoder`.

        Returns:
            (p,) float32 logits, or probabilities; larger is a better match.
        """
        ids = self.tokenized(texts)
        scores = np.empty(len(pairs), dtype=np.float32)
        groups = by_images(pairs, [len(tokens) for tokens in ids], self.texts_at_once)

        def score(group: tuple[NDArray[Any], Sequence[Block]]) -> list[torch.Tensor]:
            with torch.inference_mode(), autocast(self._device, self._dtype):
                found = self._group_logits(*group, ids, of_images)
                return [(x.softmax(-1) if as_probability else x)[..., 1] for x in found]

        scored = in_lanes(score, ((read_tokens(i), blocks) for i, blocks in groups), self)
        # One autocast context for all: it keeps the half-precision weights it has made.
        with closing(scored), torch.inference_mode(), autocast(self._device, self._dtype):
            waiting: tuple[Block, torch.Tensor] | None = None
            for (_, blocks), found in scored:
                for block, values in zip(blocks, found, strict=True):
                    if waiting is not None:
                        advance(_settle(scores, *waiting))
                    # On CUDA the next group is read and begun before this one is waited for.
                    waiting = block, values
            if waiting is not None:
                advance(_settle(scores, *waiting))
        return scores

    @property
    def batches_at_once(self) -> int:
        """Threads that may score at the same time, a group each, and gain by it; 1 on a GPU."""
        return lanes_on(self._device)

    def tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as people wrote them."""
        with TOKENIZING:
            return self._tokenize(texts)

    def score_group(
        self,
        tokens: NDArray[Any],
        ids: Sequence[Sequence[int]],
        blocks: Sequence[Block],
        *,
        of_images: bool = False,
    ) -> list[NDArray[np.float32]]:
        """The match logits of one of the groups that `by_images` gives.

        Args:
            tokens: (i, t, w) vision states of its images.
            ids: of all texts, as `tokenized` gives them.
            blocks: of the group.
            of_images: as in `score_pairs`.

        Returns:
            (i, n) of each block; those of its fillers mean nothing.
        """
        with torch.inference_mode(), autocast(self._device, self._dtype):
            found = self._group_logits(tokens, blocks, ids, of_images)
            return [logits[..., 1].cpu().numpy() for logits in found]

    @property
    def orders_images(self) -> bool:
        """Whether `of_images` makes a difference."""
        return isinstance(self.cross, OrderingCrossEncoder)

    def _group_logits(
        self,
        tokens: NDArray[Any],
        blocks: Sequence[Block],
        ids: Sequence[Sequence[int]],
        of_images: bool,
    ) -> Iterator[torch.Tensor]:
        seen = self.cross.keys_values(on_device(tokens, self._device).to(self._dtype))
        return (self._block_logits(seen, ids, block, of_images) for block in blocks)

    def relevance(self, tokens: NDArray[Any], text: str) -> list[tuple[str, NDArray[np.float32]]]:
        """Where an image mattered to each word of a text, for the two to match.

        Args:
            tokens: (t, w) vision states of the image.
            text: as people write it.

        Returns:
            Each word and its (g, g) map over the image, at least 0; larger mattered more.

        Raises:
            UsageError: the model does not tell where it looked.
        """
        if self._pieces is None or not isinstance(self.cross, ExplainingCrossEncoder):
            raise UsageError(
                "this model looks at images through a Q-Former, whose queries have no place in them",
                hint="a BLIP retrieval checkpoint tells, such as Salesforce/blip-itm-base-coco",
            )
        ids = self._tokenize([text])[0]
        states = torch.from_numpy(tokens)[None].to(self._device, self._dtype)
        with autocast(self._device, self._dtype):
            found = self.cross.relevance(states, torch.tensor(ids, device=self._device))
        inner = found[1:-1, 1:].cpu().numpy()  # without [ENC] and [SEP], without the image's CLS
        return maps_of_words(self._pieces(ids[1:-1]), inner)

    def _block_logits(
        self, seen: KeysValues, ids: Sequence[Sequence[int]], block: Block, of_images: bool
    ) -> torch.Tensor:
        rows = [ids[text] for text in block.texts.ravel().tolist()]
        padded, mask = pad_tokens(rows, max(map(len, rows)), pad=self._pad)
        shape = (*block.texts.shape, padded.shape[1])
        given = (
            on_device(padded.reshape(shape), self._device),
            on_device(mask.reshape(shape), self._device),
        )
        logits = self.cross.logits(seen, *given).float()
        if of_images and isinstance(self.cross, OrderingCrossEncoder):
            logits[..., 1] += self.cross.order(seen, *given)
        return logits


def _settle(scores: NDArray[np.float32], block: Block, values: torch.Tensor) -> int:
    """Put a block's values into its pairs' places; the number of these pairs."""
    wanted = block.pairs >= 0
    scores[block.pairs[wanted]] = values.cpu().numpy()[wanted]
    return int(wanted.sum())


def by_images(
    pairs: NDArray[np.int64], lengths: Sequence[int], texts_at_once: int
) -> Iterator[tuple[NDArray[np.int64], list[Block]]]:
    """Groups of images with about equally many texts, and the blocks each group is scored in.

    An image with many texts is a group of its own, its texts cut into blocks by length; images
    with few texts share a block of `texts_at_once` pairs.
    """
    order = np.lexsort((np.asarray(lengths)[pairs[:, 1]], pairs[:, 0]))  # by image, then by length
    starts = np.flatnonzero(np.diff(pairs[order, 0], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    by_count = np.argsort(-counts, kind="stable")
    at = 0
    while at < len(by_count):
        most = int(counts[by_count[at]])
        group = by_count[at : at + max(1, texts_at_once // max(most, _IMAGES_PER_TEXTS))]
        at += len(group)
        members = [order[starts[g] : starts[g] + counts[g]] for g in group]
        table = np.full((len(group), most), -1, dtype=np.int64)
        for row, member in enumerate(members):
            table[row, : len(member)] = member
        filled = np.where(table >= 0, table, table[:, :1])  # fillers repeat the first text
        blocks = [
            Block(
                texts=pairs[filled[:, cut : cut + texts_at_once], 1],
                pairs=table[:, cut : cut + texts_at_once],
            )
            for cut in range(0, most, texts_at_once)
        ]
        yield pairs[table[:, 0], 0], blocks
