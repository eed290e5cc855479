"""A BERT tokenizer as BLIP uses it: WordPiece, then [DEC] and [ENC] at the end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.errors import UsageError

if TYPE_CHECKING:
    from transformers import BertTokenizer

DECODE, ENCODE = "[DEC]", "[ENC]"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789'-,"
_WHOLE = 0.8  # of the room that is left for frequent words where not all find place
_LONGEST_PIECE = 8
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer(path: str, captions: Iterable[str], *, limit: int) -> "BertTokenizer":
    """The tokenizer of a directory, or one trained on the captions where none is given."""
    return load_tokenizer(path) if path else train_tokenizer(captions, limit=limit)


def train_tokenizer(captions: Iterable[str], *, limit: int) -> "BertTokenizer":
    """Choose word pieces from captions: frequent words whole, the rest in frequent pieces.

    The same captions give the same vocabulary in any order, which `WordPieceTrainer` of the
    tokenizers library does not promise: it breaks ties by the order of a hash table.

    Args:
        captions: cleaned texts; all are read.
        limit: largest number of pieces, special tokens included and [DEC], [ENC] not. Letters and
            digits are always in, so that a word that no caption has is spelled out.
    """
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import BertTokenizer

    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in captions:
        clean = normalizer.normalize_str(text)
        words.update(word for word, _ in splitter.pre_tokenize_str(clean))
    vocabulary = dict.fromkeys([*_SPECIAL, *_ALPHABET, *(f"##{c}" for c in _ALPHABET)])
    room = max(0, limit - len(vocabulary))
    frequent = [word for word in _ranked(words) if words[word] > 1]
    whole = room if len(frequent) <= room else int(room * _WHOLE)
    vocabulary |= dict.fromkeys(frequent[:whole])
    pieces = _pieces({word: n for word, n in words.items() if word not in vocabulary})
    left = max(0, limit - len(vocabulary))
    vocabulary |= dict.fromkeys([p for p in _ranked(pieces) if p not in vocabulary][:left])
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": DECODE, "additional_special_tokens": [ENCODE]})
    return tokenizer


def _ranked(counts: Mapping[str, int]) -> list[str]:
    """By count, then by spelling."""
    return sorted(counts, key=lambda piece: (-counts[piece], piece))


def _pieces(words: Mapping[str, int]) -> Counter[str]:
    """Beginnings and continuations of words, each weighed by the letters it saves."""
    saved: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + _LONGEST_PIECE) + 1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                saved[piece] += count * (end - start - 1)
    return saved


def load_tokenizer(path: str) -> "BertTokenizer":
    """A tokenizer from a directory, with [DEC] and [ENC] added where they are missing.

    Raises:
        UsageError: the directory holds none.
    """
    from transformers import BertTokenizer

    names = ("tokenizer.json", "vocab.txt")
    if not any((Path(path) / name).is_file() for name in names):
        raise UsageError(f"{path} holds no tokenizer", hint=f"expected {' or '.join(names)} there")
    tokenizer: BertTokenizer = BertTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"bos_token": DECODE, "additional_special_tokens": [ENCODE]})
    return tokenizer
