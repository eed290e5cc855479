"""A store of drawn scenes, and a real server over it, for the tests of `serve/`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from retrieval_engine import Engine, build_index, encode, open_encoder, open_store
from retrieval_engine.encoding import EncodeOptions
from retrieval_engine.serve import ServeSettings, running

PATIENCE_S = 300.0
"""What nobody waits for unless something is wrong, however busy the machine is."""
ALL = EncodeOptions(features=("itc", "tokens"))


def make_store(folder: Path, scenes: int = 24) -> Path:
    """A store of scenes with their vision states, and its index in `index` beside it."""
    store = folder / "store"
    encode(f"scenes:{scenes}?seed=7", store, encoder=open_encoder("vlre-tiny"), options=ALL)
    build_index(open_store(store), folder / "index", recipe="flat-fp16")
    return store


@contextmanager
def served(store: Path, **limits: object) -> Iterator[httpx.Client]:
    """A client of a server that is ready; the server ends with the block.

    It goes by the index beside the store, if there is one, and keeps small images beside it.
    """
    limits.setdefault("cache", str(store.with_name("cache")))
    index = store.with_name("index")
    engine = Engine(store=store, index=index if index.exists() else None)
    settings = ServeSettings(port=0, **limits)  # type: ignore[arg-type]
    token = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
    with (
        running(engine, settings) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S, headers=token) as client,
    ):
        wait_until_ready(client)
        yield client


def wait_until_ready(client: httpx.Client, within_s: float = PATIENCE_S) -> None:
    """Ask `/readyz` until it says so."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"not ready within {within_s} s")
