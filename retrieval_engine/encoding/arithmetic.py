"""Which arithmetic goes on with a store: machines differ in what they are fast at."""

from pathlib import Path

from retrieval_engine.errors import StoreError
from retrieval_engine.store import open_store

_KNOWN = ("float32", "bfloat16", "float16", "float8", "int8")


def followed_dtype(store: Path | str, dtype: str = "auto", *, overwrite: bool = False) -> str:
    """The dtype asked for; `auto` goes on with that of a store that stays, wherever it was made.

    A store that was begun in half precision on a GPU can so be gone on with on a CPU, and one of a
    laptop's float32 on a server. What a device cannot compute is refused when the model is opened.
    """
    if dtype != "auto" or overwrite:
        return dtype
    try:
        found = open_store(store).spec.dtype
    except StoreError:  # none yet; or who writes to it says what is wrong
        return dtype
    return found if found in _KNOWN else dtype
