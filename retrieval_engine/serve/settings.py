"""How a server is reached, and how much it takes on."""

import ipaddress
import math
from dataclasses import dataclass

from retrieval_engine.errors import UsageError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Where a server listens, whom it answers, and its limits.

    Attributes:
        host: address it listens on; other machines reach it only where a token is set.
        port: 0 lets the system choose one.
        token: what requests must carry as `Authorization: Bearer …`; none by default.
        allowed_hosts: names by which it may be called besides `host` and this machine's own.
        caption_models: checkpoints of the captioners that a request may choose from, the first where
            it does not; by default the store's model.
        rate: requests a second from one address, 5 s of them at once; 0 is no limit. None is no
            limit on this machine's own address, else 50.
        max_body_bytes: of one request.
        max_held_bytes: of all bodies that are being received or worked on.
        max_pixels: of one image.
        timeout_s: in which the head of a request, and then its body, must have come.
        max_batch: questions that a model answers at once; 1 answers each by itself.
        max_waiting: questions that wait for each model; beyond it requests are refused with 429.
        max_requests: requests at work at once; beyond it they are refused with 503.
        reload_s: how often the store and the index are looked at for changes.
        allow_adding: whether images may be added to the store.
        processes: how many serve beside each other; each answer then says from which it is.
        cache: folder in which small images are kept; by default the user's own, see
            `machine.cache_folder`.
        cache_bytes: of those at most; 0 keeps none.
        mcp: whether there are tools for assistants at `/mcp` (extra `mcp`).

    Raises:
        UsageError: a limit is below 1, or other machines could come in without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()
    caption_models: tuple[str, ...] = ()
    rate: float | None = None
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 512 << 20
    max_pixels: int = 50_000_000
    timeout_s: float = 20.0
    max_batch: int = 32
    max_waiting: int = 128
    max_requests: int = 512
    reload_s: float = 0.5
    allow_adding: bool = False
    processes: int = 1
    cache: str = ""
    cache_bytes: int = 1 << 30
    mcp: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range or unsafe."""
        least = dict.fromkeys(("max_body_bytes", "max_held_bytes", "max_pixels"), 1)
        for name, value in {**least, "max_batch": 1, "max_waiting": 1, "cache_bytes": 0}.items():
            if getattr(self, name) < value:
                raise UsageError(f"`{name}` is {getattr(self, name)}, must be at least {value}")
        for name in ("max_requests", "timeout_s", "reload_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"`{name}` is {getattr(self, name)}, must be above 0")
        if self.rate is not None and not 0 <= self.rate < math.inf:
            raise UsageError(f"`rate` is {self.rate}, must be a number from 0 on; 0 is no limit")
        if not all(self.caption_models) or len(set(self.caption_models)) < len(self.caption_models):
            raise UsageError("`caption_models` holds one twice, or an empty one")
        if not 0 <= self.port < 65536:
            raise UsageError(f"`port` is {self.port}, must be 0 to 65535")
        if self.token and (not self.token.isascii() or len(self.token) < 8):
            raise UsageError("`token` must be at least 8 ASCII characters")
        if not self.is_loopback and not self.token:
            raise UsageError(
                f"`host={self.host!r}` lets other machines in, and there is no `token`",
                hint="set a long random one, or listen on 127.0.0.1",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def host_names(self) -> frozenset[str] | None:
        """Host names, in lower case, that a request may be addressed to; None allows any.

        A page that a stranger's name server sends to this machine's own address (DNS rebinding)
        still calls it by the stranger's name. Where the address is any of the machine's, only
        those named can be held against it; the token protects it then.
        """
        if self.host in ("0.0.0.0", "::") and not self.allowed_hosts:
            return None
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, self.host, *self.allowed_hosts))

    @property
    def requests_per_s(self) -> float:
        """Requests a second from one address; 0 is no limit."""
        if self.rate is not None:
            return self.rate
        return 0.0 if self.is_loopback else 50.0
