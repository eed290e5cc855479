"""A web server over an `Engine`: an HTTP API, and a page to search and caption with.

from retrieval_engine import Engine
from retrieval_engine.serve import ServeSettings, running
with running(Engine("photos"), ServeSettings(port=0)) as address: ...
"""

from typing import TYPE_CHECKING

from retrieval_engine.lazy import lazily

if TYPE_CHECKING:
    from retrieval_engine.serve.app import create_app
    from retrieval_engine.serve.assistants import run_assistant
    from retrieval_engine.serve.processes import run_processes
    from retrieval_engine.serve.server import run_server, running
    from retrieval_engine.serve.settings import ServeSettings

__all__ = [
    "ServeSettings",
    "create_app",
    "run_assistant",
    "run_processes",
    "run_server",
    "running",
]

__getattr__ = lazily(
    __name__,
    {
        ".app": ("create_app",),
        ".assistants": ("run_assistant",),
        ".processes": ("run_processes",),
        ".server": ("run_server", "running"),
        ".settings": ("ServeSettings",),
    },
)
