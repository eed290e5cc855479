"""`word_counts.json`: the words of the captions that a decoder learned from, and how often it read each.

A decoder writes pieces of words. Two things go wrong that this file mends: pieces are put together to
what is no word ("bicyclclist"), and whoever asks for the likeliest sentence gets the commonest words. For
the second logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021) takes a
share of the log frequency from the logits.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.write_checkpoint import write_json
from retrieval_engine.strict_json import loads

WORD_COUNTS = "word_counts.json"
_COMMON = 80
"""So many pieces count as equally common: grammar is made of them, and suffers."""
_RARE = 10
"""Pieces that were read less often stay as they are: too little is known of them."""
_WITHIN = "##"
_ENDS = -1  # in a tree of pieces: a word may end here


class Lexicon:
    """The words that a decoder may write, as pieces.

    Args:
        counts: how often each word was read.
        tokenizer: a WordPiece one.
        size: v, rows of the word head.

    Attributes:
        log_frequencies: (v,) float32, log of how often each piece was read, 0 for the commonest, at
            most 0; 0 for those that were hardly read.
        foreign: (v,) bool, pieces that begin no word, what is within words among them; special
            tokens are none of these.
    """

    def __init__(self, counts: Mapping[str, int], tokenizer: Any, size: int) -> None:
        vocabulary = tokenizer.get_vocab()
        often = np.zeros(size, dtype=np.float32)
        self._tree: dict[int, Any] = {}
        words = tokenizer(list(counts))["input_ids"] if counts else []
        for pieces, number in zip(words, counts.values(), strict=True):
            branch = self._tree
            for piece in pieces[1:-1]:
                often[piece] += number
                branch = branch.setdefault(piece, {})
            branch[_ENDS] = {}
        self.log_frequencies = _logs(often)
        self._within = np.zeros(size, dtype=bool)
        self.foreign = np.zeros(size, dtype=bool)
        for name, number in vocabulary.items():
            if number < size and not (name.startswith("[") and name.endswith("]")):
                self._within[number] = name.startswith(_WITHIN)
                self.foreign[number] = number not in self._tree

    def keep_to_words(self, sentences: Tensor, scores: Tensor) -> None:
        """Forbid what makes no word of the lexicon.

        Args:
            sentences: (n, b, l) tokens so far.
            scores: (n, b, v) of the next; changed in place.
        """
        begun = []
        for i, rows in enumerate(sentences.tolist()):
            for j, row in enumerate(rows):
                branch = self._branch(row)
                after = [piece for piece in branch if piece != _ENDS]
                if after:
                    pieces = torch.tensor(after, device=scores.device)
                    begun.append((i, j, pieces, scores[i, j, pieces], _ENDS in branch))
        scores.masked_fill_(torch.from_numpy(self.foreign).to(scores.device), float("-inf"))
        for i, j, pieces, own, may_end in begun:
            if not may_end and own.isfinite().any():
                scores[i, j] = float("-inf")
            scores[i, j, pieces] = own

    def _branch(self, row: Sequence[int]) -> Mapping[int, Any]:
        """What may follow within the last word of a sentence; nothing where it is none of ours."""
        first = len(row) - 1
        while first > 0 and self._within[row[first]]:
            first -= 1
        branch: Mapping[int, Any] = self._tree
        for piece in row[max(first, 0) :]:
            branch = branch.get(piece, {})
        return branch


@runtime_checkable
class WordyCaptioner(Protocol):
    """A captioner whose checkpoint may tell which words it read.

    Attributes:
        lexicon: None where the checkpoint does not tell.
    """

    @property
    def lexicon(self) -> Lexicon | None:
        """Of its checkpoint."""


def lexicon_of(captioner: object) -> Lexicon | None:
    """The words that a captioner keeps to; None where it may write whatever it likes."""
    return captioner.lexicon if isinstance(captioner, WordyCaptioner) else None


def counted(tokenizer: Any, captions: Iterable[str]) -> Counter[str]:
    """How often each word stands in the captions, as the tokenizer parts them."""
    counts: Counter[str] = Counter()
    for caption in captions:
        words: list[str] = []
        for piece in tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"][1:-1]):
            if piece.startswith(_WITHIN) and words:
                words[-1] += piece.removeprefix(_WITHIN)
            else:
                words.append(piece)
        counts.update(words)
    return Counter({word: n for word, n in counts.items() if not word.startswith("[")})


def write_word_counts(folder: Path, counts: Mapping[str, int]) -> None:
    """Write the file, the commonest first.

    Raises:
        StoreError: the disk refuses.
    """
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    write_json(folder / WORD_COUNTS, dict(ordered))


def _file_of(checkpoint: Checkpoint) -> Path | None:
    file = checkpoint.path / WORD_COUNTS
    # An adapter learned from other captions than its base.
    return file if checkpoint.adapter is None and file.is_file() else None


def digest_of_words(checkpoint: Checkpoint) -> list[str]:
    """What a fingerprint says of the words that a checkpoint keeps to: nothing, or the file's sha256."""
    file = _file_of(checkpoint)
    return [hashlib.sha256(file.read_bytes()).hexdigest()] if file else []


def read_lexicon(checkpoint: Checkpoint, tokenizer: Any, size: int) -> Lexicon | None:
    """The words that a checkpoint keeps to, or None where it does not tell.

    Raises:
        CheckpointInvalid: the file holds something else than counts.
    """
    file = _file_of(checkpoint)
    if file is None:
        return None
    try:
        said = loads(file.read_bytes())
        if not said or not all(type(n) is int and n > 0 for n in said.values()):
            raise ValueError("it holds no number of times, above 0, for each word")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointInvalid(
            f"{file} cannot be read: {error}", hint="copy it again, or delete it"
        ) from error
    return Lexicon(said, tokenizer, size)


def _logs(often: NDArray[np.float32]) -> NDArray[np.float32]:
    read = int((often > 0).sum())
    common = max(np.sort(often)[::-1][min(_COMMON, read // 2)], _RARE)
    logs: NDArray[np.float32] = np.log(np.clip(often, _RARE, common) / common)
    logs[often < _RARE] = 0
    return logs
