"""Captions as token ids: for the encoder, for matching and for the decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval_engine.train.pretrain.config import PROMPT
from retrieval_engine.train.pretrain.tokenizer import DECODE, ENCODE
from retrieval_engine.train.pretrain.words import mirrored as mirror

if TYPE_CHECKING:
    from transformers import BertTokenizer

_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids (n, l) int64, padded with 0, and their mask (n, l) int64."""

    ids: Tensor
    mask: Tensor

    def __getitem__(self, rows: Tensor) -> "Tokens":
        """Some of the rows."""
        return Tokens(ids=self.ids[rows], mask=self.mask[rows])

    def to(self, device: torch.device) -> "Tokens":
        """The same on another device."""
        return Tokens(ids=self.ids.to(device), mask=self.mask.to(device))


class Texts:
    """The captions of a set, tokenised once, as they are and as seen in a mirror.

    Args:
        captions: cleaned texts.
        tokenizer: BERT's, with [DEC] and [ENC].
        length: longest row in tokens, [CLS] and [SEP] included.
    """

    def __init__(self, captions: Sequence[str], tokenizer: "BertTokenizer", length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self.encode_id = int(tokenizer.convert_tokens_to_ids(ENCODE))
        self._decode_id = int(tokenizer.convert_tokens_to_ids(DECODE))
        self._sep_id = int(tokenizer.convert_tokens_to_ids("[SEP]"))
        self._prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        self._plain = self._table(captions)
        sided = [i for i, text in enumerate(captions) if mirror(text) != text]
        self._mirrored = self._plain.copy()
        if sided:
            rows = self._table([mirror(captions[i]) for i in sided])
            self._mirrored[sided, : rows.shape[1]] = rows[:, : self._mirrored.shape[1]]

    def of(self, captions: NDArray[np.int64], *, mirrored: bool) -> Tokens:
        """Tokens of some of the captions, [CLS] first."""
        return _trimmed((self._mirrored if mirrored else self._plain)[captions])

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokens of new texts, [CLS] first."""
        return _trimmed(self._table(texts))

    def for_decoder(
        self, captions: NDArray[np.int64], prompted: NDArray[np.bool_], *, mirrored: bool
    ) -> tuple[Tokens, Tensor]:
        """Input and labels of the decoder.

        Args:
            captions: n rows.
            prompted: (n,) whether the caption follows the prompt; it follows [DEC] otherwise, so
                that generation works both ways.
            mirrored: captions of the flipped pictures.

        Returns:
            Tokens that begin with [DEC], and labels in which padding and prompt are -100.
        """
        table = (self._mirrored if mirrored else self._plain)[captions]
        lead = len(self._prompt)
        ids = np.zeros((len(table), table.shape[1] + lead), dtype=np.int32)
        ids[:, 0] = self._decode_id
        ids[prompted, 1 : 1 + lead] = self._prompt
        ids[prompted, 1 + lead :] = table[prompted, 1:]
        ids[~prompted, 1 : table.shape[1]] = table[~prompted, 1:]
        tokens = _trimmed(ids)
        labels = tokens.ids.masked_fill(tokens.mask == 0, _IGNORED)
        labels[:, 0] = _IGNORED
        labels[torch.from_numpy(prompted), 1 : 1 + lead] = _IGNORED
        return tokens, labels

    def _table(self, texts: Sequence[str]) -> NDArray[np.int32]:
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._length)["input_ids"]
        table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
        for row, ids in zip(table, rows, strict=True):
            row[: len(ids)] = ids
        return table


def _trimmed(ids: NDArray[np.int32]) -> Tokens:
    longest = int((ids != 0).sum(1).max())
    trimmed = torch.from_numpy(ids[:, :longest].astype(np.int64))
    return Tokens(ids=trimmed, mask=(trimmed != 0).long())
