"""A real Milvus server for tests: Milvus Lite's, which speaks the protocol of a cluster."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_MAIN = "from milvus_lite.cmdline import main; main()"


@contextlib.contextmanager
def milvus_server(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of a server over a folder, on this machine alone, killed at the end."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    words = ["server", "--data-dir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", _MAIN, *words], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder.parent / f"{folder.name}.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
