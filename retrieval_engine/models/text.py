"""Captions as BLIP and LAVIS clean them before the tokenizer sees them, and what it makes of them."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

VERSION = "pre_caption1"
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


def pre_caption(text: str, max_words: int) -> str:
    """A caption, lower-cased, without the punctuation BLIP drops, cut to a number of words.

    The rule of `pre_caption` in BLIP's data/utils.py and LAVIS's blip_processors.py.

    Args:
        text: the caption as a person wrote it.
        max_words: BLIP's retrieval sets use 30, LAVIS 50.

    Examples:
        >>> pre_caption("A Dog (brown), running!", max_words=30)
        'a dog brown , running'
    """
    text = _PUNCTUATION.sub(" ", text.lower())
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def token_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, max_words: int, max_tokens: int
) -> list[list[int]]:
    """Token ids of each cleaned text, the tokenizer's first and last token included.

    Args:
        tokenizer: the checkpoint's.
        texts: captions as people wrote them.
        max_words: see `pre_caption`.
        max_tokens: ids of a text at most; the last token stays.
    """
    cleaned = [pre_caption(text, max_words) for text in texts]
    ids: list[list[int]] = tokenizer(
        cleaned, truncation=True, max_length=max_tokens, return_attention_mask=False
    )["input_ids"]
    return ids


def pooled(states: "Tensor", mask: "Tensor", pooling: str) -> "Tensor":
    """The state that stands for each text.

    Args:
        states: (n, l, w) after the last layer.
        mask: (n, l), 1 on tokens and 0 on padding.
        pooling: `cls` for the first token, as in BLIP; `mean` over the tokens, as in MiniLM.

    Returns:
        (n, w).
    """
    if pooling == "cls":
        return states[:, 0]
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1)


def maps_of_words(
    pieces: Sequence[str], seen: NDArray[np.float32]
) -> list[tuple[str, NDArray[np.float32]]]:
    """WordPiece's pieces joined to words, each with the mean of its pieces' maps.

    Args:
        pieces: l of them; what begins with ## goes on with the word before it.
        seen: (l, g g) over the squares of an image.

    Returns:
        Each word and its (g, g) map.
    """
    side = round(seen.shape[1] ** 0.5)
    words: list[tuple[str, list[NDArray[np.float32]]]] = []
    for piece, found in zip(pieces, seen.reshape(-1, side, side), strict=True):
        if piece.startswith("##") and words:
            words[-1] = (words[-1][0] + piece.removeprefix("##"), [*words[-1][1], found])
        else:
            words.append((piece, [found]))
    return [(word, np.mean(parts, axis=0)) for word, parts in words]
