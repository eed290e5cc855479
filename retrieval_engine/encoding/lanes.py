"""Several batches at once on a CPU, each computed by a thread of its own.

    steps of the run ──► one thread a core, a whole batch each ──► in order

A product that all threads share ends when the slowest is done, and while pictures are decoded one
of them always waits for its core; a batch a thread waits for nobody. What is computed so does not
depend on how many cores there are, to the last bit. A few batches alone are shared by all threads.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from retrieval_engine.encoding.steps import Batch, Computed, PartEnd, Step
from retrieval_engine.errors import EncoderError
from retrieval_engine.records import Modality
from retrieval_engine.workers import Failed, Pool
from retrieval_engine.workers.kinds import threads

if TYPE_CHECKING:
    from retrieval_engine.models import Encoder

_AHEAD = 2  # batches a thread that are under way, or done and not yet read


def lanes_of(encoder: object) -> int:
    """How many batches an encoder computes at once at best: 1 where it does not say."""
    return int(getattr(encoder, "batches_at_once", 1))


def computed(
    steps: Iterator[Step], encoder: "Encoder"
) -> Generator[tuple[Step, Computed | None, float]]:
    """The steps in their order, with what became of each batch and the seconds it took.

    Args:
        steps: of a run; read by the caller's thread, and no further than is needed.
        encoder: of this process; not asked before there is a batch.

    Raises:
        EncoderError: the encoder raised what is no error of ours; those are raised as they are.
    """

    def compute(step: Step) -> tuple[Computed | None, float]:
        if not isinstance(step, Batch):
            return None, 0.0
        start = time.perf_counter()
        arrays = step.kept(step.asked_of(encoder)())
        return Computed(keys=step.keys, arrays=arrays), time.perf_counter() - start

    while True:
        few, lanes = _next_few(steps, encoder)
        if lanes:
            break
        if not few:
            return
        for step in few:
            yield step, *compute(step)
    with _open_lanes(lanes) as pool:
        for step, found in pool.imap(compute, chain(few, steps)):
            if isinstance(found, Failed):
                raise found.error or EncoderError(found.reason)
            yield step, *found


def _next_few(steps: Iterator[Step], encoder: "Encoder") -> tuple[list[Step], int]:
    """Steps to the end of a part, and 0; or fewer that keep half of so many lanes busy."""
    few: list[Step] = []
    images = 0
    for step in steps:
        few.append(step)
        if isinstance(step, PartEnd) or (lanes := lanes_of(encoder)) == 1:
            break
        images += step.modality is Modality.IMAGES  # captions of a few images are soon computed
        if images >= max(2, lanes // 2):
            return few, lanes
    return few, 0


@contextmanager
def _open_lanes(count: int) -> Iterator[Pool]:
    """Threads of which each computes alone; torch shares out as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threads.open_pool(count, _AHEAD * count) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
