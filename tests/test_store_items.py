"""Tables of items, and what reading them must not cost."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from retrieval_engine.store.items import equal_to


@pytest.mark.parametrize(("text", "expected"), [("b", [1, 3]), ("", [2]), ("no", [])])
def test_rows_of_one_text_are_found(text: str, expected: list[int]) -> None:
    column = pa.chunked_array([["a", "b"], [], ["", "b"]], pa.string())
    found = equal_to(column, text).to_pylist()
    assert [row for row, is_here in enumerate(found) if is_here] == expected
    assert equal_to(column.slice(0, 0), text).to_pylist() == []


@pytest.mark.skipif(not importlib.util.find_spec("pandas"), reason="needs pandas")
def test_a_second_encode_of_the_same_imports_no_pandas(tmp_path: Path) -> None:
    """PyArrow imports it behind one's back, half a second, where a look would do."""
    arguments = ["encode", "scenes:4?seed=1", "--store", str(tmp_path), "--model", "vlre-tiny"]
    program = (
        "import atexit, sys\nfrom retrieval_engine.cli import main\n"
        "atexit.register(lambda: print('pandas' in sys.modules))\n"
        f"main({arguments!r})"
    )
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[1].stdout.splitlines()[-1] == "False"
