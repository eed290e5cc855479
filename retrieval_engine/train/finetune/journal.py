"""The figures of a run on its way: `log.jsonl`, and TensorBoard's files when asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_engine.train.finetune.model_output import open_board
from retrieval_engine.train.runlog import RunLog


class Journal:
    """Writes figures where people and TensorBoard find them.

    Args:
        out: directory of the run.
        keep_steps: lines of later steps are dropped; 0 starts anew.
        tensorboard: write `out/tensorboard` too.
        is_kept: False in all processes but the first: two would drop each other's lines.

    Raises:
        MissingExtra: TensorBoard is asked for and not installed.
    """

    def __init__(self, out: Path, *, keep_steps: int, tensorboard: bool, is_kept: bool) -> None:
        self._log = RunLog(out / "log.jsonl", keep_steps=keep_steps) if is_kept else None
        self._board = open_board(out / "tensorboard") if tensorboard and is_kept else None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; it has a `step`."""
        if self._log is None:
            return
        self._log.write(line)
        for name, value in line.items():
            if self._board is not None and isinstance(value, float):
                self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Let TensorBoard write what it holds back."""
        if self._board is not None:
            self._board.close()
