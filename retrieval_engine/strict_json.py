"""JSON as files of ours may hold it: what would break its reader later is refused on reading."""

import json
import math
import re
from typing import Any, NoReturn

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # not what an escaped backslash stands before


def loads(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is no JSON; or it is nested too deep, holds NaN or a number beyond all
            floats (`1e999`), or a string with a NUL character, which no file name and no C
            library takes.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if _NUL.search(text if isinstance(text, str) else text.decode()):
            raise ValueError("holds a NUL character")
    except RecursionError:
        raise ValueError("is nested too deep") from None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"holds the number {digits}, beyond all floats")
    return number
