"""`piece_counts.json`: how often each piece of the vocabulary stands in the captions of the training.

A decoder that is asked for the likeliest sentence says what is common. Logit adjustment (Menon et al.,
"Long-tail learning via logit adjustment", ICLR 2021) takes a share of the log frequency from the logits;
for that the frequencies must be known, and a checkpoint does not tell them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_engine.errors import CheckpointInvalid
from retrieval_engine.models.write_checkpoint import write_json
from retrieval_engine.strict_json import loads

PIECE_COUNTS = "piece_counts.json"
_COMMON = 80
"""So many pieces count as equally common: grammar is made of them, and suffers."""
_RARE = 10
"""Pieces that were read less often stay as they are: too little is known of them."""


@runtime_checkable
class CountingCaptioner(Protocol):
    """A captioner whose checkpoint may tell how often it read each piece.

    Attributes:
        log_frequencies: (v,) see the function of this name; None where the checkpoint does not
            tell.
    """

    @property
    def log_frequencies(self) -> NDArray[np.float32] | None:
        """Of its checkpoint."""


def counted(tokenizer: Any, captions: Iterable[str]) -> Counter[str]:
    """How often each piece stands in the captions, what encloses a sentence left out."""
    ids: Counter[int] = Counter()
    for caption in captions:
        ids.update(tokenizer(caption)["input_ids"][1:-1])
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return Counter(dict(zip(names, ids.values(), strict=True)))


def write_piece_counts(folder: Path, counts: Mapping[str, int]) -> None:
    """Write the file, the commonest first.

    Raises:
        StoreError: the disk refuses.
    """
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    write_json(folder / PIECE_COUNTS, dict(ordered))


def log_frequencies(
    counts: Mapping[str, int], vocabulary: Mapping[str, int], size: int
) -> NDArray[np.float32]:
    """What a share is taken of.

    Args:
        counts: of pieces.
        vocabulary: the id of each piece.
        size: v, rows of the word head.

    Returns:
        (v,) log of how often each piece was read, 0 for the commonest, at most 0; 0 for those that
        were hardly read.
    """
    often = np.zeros(size, dtype=np.float32)
    for piece, number in counts.items():
        if vocabulary.get(piece, size) < size:
            often[vocabulary[piece]] = number
    common = max(np.sort(often)[::-1][min(_COMMON, len(counts) // 2)], _RARE)
    logs: NDArray[np.float32] = np.log(np.clip(often, _RARE, common) / common)
    logs[often < _RARE] = 0
    return logs


def read_log_frequencies(
    folder: Path, vocabulary: Mapping[str, int], size: int
) -> NDArray[np.float32] | None:
    """Those of a checkpoint, or None where it does not tell.

    Raises:
        CheckpointInvalid: the file holds something else than counts.
    """
    file = folder / PIECE_COUNTS
    try:
        said = loads(file.read_bytes())
        if not said or not all(isinstance(n, int) and n > 0 for n in said.values()):
            raise ValueError("it holds no number of times, above 0, for each piece")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, json.JSONDecodeError) as error:
        raise CheckpointInvalid(
            f"{file} cannot be read: {error}", hint="copy it again, or delete it"
        ) from error
    return log_frequencies(said, vocabulary, size)
