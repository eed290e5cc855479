"""BERT's tokenizer from a checkpoint's tokenizer.json, without transformers.

Importing transformers' takes longer than a question in words. What it would make of the files is
told from them: where that is not certain, `open_wordpiece` answers None.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from retrieval_engine.fingerprint import digest

_FEW = 64  # texts that are not worth waking threads for, which may wait for a core
_CLS, _SEP, _PAD = "[CLS]", "[SEP]", "[PAD]"
_NAMES = {"unk_token": "[UNK]", "cls_token": _CLS, "sep_token": _SEP, "pad_token": _PAD}

# Spaces that transformers' `clean_up_tokenization` takes out of decoded English, in its order.
_SPACED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


class WordPiece:
    """The tokenizer of a checkpoint; open it with `open_wordpiece`.

    Methods have the names and results of transformers' `BertTokenizer`, as far as encoders and
    captioners call them; tests compare.

    Attributes:
        digest: as `loading.vocabulary_digest`.
        pad_token_id: id that fills.
        truncation_side: where long texts are cut.
        backend_tokenizer: that of the library `tokenizers`.
    """

    truncation_side = "right"

    def __init__(self, tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> None:
        self.digest = digest(sorted(vocabulary.items()))
        self.pad_token_id: int = vocabulary[_PAD]
        self.backend_tokenizer = tokenizer

    def ids(self, texts: Sequence[str], longest: int | None = None) -> list[list[int]]:
        """Token ids of each text, [CLS] … [SEP], at most `longest` of them."""
        if len(texts) <= _FEW:
            found = [self.backend_tokenizer.encode(text).ids for text in texts]
        else:
            found = [each.ids for each in self.backend_tokenizer.encode_batch(list(texts))]
        if longest is None:
            return found
        return [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in found]

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        return_attention_mask: bool = True,
    ) -> dict[str, Any]:
        """`input_ids` of a text, or of several; there is no mask, since nothing is padded."""
        longest = max_length if truncation else None
        if isinstance(texts, str):
            return {"input_ids": self.ids([texts], longest)[0]}
        return {"input_ids": self.ids(texts, longest)}

    def get_vocab(self) -> dict[str, int]:
        """Ids by word."""
        words: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return words

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces of these ids."""
        return [self.backend_tokenizer.id_to_token(int(i)) or "[UNK]" for i in ids]

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Words of ids."""
        text: str = self.backend_tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special_tokens
        )
        for spaced, joined in _SPACED if clean_up_tokenization_spaces else ():
            text = text.replace(spaced, joined)
        return text


def open_wordpiece(path: Path) -> WordPiece | None:
    """The tokenizer in a checkpoint's directory.

    transformers' `BertTokenizer` takes the words from tokenizer.json and the rest from
    tokenizer_config.json. The file alone will do where both say the same.

    Returns:
        None where they do not, or there is no such file.
    """
    file = path / "tokenizer.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        asked = _json(path / "tokenizer_config.json")
        if not (_plain(said, asked) and _all_known(path, said, asked)):
            return None
        tokenizer = Tokenizer.from_file(str(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # As `get_vocab` says, which takes three times as long.
    vocabulary: dict[str, int] = said["model"]["vocab"]
    vocabulary.update((token["content"], token["id"]) for token in said["added_tokens"])
    ends = [vocabulary.get(_CLS), vocabulary.get(_SEP)]
    if tokenizer.encode("").ids != ends or _PAD not in vocabulary:
        return None
    return WordPiece(tokenizer, vocabulary)


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _plain(said: dict[str, Any], asked: dict[str, Any]) -> bool:
    model = said["model"]
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
        and said["decoder"] == {"type": "WordPiece", "prefix": "##", "cleanup": True}
        and said["padding"] is said["truncation"] is None
        and all(asked.get(key, name) == name for key, name in _NAMES.items())
    )


def _all_known(path: Path, said: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether every special token that files beside tokenizer.json name is one in it, too."""
    added = said["added_tokens"]
    special = {token["content"] for token in added if token["special"]}
    named = {*_NAMES.values(), "[MASK]", *_json(path / "added_tokens.json")}
    for file in (asked, _json(path / "special_tokens_map.json")):
        named.update(_special(file))
    return len(special) == len(added) and named <= special


def _special(file: dict[str, Any]) -> Iterator[str]:
    """Names of the special tokens in tokenizer_config.json and its like."""
    for key, value in file.items():
        if key.endswith("_token") and value:
            yield _content(value)
        elif key in ("extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"):
            yield from map(_content, value.values() if isinstance(value, dict) else value)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
