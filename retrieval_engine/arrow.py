"""pyarrow's functions, imported when the first of them is called.

To make Python functions of all 286 takes longer than to answer a question from an index, which
calls none.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    import pyarrow.compute

    return getattr(pyarrow.compute, name)
