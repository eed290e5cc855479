"""What a person waits for, one query, wakes no other thread of OpenBLAS."""

import os
import subprocess
import sys

import pytest

from retrieval_engine.machine import usable_cores

_PRELUDE = """
import time
import numpy as np

rng = np.random.default_rng(0)

def others(work):
    "Seconds of processor of other threads, as a share of this one's."
    work()
    time.sleep(.2)  # OpenBLAS' threads spin for a while after their last work
    mine, all_of_them = time.thread_time(), time.process_time()
    for _ in range(20):
        work()
    mine, all_of_them = time.thread_time() - mine, time.process_time() - all_of_them
    print((all_of_them - mine) / mine)
"""
_LINEAR = """
from retrieval_engine.models.blip.text_arithmetic import NumpyArithmetic
x, bias = rng.random((1, 7, 384), np.float32), rng.random(1536, np.float32)
weight = rng.random((1536, 384), np.float32)
others(lambda: NumpyArithmetic().linear(x, weight, bias))
"""
_EXACT = """
from retrieval_engine.index import ExactIndex
index = ExactIndex(rng.random((5000, 256), np.float32))
query = rng.random((1, 256), np.float32)
others(lambda: index.search(query, 10))
"""


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
@pytest.mark.parametrize("work", [_LINEAR, _EXACT])
def test_no_other_thread_works(work: str) -> None:
    free = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", _PRELUDE + work]
    run = subprocess.run(command, env=free, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.05
