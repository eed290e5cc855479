"""How the suite runs: a thread a process, equal examples, no GPU test that skips in silence."""

import gc
import os
from collections.abc import Iterator

# Before torch and numpy are imported. Several test processes with a thread for each core fight
# over the cores: some tests were 60 times slower so.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("VLRE_MODEL", "vlre-tiny")  # most tests are of drawn scenes

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging

torch.set_num_threads(1)
# A slow machine is no failure, and a commit that was green stays green.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
logging.disable_progress_bar()


def pytest_sessionstart() -> None:
    """Nothing that is imported or collected is ever garbage: it is looked through at no time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on garbage is collected, less often than every 700 objects, among what is new."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A gpu test skips where there is no GPU, and fails where one was promised."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("VLRE_REQUIRE_GPU") == "1":
            pytest.fail("VLRE_REQUIRE_GPU=1, and torch sees no CUDA device")
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Milvus server that a session's tests share, for those marked `service`."""
    from retrieval_engine.testing.milvus_lite import milvus_server

    with milvus_server(tmp_path_factory.mktemp("milvus") / "data") as address:
        yield address
