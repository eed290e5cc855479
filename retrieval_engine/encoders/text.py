"""Captions as BLIP and LAVIS clean them before the tokenizer sees them."""

import re

VERSION = "pre_caption1"
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


def pre_caption(text: str, max_words: int) -> str:
    """A caption, lower-cased, without the punctuation BLIP drops, cut to a number of words.

    The rule of `pre_caption` in BLIP's data/utils.py and LAVIS's blip_processors.py.

    Args:
        text: the caption as a person wrote it.
        max_words: BLIP's retrieval sets use 30, LAVIS 50.
    """
    text = _PUNCTUATION.sub(" ", text.lower())
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
