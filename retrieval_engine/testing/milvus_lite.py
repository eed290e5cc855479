"""A real Milvus server for tests: Milvus Lite's, which speaks the protocol of a cluster."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_RUN = "from milvus_lite.adapter.grpc.server import run_server; run_server({!r}, {!r}, {})"


@contextlib.contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """The address of a server over a folder, on this machine alone, killed at the end."""
    host = "127.0.0.1"
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    said = folder.parent / f"{folder.name}.log"
    run = _RUN.format(str(folder), host, port)
    with said.open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", run], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
                break
            assert process.poll() is None, said.read_text()
            time.sleep(0.1)
        yield f"http://{host}:{port}"
    finally:
        process.kill()
        process.wait()
