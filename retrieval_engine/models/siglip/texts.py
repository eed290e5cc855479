"""Words as SigLIP learned them: lower case, always filled to the full length, nothing masked.

Trap: without filling to 64 tokens, or with the filling masked out, vectors are others and recall
falls: the state that stands for a text is the last one, of a filling token as a rule.
"""

from collections.abc import Sequence
from typing import Any

from retrieval_engine.errors import MissingExtra
from retrieval_engine.models.checkpoint import Checkpoint
from retrieval_engine.models.loading import load_tokenizer

NORMALISER = "siglip-lower1"
_PIECES = "spiece.model"


def open_tokenizer(checkpoint: Checkpoint, *, rows: int) -> Any:
    """The tokenizer: SigLIP's of sentence pieces, SigLIP 2's from tokenizer.json.

    Args:
        checkpoint: where the files are.
        rows: of the word embeddings.

    Raises:
        CheckpointInvalid: see `load_tokenizer`.
        MissingExtra: sentence pieces cannot be read.
    """
    if not (checkpoint.path / _PIECES).is_file():
        from transformers import PreTrainedTokenizerFast

        return load_tokenizer(PreTrainedTokenizerFast, checkpoint, rows=rows)
    try:
        from transformers.models.siglip.tokenization_siglip import SiglipTokenizer
    except ImportError as error:
        raise MissingExtra("sentencepiece", "siglip") from error
    return load_tokenizer(SiglipTokenizer, checkpoint, rows=rows)


def filled(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Ids of each text, cut to `length` with the end token kept, and filled up to it."""
    lowered = [text.lower() for text in texts]
    rows = tokenizer(lowered, truncation=True, max_length=length, padding=False)["input_ids"]
    end, fill = tokenizer.eos_token_id, tokenizer.pad_token_id
    ended = [row if row and row[-1] == end else [*row[: length - 1], end] for row in rows]
    return [[*row, *[fill] * (length - len(row))] for row in ended]
