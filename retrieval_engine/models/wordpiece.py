"""BERT's tokenizer from its file, where the file says all that transformers would take from it."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from retrieval_engine.fingerprint import digest

_CLS, _SEP, _PAD = "[CLS]", "[SEP]", "[PAD]"


class WordPiece:
    """The tokenizer of a checkpoint; open it with `open_wordpiece`.

    Attributes:
        digest: as `loading.vocabulary_digest`.
        pad_token_id: id that fills.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.digest = digest(sorted(vocabulary.items()))
        self.pad_token_id: int = vocabulary[_PAD]
        self._tokenizer = tokenizer

    def ids(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Token ids of each text, [CLS] … [SEP], at most `longest` of them."""
        self._tokenizer.enable_truncation(longest)
        return [found.ids for found in self._tokenizer.encode_batch(list(texts))]


def open_wordpiece(path: Path) -> WordPiece | None:
    """The tokenizer in a checkpoint's directory.

    transformers' `BertTokenizer` takes the words from tokenizer.json and the rest from
    tokenizer_config.json. The file alone will do where both say the same.

    Returns:
        None where they do not, or there is no such file.
    """
    file, config = path / "tokenizer.json", path / "tokenizer_config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        asked = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if not _plain(said, asked):
            return None
        tokenizer = Tokenizer.from_file(str(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ends = [vocabulary.get(_CLS), vocabulary.get(_SEP)]
    return WordPiece(tokenizer) if tokenizer.encode("").ids == ends and _PAD in vocabulary else None


def _plain(said: dict[str, object], asked: dict[str, object]) -> bool:
    model = said["model"]
    names = {"unk_token": "[UNK]", "cls_token": _CLS, "sep_token": _SEP, "pad_token": _PAD}
    return (
        isinstance(model, dict)
        and (model["type"], model["unk_token"]) == ("WordPiece", "[UNK]")
        and (model["continuing_subword_prefix"], model["max_input_chars_per_word"]) == ("##", 100)
        and said["normalizer"]
        == {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        }
        and asked.get("tokenize_chinese_chars", True) is asked.get("do_lower_case", True) is True
        and asked.get("strip_accents") is None
        and asked.get("truncation_side", "right") == "right"
        and said["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and said["padding"] is said["truncation"] is None
        and all(asked.get(key, name) == name for key, name in names.items())
    )
