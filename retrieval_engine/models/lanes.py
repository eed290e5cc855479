"""Several batches at once on a CPU, each computed by a thread of its own.

    batches ──► one thread a core, a whole batch each ──► in order

A product that all threads share ends when the slowest is done, and while pictures are decoded one
of them always waits for its core; a batch a thread waits for nobody. What is computed so does not
depend on how many cores there are, to the last bit. A few batches alone are shared by all threads.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from retrieval_engine.errors import EncoderError
from retrieval_engine.workers import Failed, Pool
from retrieval_engine.workers.kinds import threads

if TYPE_CHECKING:
    import torch

Input = TypeVar("Input")
Output = TypeVar("Output")
TOKENIZING = threading.Lock()
"""Held while a tokenizer reads: one that another thread sets up anew raises "Already borrowed"."""
_AHEAD = 2  # batches a thread that are under way, or done and not yet read


def lanes_on(device: "torch.device") -> int:
    """Threads that gain by computing at the same time, a batch each: 1 on a GPU."""
    import torch

    return torch.get_num_threads() if device.type == "cpu" else 1


def lanes_of(model: object) -> int:
    """How many threads a model may be used by at once, `batches_at_once`; 1 where it does not say."""
    return int(getattr(model, "batches_at_once", 1))


def in_lanes(
    task: Callable[[Input], Output],
    inputs: Iterator[Input],
    model: object,
    *,
    is_batch: Callable[[Input], bool] = lambda value: True,
    is_end: Callable[[Input], bool] = lambda value: False,
) -> Generator[tuple[Input, Output], None, None]:
    """What a task makes of each input, in their order.

    Args:
        task: computes a batch; several threads may be in it.
        inputs: read by the caller's thread, and no further than is needed.
        model: that computes; not asked before there is an input other than an end.
        is_batch: whether an input is work enough to share out; others come along.
        is_end: whether what comes before an input may not wait for what comes after it.

    Raises:
        Exception: whatever the task raises.
    """
    while True:
        few, lanes = _next_few(inputs, model, is_batch, is_end)
        if lanes:
            break
        if not few:
            return
        for value in few:
            yield value, task(value)
    with _open_lanes(lanes) as pool:
        for value, found in pool.imap(task, chain(few, inputs)):
            if isinstance(found, Failed):
                raise found.error or EncoderError(found.reason)
            yield value, found


def _next_few(
    inputs: Iterator[Input],
    model: object,
    is_batch: Callable[[Input], bool],
    is_end: Callable[[Input], bool],
) -> tuple[list[Input], int]:
    """Inputs up to an end, and 0; or fewer that keep half of so many lanes busy."""
    few: list[Input] = []
    batches = 0
    for value in inputs:
        few.append(value)
        if is_end(value) or (lanes := lanes_of(model)) == 1:
            break
        batches += is_batch(value)
        if batches >= max(2, lanes // 2):
            return few, lanes
    return few, 0


@contextmanager
def _open_lanes(count: int) -> Iterator[Pool]:
    """Threads of which each computes alone; torch shares out as before afterwards."""
    import torch  # a run in which nothing is new does without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threads.open_pool(count, _AHEAD * count) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
