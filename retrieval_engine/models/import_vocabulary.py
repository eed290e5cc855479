"""The tokenizer of an imported checkpoint: a BERT vocabulary and the authors' special tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_engine.errors import CheckpointInvalid, CheckpointNotFound, UsageError
from retrieval_engine.network import hub_is_reachable

if TYPE_CHECKING:
    from transformers import BertTokenizer

DEFAULT = "google-bert/bert-base-uncased"


def build_tokenizer(
    vocab: Path | None, rows: int, special_tokens: Sequence[str]
) -> "BertTokenizer":
    """BERT's uncased tokenizer with the authors' tokens at its end.

    Trap: `BertTokenizer(vocab_file=...)` of transformers 5 silently ignores the file.

    Args:
        vocab: vocab.txt, one WordPiece a line; None for bert-base-uncased's, which BLIP and
            LAVIS use.
        rows: of the checkpoint's word embeddings: the vocabulary must be that large.
        special_tokens: appended in order unless the file has them; the first is `bos_token`.

    Raises:
        UsageError: the file cannot be read.
        CheckpointNotFound: none was given and bert-base-uncased's is not to be had.
        CheckpointInvalid: the vocabulary has another size than the embeddings.
    """
    from transformers import BertTokenizer

    file = vocab or _default_file()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`vocab={str(file)!r}` cannot be read: {error}") from error
    words = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    tokens = [*words, *(token for token in special_tokens if token not in words)]
    if len(tokens) != rows or len(set(tokens)) != rows:
        added = " + ".join(token for token in special_tokens if token not in words)
        raise CheckpointInvalid(
            f"the checkpoint's word embeddings have {rows} rows; {file.name} has {len(words)} "
            f"words ({len(set(tokens))} different ones with {added or 'none'} added)",
            hint="give the vocab.txt the checkpoint was trained with: `vocab=FILE`",
        )
    tokenizer = BertTokenizer(vocab={t: n for n, t in enumerate(words)}, do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": special_tokens[0]})
    for token in special_tokens[1:]:
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    return tokenizer


def _default_file() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(DEFAULT, "vocab.txt", local_files_only=not hub_is_reachable()))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointNotFound(
            f"no vocabulary: {DEFAULT} is not on this machine and the hub cannot be reached",
            hint="give BERT's uncased vocabulary (30,522 lines): `vocab='vocab.txt'`",
        ) from error
