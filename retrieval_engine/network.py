"""Whether there is a network to wait for."""

import os
import socket
import threading
from urllib.parse import urlsplit


def hub_is_reachable(timeout_s: float = 0.8) -> bool:
    """Whether the hub answers on its port; no longer than the timeout, DNS included.

    The hub's own client tries for 23 seconds before it says that there is no network.
    """
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    address = (endpoint.hostname or "", endpoint.port or (80 if endpoint.scheme == "http" else 443))
    answered = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection(address, timeout=timeout_s).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()
